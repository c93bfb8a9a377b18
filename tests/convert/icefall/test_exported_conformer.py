"""icefall's Conformer from ONNX: the folded tensors of the .pt, whatever was renamed, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from icefall_exports import trained
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxTensor, read_onnx
from jaxasr.convert.icefall import exports
from jaxasr.convert.icefall.conformer import fold_scales
from jaxasr.convert.icefall.exported_conformer import is_position_table
from jaxasr.convert.icefall.exports import read_models
from jaxasr.errors import CheckpointError

OFFLINE, STREAMING = "icefall-conformer-tiny", "icefall-conformer-streaming-tiny"
Change = Callable[[OnnxGraph], OnnxGraph]


def files(shared: Path, name: str, suffix: str = "") -> list[Path]:
    return sorted((shared / "golden" / name).glob(f"*-epoch-99-avg-1{suffix}.onnx"))


@pytest.mark.parametrize("name", [OFFLINE, STREAMING])
def test_the_folded_tensors_of_the_pt(shared: Path, name: str) -> None:
    made = read_models(files(shared, name))
    expected = fold_scales(trained(shared, name))
    assert expected.keys() - made.tensors.keys() == {key for key in expected if key.startswith("simple_")}
    assert len(made.tensors) == 83 and made.notes == []
    for key, tensor in made.tensors.items():
        # The exporter multiplied by the exponentials in float32, as we do; logarithms of eps are right to their end.
        np.testing.assert_allclose(tensor, expected[key], rtol=1e-6, atol=3e-7, err_msg=key)


@pytest.mark.parametrize("name", [OFFLINE, STREAMING])
def test_the_arguments_of_the_recipe(shared: Path, name: str) -> None:
    made = read_models(files(shared, name)).settings
    recipe = yaml.safe_load((shared / "golden" / name / "config.yaml").read_text("utf-8"))
    stated = {**recipe, **recipe["arguments"], "use_transducer": True, "use_ctc": False}
    if name == STREAMING:  # constants of the exporter
        stated |= {"chunk_size": (16,), "left_context_frames": (64,), "right_context": 0}
    assert made == {key: stated[key] for key in made}
    assert {"nhead", "dim_feedforward", "causal_convolution", "cnn_module_kernel"} <= made.keys()


@pytest.mark.parametrize("name", [OFFLINE, STREAMING])
def test_int8_weights_are_within_half_a_step(shared: Path, name: str) -> None:
    made, exact = read_models(files(shared, name, ".int8")), read_models(files(shared, name))
    assert made.settings == exact.settings and made.tensors.keys() == exact.tensors.keys()
    (note,) = made.notes
    assert "int8 weights are dequantized to float32" in note
    rounded = {key for key, tensor in made.tensors.items() if not np.array_equal(tensor, exact.tensors[key])}
    # The attention's projections, whose scales are applied in the graph, stay as they are; so does the convolution.
    assert not [key for key in rounded if "in_proj" in key or "out_proj" in key or "conv" in key]
    assert len(rounded) == 2 + 3 * 5 + 3 and {"decoder.embedding.weight", "joiner.output_linear.weight"} <= rounded
    for key in rounded:
        weight = exact.tensors[key]
        step = np.abs(weight).max() / 127
        if key == "decoder.embedding.weight":  # uint8 over a range that holds 0; its zero point is rounded too
            step = 2 * (max(weight.max(), 0) - min(weight.min(), 0)) / 255
        assert np.abs(made.tensors[key] - weight).max() <= 0.5001 * step, key


def test_int8_weights_are_those_inside_the_graph(shared: Path) -> None:
    tensors = read_models(files(shared, OFFLINE, ".int8")).tensors
    layer = "encoder.encoder.layers.0"
    names = {
        "embed_out": "encoder.encoder_embed.out",
        "layer0.feed_forward_macaron.0": f"{layer}.feed_forward_macaron.0",
        "layer0.linear_pos": f"{layer}.self_attn.linear_pos",
        "layer0.feed_forward.4": f"{layer}.feed_forward.4",
        "encoder_proj": "joiner.encoder_proj",
    }
    with np.load(shared / "golden" / OFFLINE / "int8_trace.npz") as stored:
        for product, name in names.items():
            integers, zero = stored[f"{product}/weight"], stored[f"{product}/weight_zero_point"]
            expected = (integers.astype(np.float32) - zero.astype(np.float32)) * stored[f"{product}/weight_scale"]
            np.testing.assert_array_equal(tensors[f"{name}.weight"], expected.T, err_msg=product)


# What is refused ------------------------------------------------------------------------------------------------------


def refusal(change: Change, monkeypatch: pytest.MonkeyPatch, paths: list[Path]) -> str:
    def altered(path: Path) -> OnnxGraph:
        graph = read_onnx(path)
        return change(graph) if "encoder_out" in graph.outputs else graph

    monkeypatch.setattr(exports, "read_onnx", altered)
    with pytest.raises(CheckpointError) as caught:
        read_models(paths)
    assert "\n" not in str(caught.value) and "encoder-epoch-99-avg-1.onnx" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("encoder_dim", "18", "metadata says encoder_dim 18, its tensors 20"),
        ("num_encoder_layers", "2", "metadata says num_encoder_layers 2"),
        ("left_context", "some", "metadata left_context is 'some', not a number"),
        ("chunk_size", "8", "chunk_size 8 in its metadata does not fit its graph"),
        ("right_context", "2", "T 75 in its metadata does not fit chunks of 16"),
        ("model_type", "lstm", "'lstm', not zipformer2"),
        ("model_type", "zipformer2", "is no icefall Zipformer 2"),
    ],
)
def test_metadata_that_contradicts(
    shared: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, reason: str
) -> None:
    def change(graph: OnnxGraph) -> OnnxGraph:
        return dataclasses.replace(graph, metadata={**graph.metadata, key: value})

    assert reason in refusal(change, monkeypatch, files(shared, STREAMING))


def replaced(graph: OnnxGraph, name: str, array: np.ndarray) -> OnnxGraph:
    """`graph` with other numbers in an initializer or a constant."""
    kept = graph.initializers | graph.constants
    tensor = OnnxTensor(name, array.shape, kept[name].data_type, "raw_data", array.tobytes(), graph.path)
    fields = {}
    for field in ("initializers", "constants"):
        tensors = dict(getattr(graph, field))
        if name in tensors:
            tensors[name] = tensor
        fields[field] = tensors
    return dataclasses.replace(graph, **fields)


def test_a_bias_of_the_positions(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter adds one of zeros; another number in it would be a parameter that the model has not."""
    name = "encoder.encoder.layers.0.self_attn.linear_pos.bias"
    message = refusal(lambda graph: replaced(graph, name, np.ones(18, np.float32)), monkeypatch, files(shared, OFFLINE))
    assert "self_attn.linear_pos has a bias" in message


