"""Integers of 8 bits in a graph, however it spells them: dynamic products, and pairs around QuantizeLinear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnx_writer as onnx
from jaxasr.convert.formats.onnx.files import read_onnx
from jaxasr.convert.formats.onnx.graph import Operation, trace
from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.errors import CheckpointError

GENERATOR = np.random.default_rng(0)
SIGNED = GENERATOR.integers(-128, 128, (6, 8)).astype(np.int8)  # (in, out)
UNSIGNED = GENERATOR.integers(0, 256, (6, 8)).astype(np.uint8)
KERNEL = GENERATOR.integers(-128, 128, (4, 6, 3)).astype(np.int8)  # (out, in, width)
SCALES = GENERATOR.uniform(0.01, 0.1, 8).astype(np.float32)  # of outputs
ZEROS = GENERATOR.integers(0, 256, 8).astype(np.uint8)
BIAS = GENERATOR.integers(-9, 9, 8).astype(np.int8)
ONE, ZERO = np.float32(0.25), np.int8(0)
AXIS_0, AXIS_1 = (onnx.field(1, "axis") + onnx.field(3, axis) + onnx.field(20, 2) for axis in (0, 1))


def traced(folder: Path, nodes: list[bytes], **stored: np.ndarray | np.generic) -> list[Operation]:
    """The operations of a graph from x to y, read from a file as it would be published."""
    tensors = [onnx.tensor(name, np.asarray(array)) for name, array in stored.items()]
    content = onnx.graph(nodes, tensors, [onnx.value_info("x", "T", 6)], [onnx.value_info("y", "T", 8)])
    path = folder / "model.int8.onnx"
    path.write_bytes(onnx.model(content))
    return trace(read_onnx(path))


def weight_of(operation: Operation) -> QuantizedTensor:
    """The integers of its weight, which stand for just the numbers that it has."""
    constant = operation.parameters["weight"]
    assert constant.quantized is not None
    np.testing.assert_array_equal(constant.quantized.dequantize(), constant.array)
    assert operation.step == constant.quantized.scale.max()
    return constant.quantized


def test_a_convolution_of_integers(tmp_path: Path) -> None:
    nodes = [
        onnx.node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        onnx.node("ConvInteger", ["q", "w", "z", "w_zero"], ["i"]),
        onnx.node("Cast", ["i"], ["f"], onnx.field(1, "to") + onnx.field(3, 1) + onnx.field(20, 2)),
        onnx.node("Mul", ["s", "w_scale"], ["both"]),
        onnx.node("Mul", ["f", "both"], ["y"]),
    ]
    (found,) = traced(tmp_path, nodes, w=KERNEL, w_zero=ZERO, w_scale=ONE)
    weight = weight_of(found)
    assert found.kind == "convolution" and weight.multiplied and weight.zero_point is None
    np.testing.assert_array_equal(weight.integers, KERNEL)
    assert weight.scale.tolist() == [[[0.25]]]


def test_a_weight_that_is_dequantized_in_the_graph(tmp_path: Path) -> None:
    nodes = [
        onnx.node("DequantizeLinear", ["w", "s", "z"], ["floats"], AXIS_1),
        onnx.node("MatMul", ["x", "floats"], ["product"]),
        onnx.node("Add", ["product", "b"], ["y"]),
    ]
    (found,) = traced(tmp_path, nodes, w=UNSIGNED, s=SCALES, z=ZEROS, b=SCALES)
    weight = weight_of(found)
    assert found.kind == "linear" and not weight.multiplied and weight.zero_point is not None
    np.testing.assert_array_equal(weight.integers.T.astype(int), UNSIGNED.astype(int) - 128)
    expected = (UNSIGNED.astype(np.float32) - ZEROS) * SCALES
    np.testing.assert_allclose(found.parameters["weight"].array, expected.T, rtol=1e-6)
    assert found.parameters["weight"].sources == {"w", "s", "z"}


@pytest.mark.parametrize("transposed", [False, True])
def test_pairs_around_everything(tmp_path: Path, transposed: bool) -> None:
    """As static quantization writes them: activations of fixed ranges, products and biases pass through pairs too."""
    dense = ["rounded", "wt"] if transposed else ["rounded", "floats"]
    nodes = [
        onnx.node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        onnx.node("DequantizeLinear", ["q", "one", "zero"], ["rounded"]),
        onnx.node("DequantizeLinear", ["w", "s"], ["floats"], AXIS_0 if transposed else AXIS_1),
        onnx.node("Transpose", ["floats"], ["wt"]),
        onnx.node("MatMul", dense, ["product"]),
        onnx.node("QuantizeLinear", ["product", "one", "zero"], ["product_q"]),
        onnx.node("DequantizeLinear", ["product_q", "one", "zero"], ["product_f"]),
        onnx.node("DequantizeLinear", ["b", "one", "zero"], ["bias"]),
        onnx.node("Add", ["product_f", "bias"], ["y"]),
    ]
    stored = np.ascontiguousarray(SIGNED.T) if transposed else SIGNED
    (found,) = traced(tmp_path, nodes, w=stored, s=SCALES, b=BIAS, one=ONE, zero=ZERO)
    weight, bias = weight_of(found), found.parameters["bias"]
    np.testing.assert_array_equal(weight.integers, SIGNED.T)
    assert weight.scale[:, 0].tolist() == SCALES.tolist() and not weight.multiplied
    assert bias.array.tolist() == (BIAS * ONE).tolist() and bias.quantized is None


def test_a_convolution_with_a_bias_of_32_bits(tmp_path: Path) -> None:
    nodes = [
        onnx.node("DequantizeLinear", ["w", "s", "z"], ["floats"], AXIS_0),
        onnx.node("DequantizeLinear", ["b", "s"], ["bias"], AXIS_0),
        onnx.node("Conv", ["x", "floats", "bias"], ["y"]),
    ]
    bias = np.array([70_000, -3, 0, 9], np.int32)
    (found,) = traced(tmp_path, nodes, w=KERNEL, s=SCALES[:4], z=np.zeros(4, np.int8), b=bias)
    np.testing.assert_array_equal(weight_of(found).integers, KERNEL)
    np.testing.assert_array_equal(found.parameters["bias"].array, bias.astype(np.float32) * SCALES[:4])


@pytest.mark.parametrize("op_type", ["QLinearMatMul", "QLinearConv"])
def test_products_of_fixed_ranges_are_refused_in_one_line(tmp_path: Path, op_type: str) -> None:
    names = ["x", "one", "zero", "w", "one", "zero", "one", "zero"]
    with pytest.raises(CheckpointError, match=f"model.int8.onnx: multiplies .* {op_type}.*; convert") as caught:
        traced(tmp_path, [onnx.node(op_type, names, ["y"])], w=SIGNED, one=ONE, zero=ZERO)
    assert "\n" not in str(caught.value)
