"""The walk over a graph: whatever exporters and optimisers do to names and order, the same tensors come out."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from icefall_exports import assert_same, golden, published_files
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxNode, OnnxTensor, read_onnx
from jaxasr.convert.icefall import exports
from jaxasr.convert.icefall.exports import read_models
from jaxasr.errors import CheckpointError

Change = Callable[[OnnxGraph], OnnxGraph]


def renamed(graph: OnnxGraph) -> OnnxGraph:
    """No name kept: nodes, values and stored tensors are numbered."""
    fixed = {"", *graph.inputs, *graph.outputs}
    numbers: dict[str, str] = {}

    def new(name: str) -> str:
        return name if name in fixed else numbers.setdefault(name, f"v{len(numbers)}")

    def in_branches(value: object) -> object:
        if isinstance(value, OnnxGraph):
            return dataclasses.replace(
                value, nodes=tuple(map(change, value.nodes)), outputs={new(k): () for k in value.outputs}
            )
        return value

    def change(node: OnnxNode) -> OnnxNode:
        return dataclasses.replace(
            node,
            name="",
            inputs=tuple(map(new, node.inputs)),
            outputs=tuple(map(new, node.outputs)),
            attributes={key: in_branches(value) for key, value in node.attributes.items()},
        )

    return dataclasses.replace(
        graph,
        nodes=tuple(map(change, graph.nodes)),
        initializers={new(name): dataclasses.replace(t, name=new(name)) for name, t in graph.initializers.items()},
        constants={new(name): dataclasses.replace(t, name=new(name)) for name, t in graph.constants.items()},
    )


def shuffled(graph: OnnxGraph) -> OnnxGraph:
    nodes = list(graph.nodes)
    random.Random(0).shuffle(nodes)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def turned_sums(graph: OnnxGraph) -> OnnxGraph:
    """The inputs of sums and products the other way about."""
    nodes = (dataclasses.replace(n, inputs=n.inputs[::-1]) if n.op_type in ("Add", "Mul") else n for n in graph.nodes)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def as_constant_nodes(graph: OnnxGraph) -> OnnxGraph:
    nodes = [OnnxNode("Constant", "", (), (name,), {"value": t}, "") for name, t in graph.initializers.items()]
    constants = {**graph.constants, **graph.initializers}
    return dataclasses.replace(graph, nodes=(*nodes, *graph.nodes), initializers={}, constants=constants)


def stored_transposed(graph: OnnxGraph) -> OnnxGraph:
    """Every matrix of a MatMul stored the other way, after Transpose, Cast to its own type, and Identity."""
    matrices = {n.inputs[1] for n in graph.nodes if n.op_type == "MatMul" and n.inputs[1] in graph.initializers}
    nodes = []
    initializers = dict(graph.initializers)
    for name in matrices:
        array = np.ascontiguousarray(initializers.pop(name).array().T)
        initializers[f"{name}_T"] = OnnxTensor(f"{name}_T", array.shape, 1, "raw_data", array.tobytes(), graph.path)
        nodes += [
            OnnxNode("Identity", "", (f"{name}_T",), (f"{name}_1",), {}, ""),
            OnnxNode("Transpose", "", (f"{name}_1",), (f"{name}_2",), {"perm": (1, 0)}, ""),
            OnnxNode("Cast", "", (f"{name}_2",), (name,), {"to": 1}, ""),
        ]
    return dataclasses.replace(graph, nodes=(*nodes, *graph.nodes), initializers=initializers)


def as_gemm(graph: OnnxGraph) -> OnnxGraph:
    """MatMul and the Add after it in one Gemm."""
    users = {name: node for node in graph.nodes for name in node.inputs}
    nodes, gone = [], set()
    for node in graph.nodes:
        total = users.get(node.outputs[0]) if node.outputs else None
        if node.op_type == "MatMul" and node.inputs[1] in graph.initializers and total and total.op_type == "Add":
            (bias,) = (name for name in total.inputs if name != node.outputs[0])
            if bias in graph.initializers:
                gone.add(total.outputs[0])
                node = OnnxNode("Gemm", node.name, (*node.inputs, bias), total.outputs, {}, "")
        if node.op_type == "Gemm" or not node.outputs or node.outputs[0] not in gone:
            nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


def quantized_convolutions(graph: OnnxGraph) -> OnnxGraph:
    """Every convolution as onnxruntime's quantize_dynamic writes it by default: ConvInteger, scales, then the bias."""
    nodes, initializers = [], dict(graph.initializers)

    def store(name: str, array: np.ndarray) -> str:
        data_type = {"float32": 1, "int8": 3, "int64": 7}[array.dtype.name]
        initializers[name] = OnnxTensor(name, array.shape, data_type, "raw_data", array.tobytes(), graph.path)
        return name

    for node in graph.nodes:
        if node.op_type != "Conv" or node.inputs[1] not in graph.initializers:
            nodes.append(node)
            continue
        (x, weight, *bias), (out,) = node.inputs, node.outputs
        integers, scale = quantized(initializers.pop(weight).array())
        store(f"{weight}_quantized", integers)
        store(f"{weight}_scale", scale)
        store(f"{weight}_zero_point", np.zeros((), np.int8))
        names = [f"{out}_{part}" for part in ("quantized", "x_scale", "x_zero_point", "integer", "cast", "scales")]
        product = f"{out}_product" if bias else out
        nodes += [
            OnnxNode("DynamicQuantizeLinear", "", (x,), tuple(names[:3]), {}, ""),
            OnnxNode("Mul", "", (names[1], f"{weight}_scale"), (names[5],), {}, ""),
            OnnxNode(
                "ConvInteger", "", (names[0], f"{weight}_quantized", names[2], f"{weight}_zero_point"), (names[3],),
                node.attributes, "",
            ),
            OnnxNode("Cast", "", (names[3],), (names[4],), {"to": 1}, ""),
            OnnxNode("Mul", "", (names[4], names[5]), (product,), {}, ""),
        ]  # fmt: skip
        if bias:
            shape = store(f"{out}_shape", np.array([1, -1] + [1] * (integers.ndim - 2), np.int64))
            nodes += [
                OnnxNode("Reshape", "", (bias[0], shape), (f"{out}_bias",), {}, ""),
                OnnxNode("Add", "", (product, f"{out}_bias"), (out,), {}, ""),
            ]
    return dataclasses.replace(graph, nodes=tuple(nodes), initializers=initializers)


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 around 0 and the step, as the quantizer chooses them."""
    scale = np.float32(np.abs(weight).max() / 127)
    return np.clip(np.rint(weight / scale), -128, 127).astype(np.int8), np.asarray(scale)


@pytest.mark.parametrize("changes", [(), (renamed,), (turned_sums, shuffled)], ids=["as is", "renamed", "turned"])
@pytest.mark.parametrize("name", ["zipformer-tiny", "zipformer-streaming-tiny", "zipformer-ctc-tiny"])
def test_convolutions_quantized_by_default(
    shared: Path, name: str, changes: tuple[Change, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ConvInteger beside MatMulInteger: each weight is (integer − zero point) · scale, bit for bit."""
    before = read_models(golden(shared, name, ".int8")).tensors
    expected = dict(before)
    convolutions = [key for key, tensor in expected.items() if key.endswith("weight") and tensor.ndim > 2]
    assert len(convolutions) > 10
    for key in convolutions:
        integers, scale = quantized(expected[key])
        expected[key] = integers.astype(np.float32) * scale

    def change(path: Path) -> OnnxGraph:
        graph = quantized_convolutions(read_onnx(path))
        for each in changes:
            graph = each(graph)
        return graph

    monkeypatch.setattr(exports, "read_onnx", change)
    made = read_models(golden(shared, name, ".int8"))
    assert_same(made.tensors, expected)
    assert "int8 weights are dequantized" in made.notes[0]
    if not changes:
        kept = read_models(golden(shared, name, ".int8"), integers=True).quantized
        for key in convolutions:
            np.testing.assert_array_equal(kept[key].integers, quantized(before[key])[0], err_msg=key)


