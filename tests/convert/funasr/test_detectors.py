"""FunASR's detectors: directories, exports of every make whose weights are found in order, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import jaxasr
import onnx_writer as onnx
from conftest import DATA
from jaxasr import store
from jaxasr.convert import describe
from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.convert.funasr.exported import read_detector
from jaxasr.detector_config import DetectorConfig
from jaxasr.errors import CheckpointError, JaxasrError
from jaxasr.longform.configs import DYNAMIC_SCHEDULE, EndpointConfig
from jaxasr.store import flatten

SOURCE = DATA / "fsmn-vad"
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> Weights:
    found: Any = read_torch(SOURCE / "model.pt", notes=[])
    return dict(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.pt", "config.yaml", "am.mvn"):
        shutil.copyfile(SOURCE / name, tmp_path / name)
    return tmp_path


def change(folder: Path, **options: Any) -> None:
    """Replace options of config.yaml: `section__name=value`, or a whole key."""
    config = yaml.safe_load((SOURCE / "config.yaml").read_text())
    for key, value in options.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def converted(folder: Path) -> tuple[DetectorConfig, dict[str, Any]]:
    jaxasr.convert_checkpoint(folder, folder / "out")
    opened = store.open_detector(folder / "out")
    return opened.config, flatten(opened.params())


def test_a_directory_is_a_detector(folder: Path, weights: Weights) -> None:
    config, params = converted(folder)
    assert config.segments == EndpointConfig() and config.classifier.nonspeech == (0,)
    np.testing.assert_array_equal(
        params["encoder.layers.1.narrow.kernel"], weights["encoder.fsmn.1.linear.linear.weight"].T
    )
    left = weights["encoder.fsmn.2.fsmn_block.conv_left.weight"]
    np.testing.assert_array_equal(params["encoder.layers.2.memory.conv.kernel"][:, 0].T, left[:, 0, :, 0])
    facts = describe(folder)
    assert (facts["detects"], facts["frame_s"], facts["segments"]) == ("speech", 0.01, "endpoints")
    assert facts["kind"] == "FunASR model directory" and "800 ms" in str(facts["notes"])


def test_names_of_the_first_releases(folder: Path) -> None:
    config = yaml.safe_load((SOURCE / "config.yaml").read_text())
    config["vad_post_conf"] = {**config.pop("model_conf"), "max_end_silence_time": 500, "do_extend": True}
    config |= {"model": "e2evad", "encoder": "fsmn", "frontend": "wav_frontend"}
    (folder / "config.yaml").unlink()
    (folder / "vad.yaml").write_text(yaml.safe_dump(config))
    (folder / "am.mvn").rename(folder / "vad.mvn")
    (folder / "model.pt").rename(folder / "vad.pb")
    found, _ = converted(folder)
    assert isinstance(found.segments, EndpointConfig) and found.segments.silence_ms == 500


def test_the_schedule_of_a_call_may_be_stated(folder: Path) -> None:
    change(folder, model_conf__dynamic_silence=True)
    assert converted(folder)[0].segments == EndpointConfig(schedule=DYNAMIC_SCHEDULE)


def test_memories_of_both_sides_and_strides(folder: Path, weights: Weights, write_torch: Callable[..., Path]) -> None:
    rng = np.random.default_rng(1)
    rights = {f"encoder.fsmn.{n}.fsmn_block.conv_right.weight": rng.normal(size=(16, 1, 3, 1)) for n in range(3)}
    write_torch({**weights, **{name: each.astype(np.float32) for name, each in rights.items()}})  # into the folder
    change(folder, encoder_conf__rorder=3, encoder_conf__rstride=2, encoder_conf__lstride=2)
    config, params = converted(folder)
    assert (config.encoder.past, config.encoder.future, config.encoder.context) == (38, 6, 3 * 38)  # type: ignore[attr-defined]
    kernel = params["encoder.layers.0.memory.conv.kernel"][:, 0]
    np.testing.assert_array_equal(kernel[:39:2].T, weights["encoder.fsmn.0.fsmn_block.conv_left.weight"][:, 0, :, 0])
    np.testing.assert_allclose(kernel[40::2].T, rights["encoder.fsmn.0.fsmn_block.conv_right.weight"][:, 0, :, 0])
    assert not kernel[1:39:2].any() and not kernel[39::2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_conf__detect_mode": 0}, "detect_mode"),
        ({"model_conf__frame_in_ms": 20}, "frame_in_ms"),
        ({"model_conf__silence_pdf_num": 2}, "silence_pdf_num"),
        ({"model_conf__sil_pdf_ids": [99]}, "nonspeech"),
        ({"model_conf__window_size_ms": "long"}, "window_size_ms"),
        ({"model_conf__surprise": 1}, "surprise"),
        ({"model_conf__do_extend": "yes"}, "do_extend"),
        ({"model_conf": 3}, "model_conf"),
        ({"encoder_conf__lorder": 21}, "encoder_conf"),
        ({"encoder_conf__fsmn_layers": 4}, "fsmn_layers"),
        ({"encoder_conf__lstride": 10**9}, "lstride"),
        ({"encoder_conf__linear_dim": 20}, "shape"),
        ({"encoder": "SANMEncoder"}, "encoder"),
        ({"frontend_conf__lfr_m": 7}, "input_dim"),
        ({"model": "CTTransformer"}, "CTTransformer"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder: Path, options: dict[str, Any], message: str) -> None:
    change(folder, **options)
    with pytest.raises(JaxasrError, match=message) as refused:
        jaxasr.convert_checkpoint(folder, folder / "out")
    assert "\n" not in str(refused.value) and not (folder / "out").exists()


def test_options_of_recognisers_are_refused(folder: Path) -> None:
    with pytest.raises(JaxasrError, match="voice activity detector"):
        jaxasr.convert_checkpoint(folder, folder / "out", chunk_seconds=0.6)


# --- exports ----------------------------------------------------------------------------------------------------------

Layer = tuple[str, np.ndarray, np.ndarray | None]  # what it is called, its matrix (in, out), its bias


def layers(weights: Weights) -> Iterator[Layer]:
    blocks = [f"fsmn.{n}.{part}" for n in range(3) for part in ("linear", "affine")]
    for name in ("in_linear1", "in_linear2", *blocks, "out_linear1", "out_linear2"):
        yield name, weights[f"encoder.{name}.linear.weight"].T, weights.get(f"encoder.{name}.linear.bias")


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 with a scale and a zero point a column."""
    low, high = np.minimum(matrix.min(0), 0), np.maximum(matrix.max(0), 0)
    scale = ((high - low) / 255).astype(np.float32)
    zero = np.round(-low / scale).astype(np.uint8)
    return np.clip(np.round(matrix / scale) + zero, 0, 255).astype(np.uint8), scale, zero


