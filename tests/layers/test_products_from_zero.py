"""Products with activations that are quantized as ONNX's DynamicQuantizeLinear does, held against onnxruntime's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxasr.layers.products import linear_product, table_operands
from jaxasr.quant.activations import quantize_from_zero
from jaxasr.quant.array import QuantizedArray, assembled_array, quantize_array
from jaxasr.quant.packing import pack
from jaxasr.quant.ranges import ranges_over
from jaxasr.quant.rules import Rule

PUBLISHED = Rule(
    path="*", bits=8, per="tensor", scale_type="float32", activations="uint8", ranges="tensor"
)  # as the files of sherpa-onnx have it


def stored(integers: np.ndarray, scale: np.ndarray) -> QuantizedArray:
    parts = {"integers": pack(jax.numpy.asarray(integers), 8, -2), "scale": jax.numpy.reshape(scale, (1, 1))}
    return assembled_array(parts, integers.shape, PUBLISHED, "dense")


@pytest.mark.parametrize("name", ["zipformer-tiny", "icefall-conformer-tiny"])
def test_the_integers_of_published_models_are_exact(shared: Path, name: str) -> None:
    """Quantized inputs, zero points, scales and integer products as onnxruntime has them, to the last bit."""
    with np.load(shared / "golden" / name / "int8_trace.npz") as trace:
        fields: dict[str, dict[str, np.ndarray]] = {}
        for key in trace.files:
            product, _, field = key.rpartition("/")
            fields.setdefault(product, {})[field] = trace[key]
    products = {product: parts for product, parts in fields.items() if "integer_product" in parts}
    assert len(products) >= 4
    for product, parts in products.items():
        x = parts["input"].reshape(1, -1, parts["input"].shape[-1])  # one utterance, whichever axis time is
        integers, zeros, steps = jax.jit(quantize_from_zero, static_argnums=1)(x, "tensor")
        quantized = parts["quantized"].reshape(x.shape)
        np.testing.assert_array_equal(np.asarray(integers, np.int32) + 128, quantized, product)
        assert int(zeros.item()) + 128 == int(parts["zero_point"]), product
        assert steps.item() == parts["scale"].item(), product
        kernel = stored(parts["weight"], parts["weight_scale"])
        made = jax.jit(linear_product)(x, kernel)
        np.testing.assert_array_equal(np.asarray(made).reshape(parts["output"].shape), parts["output"], product)
        ones = dataclasses.replace(kernel, scale=1 / steps.reshape(1, 1))
        exact = np.rint(np.asarray(linear_product(x, ones), np.float64)).reshape(parts["integer_product"].shape)
        np.testing.assert_allclose(exact, parts["integer_product"], rtol=2e-7, err_msg=product)


GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 7, 20)).astype(np.float32) + 0.5


@pytest.mark.parametrize(
    "rule", [Rule(path="*", bits=8), Rule(path="*", bits=8, symmetric=False), Rule(path="*", bits=4, block=8)]
)
def test_any_kernel_takes_such_activations(rule: Rule) -> None:
    rule = dataclasses.replace(rule, activations="uint8")
    kernel = quantize_array(GENERATOR.standard_normal((20, 6)).astype(np.float32), rule, "dense")
    integers, zeros, steps = quantize_from_zero(X, "token")
    rounded = (np.asarray(integers, np.float64) - np.asarray(zeros)) * np.asarray(steps, np.float64)
    np.testing.assert_allclose(rounded, X, atol=float(steps.max()) / 2 + 1e-6)
    expected = rounded @ np.asarray(kernel.dequantize(), np.float64)
    np.testing.assert_allclose(linear_product(X, kernel), expected, rtol=1e-4, atol=1e-4)


def test_ranges_span_the_valid_frames_of_an_utterance_or_of_a_chunk() -> None:
    lengths = jax.numpy.array([7, 4])
    padded = X.copy()
    padded[1, 4:] = np.nan  # padding may hold anything
    with ranges_over(lengths):
        integers, zeros, steps = quantize_from_zero(padded, "tensor")
    for row, length in enumerate((7, 4)):
        alone = quantize_from_zero(X[row : row + 1, :length], "tensor")
        np.testing.assert_array_equal(integers[row, :length], alone[0][0])
        assert (zeros[row].item(), steps[row].item()) == (alone[1].item(), alone[2].item())
    with ranges_over(lengths, 3):
        integers, _, steps = quantize_from_zero(padded, "tensor")
    for row, first, last in ((0, 0, 3), (0, 3, 6), (0, 6, 7), (1, 0, 3), (1, 3, 4)):
        alone = quantize_from_zero(X[row : row + 1, first:last], "tensor")
        np.testing.assert_array_equal(integers[row, first:last], alone[0][0])
        np.testing.assert_array_equal(steps[row, first:last].ravel(), alone[2].item())


def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden() -> None:
    integers, zeros, steps = quantize_from_zero(np.zeros((1, 2, 3), np.float32), "tensor")
    assert (np.asarray(integers) == np.asarray(zeros)).all()
    assert steps.item() == 1
    assert not np.isfinite(quantize_from_zero(np.full((1, 2, 3), np.nan, np.float32), "tensor")[2]).any()


def test_a_table_and_its_activations_are_integers_whose_sums_are_exact() -> None:
    table = quantize_array(GENERATOR.standard_normal((9, 20)).astype(np.float32), PUBLISHED, "embedding")
    x, rows, scale = table_operands(X, table)
    assert scale is not None
    assert (np.rint(x) == np.asarray(x)).all()
    assert (np.rint(rows) == np.asarray(rows)).all()
    product = np.asarray(x) @ np.asarray(rows).T * np.asarray(scale)
    np.testing.assert_allclose(product, X @ np.asarray(table.dequantize()).T, atol=0.3)
    floats = table_operands(X, np.asarray(table.dequantize()))
    assert floats[2] is None
    np.testing.assert_array_equal(floats[0], X)