def test_a_table_that_holds_no_positions(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: OnnxGraph) -> OnnxGraph:
        kept = graph.initializers | graph.constants
        (table,) = (name for name, tensor in kept.items() if 9999 in tensor.shape)
        return replaced(graph, table, kept[table].array() * np.float32(1.1))

    assert "does not hold relative positions" in refusal(change, monkeypatch, files(shared, OFFLINE))


def test_what_is_left_over_is_named(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: OnnxGraph) -> OnnxGraph:
        extra = OnnxTensor("encoder.encoder.layers.0.extra", (2, 3), 1, "raw_data", bytes(24), graph.path)
        return dataclasses.replace(graph, initializers={**graph.initializers, extra.name: extra})

    message = refusal(change, monkeypatch, files(shared, OFFLINE))
    assert "encoder.encoder.layers.0.extra [2, 3] is left over" in message


def test_swapped_tensors_are_noticed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (f"encoder.encoder.layers.{layer}.conv_module.depthwise_conv.weight" for layer in (0, 1))

    def change(graph: OnnxGraph) -> OnnxGraph:
        names = {first: second, second: first}
        nodes = (dataclasses.replace(n, inputs=tuple(names.get(i, i) for i in n.inputs)) for n in graph.nodes)
        return dataclasses.replace(graph, nodes=tuple(nodes))

    assert f"{first} stands where {second} belongs" in refusal(change, monkeypatch, files(shared, OFFLINE))


def test_position_tables() -> None:
    offsets = 20.0 - np.arange(41)[:, None]
    angles = offsets * 10000.0 ** (-np.arange(0, 6, 2) / 6)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(1, 41, 6).astype(np.float32)
    assert is_position_table(table) and is_position_table(table[0])
    assert is_position_table(table.astype(np.float16))
    for other in (table[:, ::-1], table[:, :40], table[..., :5], table * 1.01, table.astype(np.int32), table[0, 0, 0]):
        assert not is_position_table(np.asarray(other))
