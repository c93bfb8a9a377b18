"""int8 files imported as the integers that they are: what is stored, by which rules, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icefall_exports import PUBLISHED, golden
from jaxasr import store
from jaxasr.convert import convert_checkpoint
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxTensor, read_onnx
from jaxasr.convert.icefall import exports
from jaxasr.convert.icefall.exports import read_models
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.quant.array import QuantizedArray

CONFORMERS = ("icefall-conformer-tiny", "icefall-conformer-streaming-tiny")


def leaves(directory: Path) -> dict[str, Any]:
    return store.flatten(store.open_model(directory).params())


def files(shared: Path, name: str) -> list[Path]:
    if name in CONFORMERS:
        return sorted((shared / "golden" / name).glob("*.int8.onnx"))
    return golden(shared, name, ".int8")


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        # The embedding is unsigned, with a zero point; pointwise convolutions of the front end are floats.
        ("zipformer-tiny", ["encoder.embed.out.kernel", "encoder.stacks.*", "transducer.*", "transducer.*"]),
        ("zipformer-ctc-tiny", ["encoder.embed.out.kernel", "encoder.stacks.*", "ctc.output.kernel"]),
        ("icefall-conformer-streaming-tiny", None),  # the attention's matrices are floats: scaled in the graph
    ],
)
def test_integers_stand_for_what_a_float_import_holds(
    shared: Path, tmp_path: Path, name: str, patterns: list[str] | None
) -> None:
    source = files(shared, name)[-1 if name == "zipformer-ctc-tiny" else 1]
    tokens = shared / "golden" / name / "tokens.txt"
    convert_checkpoint(source, tmp_path / "floats", tokens=tokens)
    card = convert_checkpoint(source, tmp_path / "integers", tokens=tokens, precision="int8", floats="float32")
    assert "integers, scales and zero points are those of the file" in card.summary[0]
    expected, made = leaves(tmp_path / "floats"), leaves(tmp_path / "integers")
    assert made.keys() == expected.keys()
    integers = {path for path, leaf in made.items() if isinstance(leaf, QuantizedArray)}
    for path, leaf in made.items():
        floats = np.asarray(leaf.dequantize()) if path in integers else leaf
        np.testing.assert_array_equal(floats, expected[path], err_msg=path)
    rules = store.load_config(tmp_path / "integers").quantization
    assert rules is not None and rules.floats == "float32" and len(rules.rules) < 12
    stored = [tensor for file in files(shared, name) for tensor in read_onnx(file).initializers.values()]
    assert len(integers) == sum(tensor.data_type in (2, 3) and tensor.size > 1 for tensor in stored)
    if patterns is not None:
        assert sorted(rule.path for rule in rules.rules) == sorted(patterns)
        embedding = [rule for rule in rules.rules if rule.layer == "embedding"]
        assert all(not rule.symmetric and rule.activations == "float" for rule in embedding)


def test_the_published_model_keeps_its_tables_and_its_size(shared: Path, tmp_path: Path) -> None:
    source = shared / "published" / PUBLISHED
    convert_checkpoint(source, tmp_path / "out", precision="int8")
    config = store.load_config(tmp_path / "out")
    assert config.encoder.stored_positions  # type: ignore[attr-defined]
    made = leaves(tmp_path / "out")
    (encoder,) = source.glob("encoder*.onnx")
    initializers = read_onnx(encoder).initializers
    table = initializers["/Transpose_5_output_0_quantized"].array()  # (heads, 1, 4, offsets) of the first stack
    stored = made["encoder.stacks.0.layers.0.attention_weights.stored.embedding"]
    np.testing.assert_array_equal(stored.values(), table.transpose(3, 1, 0, 2).reshape(table.shape[3], -1))
    assert stored.scale.item() == initializers["/Transpose_5_output_0_scale"].array().item()
    first = made["encoder.embed.out.kernel"]
    weight = initializers["onnx::MatMul_4855_quantized"].array()  # channels * bins in, where ours has bins * channels
    by_channel = weight.reshape(128, 19, 128).transpose(1, 0, 2).reshape(weight.shape)
    np.testing.assert_array_equal(first.values(), by_channel)
    assert sum(isinstance(leaf, QuantizedArray) for leaf in made.values()) == 104 + 6 + 1  # and the joiner's
    floats = {path: str(leaf.dtype) for path, leaf in made.items() if not isinstance(leaf, QuantizedArray)}
    assert {dtype for path, dtype in floats.items() if path.startswith("encoder.")} == {"float32"}
    assert {dtype for path, dtype in floats.items() if not path.startswith("encoder.")} == {"float16"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    sizes = [np.dtype(entry["dtype"]).itemsize * np.prod(entry["shape"]) for entry in manifest["arrays"].values()]
    assert sum(sizes) < 4.6e6
    with pytest.raises(ConfigError, match="this export holds weights for chunk_seconds 0.32 only"):
        convert_checkpoint(source, tmp_path / "other", precision="int8", chunk_seconds=0.64)


def test_floats_belong_to_integers(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="floats is for precision int8"):
        convert_checkpoint(shared / "golden" / "zipformer-tiny", tmp_path / "out", floats="float16")
    with pytest.raises(ConfigError, match="floats 'int4' is none of"):
        convert_checkpoint(
            shared / "golden" / "zipformer-tiny",
            tmp_path / "out",
            precision="int8",
            floats="int4",  # type: ignore[arg-type]
        )


def changed(path: Path, suffix: str, array: np.ndarray | None) -> OnnxGraph:
    """The graph with its first initializer of this ending replaced, or its product with the scales left out."""
    graph = read_onnx(path)
    if array is None:
        cast = next(node for node in graph.nodes if node.op_type == "Cast")
        scaled = next(node for node in graph.nodes if node.op_type == "Mul" and cast.outputs[0] in node.inputs)
        unscaled = dataclasses.replace(scaled, op_type="Identity", inputs=(cast.outputs[0],))
        return dataclasses.replace(graph, nodes=tuple(unscaled if node is scaled else node for node in graph.nodes))
    name = next(name for name in graph.initializers if name.endswith(suffix))
    data_type = {"float32": 1, "uint8": 2, "int8": 3}[array.dtype.name]
    tensor = OnnxTensor(name, array.shape, data_type, "raw_data", array.tobytes(), path)
    return dataclasses.replace(graph, initializers={**graph.initializers, name: tensor})


@pytest.mark.parametrize(
    ("suffix", "array", "message"),
    [
        ("weight_scale", np.zeros((), np.float32), "its scale is not a positive number"),
        ("weight_scale", np.asarray(np.float32("nan")), "its scale is not a positive number"),
        ("weight_scale", np.ones(7, np.float32), r"its scale of shape \(7,\) does not fit"),
        ("weight_zero_point", np.zeros((), np.uint8), "its zero point is uint8, its integers int8"),
        ("", None, "the scale of the integers of joiner.output_linear was not found"),
    ],
    ids=["zero", "NaN", "shape", "type", "missing"],
)
def test_hostile_scales_are_one_line(
    shared: Path, suffix: str, array: np.ndarray | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exports, "read_onnx", lambda path: changed(path, suffix, array) if "joiner" in path.name else read_onnx(path)
    )
    for integers in (False, True):
        with pytest.raises(CheckpointError, match=message) as refused:
            read_models(files(shared, "zipformer-tiny"), integers)
        assert "joiner" in str(refused.value) and "\n" not in str(refused.value)
