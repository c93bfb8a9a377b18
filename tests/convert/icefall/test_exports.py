"""icefall's ONNX exports: the same tensors as the .pt, whatever the exporter did to names, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from icefall_exports import GOLDENS, PUBLISHED, assert_same, golden, published_files, trained
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxTensor, read_onnx
from jaxasr.convert.icefall import exports
from jaxasr.convert.icefall.exports import read_models
from jaxasr.convert.icefall.folded import relative_positions
from jaxasr.convert.mapping import Checkpoint
from jaxasr.errors import CheckpointError

# Of a .pt, what no export holds: training-only projections and scales that no forward pass uses.
ABSENT = ("simple_am_proj", "simple_lm_proj")
Change = Callable[[OnnxGraph], OnnxGraph]


# Float exports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS)
def test_the_tensors_of_the_pt_bit_for_bit(shared: Path, name: str) -> None:
    made = read_models(golden(shared, name))
    expected = trained(shared, name)
    absent = expected.keys() - made.tensors.keys()
    if name == "zipformer-ctc-tiny":
        absent = {key for key in absent if not key.startswith(("decoder.", "joiner."))}
    assert all(key.startswith(ABSENT) or key.rsplit(".", 2)[-2].isdigit() for key in absent), absent
    assert_same(made.tensors, {key: expected[key] for key in made.tensors})
    assert made.notes == [] and sorted(made.files) == golden(shared, name)


@pytest.mark.parametrize("name", GOLDENS)
def test_the_arguments_of_the_recipe(shared: Path, name: str) -> None:
    made = read_models(golden(shared, name)).settings
    recipe = yaml.safe_load((shared / "golden" / name / "config.yaml").read_text("utf-8"))
    stated = {**recipe["arguments"], "vocab_size": recipe["vocab_size"], "context_size": recipe["context_size"]}
    if not stated["causal"]:
        stated = {key: value for key, value in stated.items() if key not in ("chunk_size", "left_context_frames")}
    else:
        stated.update(chunk_size="16", left_context_frames="64")  # those of the export
    if name == "zipformer-ctc-tiny":
        stated = {
            key: value for key, value in stated.items() if key not in ("decoder_dim", "joiner_dim", "context_size")
        }
        stated["use_transducer"] = False
    stacks = len(made["num_encoder_layers"])
    for key in made.keys() - stated.keys():
        pytest.fail(f"{key} is none of the recipe's arguments")
    for key, value in made.items():
        expected = stated[key]
        if isinstance(value, tuple):
            expected = tuple(int(number) for number in str(expected).split(","))
            expected = expected * stacks if len(expected) == 1 and len(value) == stacks else expected
        assert value == expected, key


def test_matrices_are_views_of_the_mapped_file(shared: Path) -> None:
    tensors = read_models(golden(shared, "zipformer-tiny")).tensors
    copies = [name for name, tensor in tensors.items() if tensor.flags.owndata]
    assert all(name.endswith("downsample.bias") or "downsample_output" in name for name in copies), copies


# int8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDENS)
def test_int8_weights_are_within_half_a_step(shared: Path, name: str) -> None:
    made, exact = read_models(golden(shared, name, ".int8")), read_models(golden(shared, name))
    assert made.settings == exact.settings and made.tensors.keys() == exact.tensors.keys()
    (note,) = made.notes
    assert note.count("int8 weights are dequantized to float32") == 1 and "\n" not in note
    rounded = 0
    for key, tensor in made.tensors.items():
        weight = exact.tensors[key]
        step = np.abs(weight).max() / 127
        if key == "decoder.embedding.weight":  # uint8 over a range that holds 0
            step = (max(weight.max(), 0) - min(weight.min(), 0)) / 255
            assert np.abs(tensor - weight).max() <= step  # its zero point is rounded too
        else:
            assert np.abs(tensor - weight).max() <= 0.5001 * step, key
        if not np.array_equal(tensor, weight):
            rounded += 1
            assert tensor.ndim == 2, key
    assert rounded > 50


def test_float16_weights_are_widened(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(graph: OnnxGraph) -> OnnxGraph:
        def half(tensor: OnnxTensor) -> OnnxTensor:
            if tensor.data_type != 1:
                return tensor
            return dataclasses.replace(tensor, data_type=10, data=tensor.array().astype("<f2").tobytes())

        initializers = {name: half(tensor) for name, tensor in graph.initializers.items()}
        constants = {name: half(tensor) for name, tensor in graph.constants.items()}
        return dataclasses.replace(graph, initializers=initializers, constants=constants)

    (file,) = golden(shared, "zipformer-ctc-tiny")
    exact = read_models([file])
    monkeypatch.setattr(exports, "read_onnx", lambda path: halved(read_onnx(path)))
    made = read_models([file])
    assert made.settings == exact.settings and made.tensors.keys() == exact.tensors.keys()
    assert made.notes == ["model.onnx: float16 weights are widened to float32"]
    for key, tensor in made.tensors.items():
        assert tensor.dtype == np.float32
        # The softmax was rounded before its logarithm was taken.
        atol = 3e-3 if "downsample" in key else 0.0
        np.testing.assert_allclose(tensor, exact.tensors[key].astype(np.float16), rtol=1e-6, atol=atol, err_msg=key)


# The published model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path) -> Checkpoint:
    return read_models(published_files(shared))


def test_published_tensors_are_those_of_its_list(shared: Path, published: Checkpoint) -> None:
    folder = shared / "published" / PUBLISHED
    graph = read_onnx(published_files(shared)[0])
    with open(folder / "encoder-initializers.tsv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if not row["icefall_parameter"].startswith("(")]
    names = {re_joined(row["icefall_parameter"]) for row in rows}
    encoder = {key for key in published.tensors if not key.startswith(("decoder.", "joiner.decoder", "joiner.output"))}
    assert names == encoder
    for row in rows:
        stored = graph.initializers[row["initializer"]].array()
        tensor = published.tensors[re_joined(row["icefall_parameter"])]
        note = row["note"]
        if note.startswith("int8, stored transposed"):
            scale = graph.initializers[row["initializer"].replace("_quantized", "_scale")].array()
            np.testing.assert_array_equal(tensor, (stored.astype(np.float32) * scale).T, err_msg=row["initializer"])
        elif note.startswith("folded: exp(log_scale)"):
            np.testing.assert_allclose(np.exp(tensor), stored, rtol=1e-6)
        elif note.startswith("folded: softmax"):
            np.testing.assert_allclose(np.exp(tensor), stored.reshape(-1), rtol=1e-5)
        elif note.startswith("folded: 1 + edge scale"):
            frames = stored.shape[1]
            np.testing.assert_allclose(1 + tensor[0, :, :frames] + tensor[1, :, -frames:], stored, atol=1e-6)
        elif not note.startswith("folded: int8 table"):
            np.testing.assert_array_equal(tensor, stored, err_msg=row["initializer"])


def re_joined(name: str) -> str:
    return f"joiner.{name}" if name.startswith("encoder_proj") else name


def test_published_positions_give_its_tables(shared: Path, published: Checkpoint) -> None:
    graph = read_onnx(published_files(shared)[0])
    tables = [name for name, tensor in graph.initializers.items() if tensor.data_type == 3 and len(tensor.shape) == 4]
    weights = {key: value for key, value in published.tensors.items() if "linear_pos" in key}
    assert len(tables) == len(weights) == 6
    folder = shared / "published" / PUBLISHED
    with open(folder / "encoder-initializers.tsv", encoding="utf-8", newline="") as file:
        owners = {row["initializer"]: row["icefall_parameter"] for row in csv.DictReader(file, delimiter="\t")}
    for table in tables:
        stored = graph.initializers[table].array()
        step = float(graph.initializers[table.replace("_quantized", "_scale")].array())
        stack = int(owners[table].split(".")[2])
        chunk = 16 // (1, 2, 4, 8, 4, 2)[stack]
        heads, _, width, count = stored.shape
        offsets = np.arange(chunk - count, chunk)
        made = relative_positions(offsets, 48) @ weights[owners[table]].T.astype(np.float64)
        expected = stored.astype(np.float64).transpose(3, 1, 0, 2).reshape(count, heads * width)
        assert np.abs(made / step - expected).max() <= 0.715  # 0.71 as its README measured, and float32


def test_published_arguments_and_notes(published: Checkpoint) -> None:
    assert published.settings == {
        "use_transducer": True,
        "use_ctc": False,
        "num_encoder_layers": (1,) * 6,
        "downsampling_factor": (1, 2, 4, 8, 4, 2),
        "encoder_dim": (128,) * 6,
        "feedforward_dim": (192,) * 6,
        "num_heads": (4, 4, 4, 8, 4, 4),
        "query_head_dim": (32,) * 6,
        "value_head_dim": (12,) * 6,
        "pos_head_dim": (4,) * 6,
        "pos_dim": 48,
        "cnn_module_kernel": (31, 31, 15, 15, 15, 31),
        "causal": True,
        "chunk_size": (16,),
        "left_context_frames": (64,),
        "fixed_chunk": True,
        "vocab_size": 500,
        "context_size": 2,
        "decoder_dim": 320,
        "joiner_dim": 320,
    }
    dequantized, folded = published.notes
    assert "int8 weights are dequantized" in dequantized and "chunks of 16 frames with 64" in folded


def test_published_repaired_and_int8_joiner(shared: Path, published: Checkpoint) -> None:
    encoder, decoder, joiner = published_files(shared)
    repaired = encoder.parent / "derived/encoder-runnable.int8.onnx"
    again = read_models([repaired, decoder, joiner.with_name(joiner.name.replace(".onnx", ".int8.onnx"))])
    step = np.abs(published.tensors["joiner.output_linear.weight"]).max() / 127
    for key, tensor in published.tensors.items():
        tolerance = 0.5001 * step if key == "joiner.output_linear.weight" else 0
        np.testing.assert_allclose(again.tensors[key], tensor, rtol=0, atol=tolerance, err_msg=key)


# What is refused ----------------------------------------------------------------------------------------------------


def refusal(files: list[Path]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_models(files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_incomplete_and_doubled_trios(shared: Path) -> None:
    files = golden(shared, "zipformer-tiny")
    for missing in files:
        role = missing.name.split("-")[0]
        assert f"needs its {role} too" in refusal([file for file in files if file != missing])
    assert "second encoder beside" in refusal([*files, golden(shared, "zipformer-tiny", ".int8")[1]])
    assert "encoder and decoder and joiner" in refusal([])


def test_trios_of_two_models(shared: Path) -> None:
    (decoder, encoder, joiner), (_, other, other_joiner) = (
        golden(shared, n) for n in ("zipformer-tiny", "zipformer-ja-tiny")
    )
    assert "gives 28 numbers" in refusal([other, decoder, joiner])
    assert "vocab_size is 51, but 48" in refusal([encoder, decoder, other_joiner])
    ctc = golden(shared, "zipformer-ctc-tiny")[0]
    assert "they are two models" in refusal([encoder, decoder, joiner, ctc])


def test_other_architectures(shared: Path) -> None:
    folder = shared / "golden"
    assert "'paraformer', not zipformer2 (Zipformer version 2) or conformer" in refusal(
        [folder / "paraformer-tiny/model.onnx"]
    )
    for file in (shared / "published").glob("[fn]*/*.onnx"):
        assert str(file) in refusal([file])


def edited(change: Change, monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> str:
    def read(path: Path) -> OnnxGraph:
        graph = read_onnx(path)
        return change(graph) if "encoder_out" in graph.outputs or "log_probs" in graph.outputs else graph

    monkeypatch.setattr(exports, "read_onnx", read)
    return refusal(files)


def test_metadata_that_contradicts(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = golden(shared, "zipformer-streaming-tiny")
    for key, value, reason in (
        ("num_heads", "4,4,4,4", "metadata says num_heads"),
        ("encoder_dims", "16,28,40", "metadata says encoder_dims"),
        ("left_context_len", "64,32,16,16", "left_context_len"),
        ("left_context_len", "64,32", "left_context_len"),
        ("decode_chunk_len", "36", "decode_chunk_len"),
        ("decode_chunk_len", "a lot", "not a list of numbers"),
        ("feature", "whisper", "'whisper' features"),
        ("model_type", "zipformer", "'zipformer', not zipformer2"),
    ):
        message = edited(
            lambda graph, key=key, value=value: dataclasses.replace(graph, metadata={**graph.metadata, key: value}),
            monkeypatch,
            files,
        )
        assert reason in message and files[1].name in message


def test_what_is_left_over_or_lacking_is_named(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = golden(shared, "zipformer-ctc-tiny")
    extra = OnnxTensor("encoder.encoders.0.layers.0.extra", (2, 3), 1, "raw_data", bytes(24), file)

    def with_extra(graph: OnnxGraph) -> OnnxGraph:
        more = {extra.name: extra, "lost": dataclasses.replace(extra, name="lost")}
        return dataclasses.replace(graph, initializers={**graph.initializers, **more})

    message = edited(with_extra, monkeypatch, [file])
    assert "encoder.encoders.0.layers.0.extra [2, 3] is left over; lost [2, 3] is left over" in message

    def without_a_convolution(graph: OnnxGraph) -> OnnxGraph:
        gone = [node for node in graph.nodes if node.op_type == "Conv"][5]
        inputs = {gone.outputs[0]: gone.inputs[0]}
        nodes = [node for node in graph.nodes if node is not gone]
        nodes = [dataclasses.replace(n, inputs=tuple(inputs.get(name, name) for name in n.inputs)) for n in nodes]
        return dataclasses.replace(graph, nodes=tuple(nodes))

    message = edited(without_a_convolution, monkeypatch, [file])
    assert "where encoder_embed.convnext.pointwise_conv2 (convolution) belongs" in message


def test_swapped_tensors_are_noticed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = golden(shared, "zipformer-ctc-tiny")
    first, second = (f"encoder.encoders.0.layers.0.conv_module{n}.depthwise_conv.weight" for n in (1, 2))

    def swap(graph: OnnxGraph) -> OnnxGraph:
        names = {first: second, second: first}
        nodes = (dataclasses.replace(n, inputs=tuple(names.get(i, i) for i in n.inputs)) for n in graph.nodes)
        return dataclasses.replace(graph, nodes=tuple(nodes))

    message = edited(swap, monkeypatch, [file])
    assert f"{first} stands where {second} belongs" in message and f"{second} stands where {first} belongs" in message


def test_a_table_that_holds_no_positions(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: OnnxGraph) -> OnnxGraph:
        constants = dict(graph.constants)
        for name, tensor in graph.constants.items():
            if tensor.shape[:1] == (3999,):
                constants[name] = dataclasses.replace(tensor, data=(tensor.array() * 1.1).astype("<f4").tobytes())
        return dataclasses.replace(graph, constants=constants)

    assert "does not hold icefall's relative positions" in edited(
        change, monkeypatch, golden(shared, "zipformer-ctc-tiny")
    )


def test_graphs_rewritten_by_a_runtime(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: OnnxGraph) -> OnnxGraph:
        fused = dataclasses.replace(graph.nodes[-1], domain="com.microsoft", op_type="FusedMatMul")
        return dataclasses.replace(graph, nodes=(*graph.nodes[:-1], fused))

    message = edited(change, monkeypatch, golden(shared, "zipformer-ctc-tiny"))
    assert "com.microsoft.FusedMatMul" in message and "as its publisher exported it" in message