def test_weights_dequantized_in_the_graph(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float model whose matrices are integers and a DequantizeLinear each, a step for each output."""
    expected = dict(read_models(golden(shared, "zipformer-tiny")).tensors)
    stored: set[str] = set()

    def change(graph: OnnxGraph) -> OnnxGraph:
        nodes, initializers = [], dict(graph.initializers)
        for name in {n.inputs[1] for n in graph.nodes if n.op_type == "MatMul"} & graph.initializers.keys():
            weight = initializers.pop(name).array()
            steps = (np.abs(weight).max(0) / 127).astype(np.float32)
            integers = np.rint(weight / steps).astype(np.int8)
            for suffix, kind, array in (("_quantized", 3, integers), ("_scale", 1, steps)):
                full = f"{name}{suffix}"
                initializers[full] = OnnxTensor(full, array.shape, kind, "raw_data", array.tobytes(), graph.path)
            nodes.append(
                OnnxNode("DequantizeLinear", "", (f"{name}_quantized", f"{name}_scale"), (name,), {"axis": 1}, "")
            )
            stored.add(name)
        return dataclasses.replace(graph, nodes=(*nodes, *graph.nodes), initializers=initializers)

    monkeypatch.setattr(exports, "read_onnx", lambda path: change(read_onnx(path)))
    made = read_models(golden(shared, "zipformer-tiny"), integers=True)
    assert len(stored) > 20 and len(made.quantized) >= len(stored)
    assert "integers, scales and zero points are those of the file" in made.notes[0]
    assert made.tensors.keys() == expected.keys()
    for key, tensor in made.tensors.items():
        limit = np.abs(expected[key]).max() / 254 + 1e-7 if key in made.quantized else 0
        np.testing.assert_allclose(tensor, expected[key], rtol=0, atol=limit, err_msg=key)
        if key in made.quantized:
            np.testing.assert_array_equal(made.quantized[key].dequantize(), tensor, err_msg=key)


CHANGES: tuple[Change, ...] = (renamed, shuffled, turned_sums, as_constant_nodes, stored_transposed, as_gemm)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["zipformer-tiny", "zipformer-streaming-tiny", "zipformer-ctc-tiny"])
def test_rewritten_graphs_give_the_same_tensors(
    shared: Path, name: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_models(golden(shared, name))
    monkeypatch.setattr(exports, "read_onnx", lambda path: change(read_onnx(path)))
    made = read_models(golden(shared, name))
    assert_same(made.tensors, expected.tensors)
    assert made.settings == expected.settings


@pytest.mark.parametrize("change", [renamed, shuffled, turned_sums], ids=lambda change: change.__name__)
def test_rewritten_int8_graphs_give_the_same_tensors(
    shared: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_models(published_files(shared)).tensors
    monkeypatch.setattr(exports, "read_onnx", lambda path: change(read_onnx(path)))
    assert_same(read_models(published_files(shared)).tensors, expected)


@pytest.mark.parametrize("name", ["zipformer-tiny", "zipformer-streaming-tiny"])
def test_equal_tensors_stored_once(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter keeps one of several equal tensors, under the name of its first user."""

    def share(graph: OnnxGraph) -> OnnxGraph:
        first: dict[tuple[int, ...], str] = {}
        kept = {name: first.setdefault(tensor.shape, name) for name, tensor in graph.initializers.items()}
        nodes = (dataclasses.replace(n, inputs=tuple(kept.get(i, i) for i in n.inputs)) for n in graph.nodes)
        return dataclasses.replace(
            graph,
            nodes=tuple(nodes),
            initializers={key: tensor for key, tensor in graph.initializers.items() if key in first.values()},
        )

    expected = read_models(golden(shared, name)).tensors
    monkeypatch.setattr(exports, "read_onnx", lambda path: share(read_onnx(path)))
    made = read_models(golden(shared, name)).tensors
    assert made.keys() == expected.keys()
    (encoder,) = (file for file in golden(shared, name) if file.name.startswith("encoder"))
    first: dict[tuple[int, ...], str] = {}
    for stored, tensor in read_onnx(encoder).initializers.items():
        first.setdefault(tensor.shape, stored)
    compared = 0
    for key, tensor in made.items():
        if key.startswith("encoder") and first.get(tensor.shape, "").startswith("encoder."):
            np.testing.assert_array_equal(tensor, expected[first[tensor.shape]], err_msg=key)
            compared += key != first[tensor.shape]
    assert compared > 50


def test_only_checkpoint_errors_come_out_of_random_graphs(shared: Path) -> None:
    names = ("zipformer-tiny", "zipformer-ctc-tiny", "zipformer-streaming-tiny")
    files = [file for name in names for suffix in ("", ".int8") for file in golden(shared, name, suffix)]
    graphs = [read_onnx(file) for file in files]
    generator = random.Random(20240601)
    refused = 0
    for number in range(150):
        graph = mangled(generator.choice(graphs), generator)
        try:
            exports._READERS[exports._role(graph)](graph, number % 2 == 1).named_tensors()
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def mangled(graph: OnnxGraph, generator: random.Random) -> OnnxGraph:
    """Some operations, inputs, attributes and stored tensors put in the place of others."""
    nodes, initializers = list(graph.nodes), dict(graph.initializers)
    operations = sorted(
        {node.op_type for node in nodes} | {"Gemm", "Gather", "DequantizeLinear", "MatMulInteger", "Softmax"}
    )
    values = [name for node in nodes for name in (*node.inputs, *node.outputs)]
    stored = sorted(initializers)
    for _ in range(generator.choice([1, 1, 2, 5, 30])):
        place = generator.randrange(len(nodes))
        node = nodes[place]
        inputs = list(node.inputs)
        match generator.randrange(6):
            case 0 | 1:
                node = dataclasses.replace(node, op_type=generator.choice(operations))
            case 2 if inputs:
                inputs[generator.randrange(len(inputs))] = generator.choice(values)
                node = dataclasses.replace(node, inputs=tuple(inputs))
            case 3:
                node = dataclasses.replace(node, inputs=tuple(inputs[: generator.randrange(len(inputs) + 1)]))
            case 4 if node.attributes:
                wrong = generator.choice([0, -1, 5, 2**40, b"x", 1.5, (), (0, 9), (1, 0)])
                node = dataclasses.replace(node, attributes={**node.attributes, min(node.attributes): wrong})
            case 5:
                name, other = generator.choice(stored), generator.choice(stored)
                initializers[name] = dataclasses.replace(initializers[other], name=name)
        nodes[place] = node
    return dataclasses.replace(graph, nodes=tuple(nodes), initializers=initializers)
