"""Products with quantized kernels equal those with the floats that the kernels stand for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxasr.layers.products import convolution_product, depthwise_product, embed, grouped_product, linear_product
from jaxasr.quant.activations import quantize_activations
from jaxasr.quant.array import quantize_array
from jaxasr.quant.rules import Activations, Layer, Rule, multiplied

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 7, 20)).astype(np.float32)
KERNEL = GENERATOR.standard_normal((20, 6)).astype(np.float32)
BIAS = GENERATOR.standard_normal(6).astype(np.float32)
RULES = [
    Rule(path="*", bits=8),
    Rule(path="*", bits=8, symmetric=False, per="tensor"),
    Rule(path="*", bits=4, block=8),
    Rule(path="*", bits=3, block=8, symmetric=False),
    Rule(path="*", bits=2, bounds="search"),
]


def acting(array: Any, activations: str) -> Any:
    return dataclasses.replace(array, activations=activations)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.bits}-{rule.block}-{rule.symmetric}")
def test_a_dense_layer(rule: Rule) -> None:
    kernel = quantize_array(KERNEL, rule, "dense")
    floats = np.asarray(kernel.dequantize(), np.float64)
    product = jax.jit(linear_product)
    np.testing.assert_allclose(product(X, kernel, BIAS), X @ floats + BIAS, rtol=1e-5, atol=1e-5)
    integers, steps = quantize_activations(X, "token")
    expected = np.asarray(integers, np.float64) * np.asarray(steps) @ floats + BIAS
    for way in ("int8", "fake"):
        np.testing.assert_allclose(product(X, acting(kernel, way), BIAS), expected, rtol=1e-5, atol=1e-5)


def test_integers_are_multiplied_as_integers_and_each_frame_by_itself() -> None:
    kernel = acting(quantize_array(KERNEL, RULES[0], "dense"), "int8")
    lowered = jax.jit(linear_product).lower(X, kernel).as_text()
    assert "tensor<14x20xi8>, tensor<6x20xi8>) -> tensor<14x6xi32>" in lowered
    # Whatever else is in the batch, to the last bit.
    other = np.concatenate([X[:1], 1000 * X[1:]])
    np.testing.assert_array_equal(linear_product(other, kernel)[0], linear_product(X, kernel)[0])


@pytest.mark.parametrize("largest", [1.0, 10.0])
def test_a_static_range_is_looked_for_no_more(largest: float) -> None:
    """What lies beyond it is cut off; padding's zeros and other clips change nothing."""
    rule = dataclasses.replace(RULES[0], activations="int8", ranges="static")
    clipped = np.clip(np.round(X * (127 / largest)), -127, 127) * largest / 127
    kernel = quantize_array(KERNEL, rule, "dense", largest)
    floats = np.asarray(kernel.dequantize(), np.float64)
    for way in ("int8", "fake"):
        found = jax.jit(linear_product)(X, acting(kernel, way), BIAS)
        np.testing.assert_allclose(found, clipped @ floats + BIAS, rtol=1e-5, atol=1e-5)
    assert "reduce_max" not in str(jax.make_jaxpr(linear_product)(X, kernel))
    taps = quantize_array(GENERATOR.standard_normal((3, 20, 6)).astype(np.float32), rule, "convolution", largest)
    weights = np.asarray(taps.dequantize(), np.float64)
    found = convolution_product(X[:, :, None], taps[:, None], (1, 1), ((0, 0), (0, 0)))[:, :, 0]
    expected = sum(clipped[:, place : place + 5] @ weights[place] for place in range(3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert quantize_array(KERNEL[:, None], rule, "depthwise").step is None
    with pytest.raises(ValueError, match="nothing was heard"):
        quantize_array(KERNEL, rule, "dense")


@pytest.mark.parametrize("rule", RULES[:4], ids=lambda rule: f"{rule.bits}-{rule.block}-{rule.symmetric}")
def test_a_convolution_over_time(rule: Rule) -> None:
    kernel = quantize_array(GENERATOR.standard_normal((3, 20, 6)).astype(np.float32), rule, "convolution")[:, None]
    arguments = (X[:, :, None], (2, 1), ((1, 1), (0, 0)))
    x, strides, padding = arguments
    floats = convolution_product(x, kernel.dequantize(), strides, padding)
    np.testing.assert_allclose(convolution_product(x, kernel, strides, padding), floats, rtol=1e-5, atol=1e-5)
    integers, steps = quantize_activations(x, "token")
    rounded = convolution_product(integers * steps, kernel.dequantize(), strides, padding)
    found = convolution_product(x, acting(kernel, "int8"), strides, padding)
    np.testing.assert_allclose(found, rounded, rtol=1e-4, atol=1e-4)


def test_what_float_arithmetic_does_best_is_dequantized() -> None:
    rule = Rule(path="*", bits=4, activations="int8")
    depthwise = quantize_array(GENERATOR.standard_normal((5, 1, 20)).astype(np.float32), rule, "depthwise")
    np.testing.assert_array_equal(depthwise_product(X, depthwise), depthwise_product(X, depthwise.dequantize()))
    grouped = quantize_array(GENERATOR.standard_normal((2, 4, 20)).astype(np.float32), rule, "convolution")
    steps = [X[:, 0], X[:, 1]]
    np.testing.assert_array_equal(grouped_product(steps, grouped), grouped_product(steps, grouped.dequantize()))
    table = quantize_array(KERNEL, rule, "embedding")
    ids = np.array([3, 0])
    np.testing.assert_array_equal(embed(table, ids), embed(table.dequantize(), ids))


@pytest.mark.parametrize("activations", ["float", "int8", "uint8", "fake"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("dense", (20, 6)),
        ("convolution", (3, 1, 20, 6)),
        ("convolution", (3, 1, 4, 6)),
        ("convolution", (3, 3, 20, 6)),
        ("depthwise", (3, 1, 20)),
        ("embedding", (20, 6)),
    ],
)
def test_the_way_that_is_told_is_the_one_taken(layer: Layer, shape: tuple[int, ...], activations: Activations) -> None:
    """Sums in int32 where integers are multiplied; activations rounded in floats where these are fake."""
    rule = Rule(path="*", bits=8, activations=activations)
    kernel = quantize_array(GENERATOR.standard_normal(shape).astype(np.float32), rule, layer)
    x = X[:, :, : shape[-2]] if layer in ("dense", "convolution") else X
    program: Callable[[Any], jax.Array] = {
        "dense": lambda kernel: linear_product(x, kernel),
        "convolution": lambda kernel: convolution_product(x[:, :, None], kernel, (1, 1), ((0, 0), (1, 1))),
        "depthwise": lambda kernel: depthwise_product(x, kernel),
        "embedding": lambda kernel: embed(kernel, np.array([3, 0])),
    }[layer]
    text = jax.jit(program).lower(kernel).as_text()
    way = multiplied(activations, layer, shape)
    assert bool(re.search(r"xi8>\) -> tensor<[0-9x]+xi32>", text)) == (way in ("int8", "uint8"))
    assert ("round_nearest_even" in text) == (way != "float")


def test_a_narrow_type_of_products_is_the_kernels() -> None:
    kernel = quantize_array(KERNEL, RULES[0], "dense").astype("bfloat16")
    assert kernel.dequantize().dtype == "bfloat16"
    np.testing.assert_array_equal(linear_product(X, kernel), linear_product(X, kernel.dequantize()))


def test_ranges_of_activations() -> None:
    _, tokens = quantize_activations(X, "token")
    _, tensor = quantize_activations(X, "tensor")
    np.testing.assert_allclose(tokens, np.abs(X).max(-1, keepdims=True) / 127, rtol=1e-6)
    np.testing.assert_allclose(tensor, np.abs(X).max((1, 2), keepdims=True) / 127, rtol=1e-6)