# Products of activations with fixed ranges, of which STEP is the scale.
FIXED, STEP = ("QLinearMatMul", "QGemm"), 2.0**-14


def quantized_vector(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bias as int8, with one scale."""
    scale = np.float32(np.abs(vector).max() / 127)
    return np.round(vector / scale).astype(np.int8), scale, np.int8(0)


def quantized_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A memory's kernel (channels, 1, width, 1) as int8, with a scale a channel."""
    scale = np.abs(kernel).max(axis=(1, 2, 3)) / 127
    return np.round(kernel / scale[:, None, None, None]).astype(np.int8), scale, np.zeros(len(scale), np.int8)


def export(path: Path, weights: Weights, kind: str) -> Path:
    """An export without names: `kind` of product, as exporters, optimisers and quantizers write it."""
    stored: list[bytes] = []
    nodes: list[bytes] = []

    def store_array(array: np.ndarray) -> str:
        stored.append(onnx.tensor(f"onnx::{len(stored)}", np.ascontiguousarray(array)))
        return f"onnx::{len(stored) - 1}"

    def add(op_type: str, inputs: list[str], *attributes: bytes) -> str:
        nodes.append(onnx.node(op_type, inputs, [f"v{len(nodes)}"], *attributes))
        return f"v{len(nodes) - 1}"

    def product(x: str, matrix: np.ndarray, bias: np.ndarray | None) -> str:
        if kind == "Gemm":
            transposed = onnx.field(1, "transB") + onnx.field(3, 1) + onnx.field(20, 2)
            return add("Gemm", [x, store_array(matrix.T), *([] if bias is None else [store_array(bias)])], transposed)
        if kind in ("MatMul", "shared"):
            y = add("MatMul", [x, store_array(matrix)])
        elif kind == "DequantizeLinear":
            y = add("MatMul", [x, add("DequantizeLinear", [store_array(each) for each in quantized(matrix)])])
        elif kind == "DynamicQuantizeMatMul":
            inputs = [x, *(store_array(each) for each in quantized(matrix))]
            return add(kind, [*inputs, *([] if bias is None else [store_array(bias)])])
        elif kind == "QLinearMatMul":
            y = add(kind, [x, *grid, *(store_array(each) for each in quantized(matrix)), *grid])
            vector = [] if bias is None else [store_array(each) for each in quantized_vector(bias)]
            return add("QLinearAdd", [*vector, y, *grid, *grid]) if vector else y
        elif kind == "QGemm":
            integers, scale, zero = quantized(matrix)
            whole = [] if bias is None else [store_array(np.round(bias / (scale * STEP)).astype(np.int32))]
            return add(kind, [x, *grid, *map(store_array, (integers, scale, zero)), *(whole or [""]), *grid])
        else:
            integers, scale, zero = quantized(matrix)
            if kind == "scale first":
                factor = add("Mul", ["step", store_array(scale)])
            y = add("MatMulInteger", [x, store_array(integers), "zero", store_array(zero)])
            if kind == "scale after":
                factor = add("Mul", ["step", store_array(scale)])
            y = add("Mul", [add("Cast", [y], onnx.field(1, "to") + onnx.field(3, 1) + onnx.field(20, 2)), factor])
        return y if bias is None else add("Add", [y, store_array(bias)])

    grid = [store_array(np.float32(STEP)), store_array(np.uint8(128))] if kind in FIXED else []
    x = "speech"
    for name, matrix, bias in layers(weights):
        x = product(x, matrix, bias)
        if name.endswith(".linear"):
            kernel = weights[f"encoder.{name.removesuffix('.linear')}.fsmn_block.conv_left.weight"]
            if kind in FIXED:
                integers = [store_array(each) for each in quantized_kernel(kernel)]
                x = add("QLinearAdd", [add("QLinearConv", [x, *grid, *integers, *grid]), *grid, x, *grid, *grid])
            else:
                x = add("Add", [add("Conv", [x, store_array(kernel)]), x])
        elif bias is not None and name not in ("in_linear1", "out_linear1", "out_linear2"):
            x = add("Relu", [x])
    nodes.append(onnx.node("Softmax", [x], ["logits"]))
    path.write_bytes(onnx.model(onnx.graph(nodes, stored, [onnx.value_info("speech", 1, "T", 400)])))
    return path


@pytest.mark.parametrize(
    "kind", ["MatMul", "Gemm", "DequantizeLinear", "DynamicQuantizeMatMul", "scale first", "scale after", *FIXED]
)
def test_weights_are_found_in_the_order_of_the_nodes(tmp_path: Path, weights: Weights, kind: str) -> None:
    notes: list[str] = []
    found = read_detector(export(tmp_path / "model.onnx", weights, kind), notes)
    assert found.keys() == weights.keys()
    assert bool(notes) == (kind not in ("MatMul", "Gemm"))
    for name, array in weights.items():
        rounded = notes and (array.ndim == 2 or kind in FIXED)
        reach = np.ptp(array, -1, keepdims=True) if array.ndim == 2 else np.abs(array).max()
        step = reach / 254 if rounded else 0.0
        assert found[name].dtype == np.float32 and (np.abs(found[name] - array) <= step).all(), name


def test_an_export_is_found_beside_its_companions(folder: Path, weights: Weights) -> None:
    export(folder / "model_quant.onnx", weights, "scale first")
    export(folder / "model.onnx", weights, "MatMul")
    assert describe(folder)["passed_over"] == [
        "model.onnx + config.yaml + am.mvn",
        "model_quant.onnx + config.yaml + am.mvn",
    ]
    (folder / "model.pt").unlink()
    assert describe(folder)["kind"] == "export of a FunASR detector (.onnx)"
    jaxasr.convert_checkpoint(folder, folder / "out", precision="int8")
    assert any("dequantized" in line for line in (folder / "out/README.md").read_text().splitlines())


def broken(weights: Weights) -> Iterator[tuple[str, bytes]]:
    """Graphs of other models: without a bias, a matrix more, no product at all, integers without a scale."""
    eye = onnx.tensor("w", np.eye(4, dtype=np.float32))
    yield "matrices", onnx.graph([onnx.node("MatMul", ["x", "w"], ["y"])], [eye])
    yield "0 matrices", onnx.graph()
    integers = onnx.tensor("w", np.zeros((4, 4), np.uint8))
    yield "detector", onnx.graph([onnx.node("MatMulInteger", ["x", "w"], ["y"])], [integers])
    kernel = onnx.tensor("w", np.zeros((4, 2, 3, 1), np.float32))
    yield "kernel", onnx.graph([onnx.node("Conv", ["x", "w"], ["y"])], [kernel])
    vector = onnx.tensor("w", np.zeros(4, np.float32))
    yield "weight", onnx.graph([onnx.node("MatMul", ["x", "w"], ["y"])], [vector])
    steps = [onnx.node("Cast", [f"c{n}"], [f"c{n + 1}"], onnx.field(1, "to") + onnx.field(3, 1)) for n in range(80)]
    large = onnx.tensor("c0", np.zeros((1024, 1024), np.float64))
    yield "bounds", onnx.graph(steps, [large])


def test_other_graphs_are_refused_in_one_line(tmp_path: Path, weights: Weights) -> None:
    for message, graph in broken(weights):
        (tmp_path / "model.onnx").write_bytes(onnx.model(graph))
        with pytest.raises(CheckpointError, match=message) as refused:
            read_detector(tmp_path / "model.onnx", [])
        assert "\n" not in str(refused.value)


def test_a_recognisers_export_is_refused(folder: Path, weights: Weights) -> None:
    export(folder / "model.onnx", weights, "MatMul")
    change(folder, model="Paraformer", encoder="SANMEncoder")
    with pytest.raises(CheckpointError, match=r"model\.pt instead"):
        jaxasr.convert_checkpoint(folder / "model.onnx", folder / "out")


def test_a_damaged_file_is_refused(folder: Path) -> None:
    content = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(JaxasrError) as refused:
        jaxasr.convert_checkpoint(folder, folder / "out")
    assert "\n" not in str(refused.value)
