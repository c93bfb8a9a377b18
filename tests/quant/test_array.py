from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxasr.quant.array import abstract_array, assembled_array, parts_of, quantize_array
from jaxasr.quant.rules import Layer, Rule

WEIGHTS: dict[Layer, tuple[int, ...]] = {
    "dense": (37, 6), "convolution": (3, 20, 6), "depthwise": (31, 1, 6), "embedding": (9, 20),
}  # fmt: skip


@pytest.mark.parametrize("layer", WEIGHTS)
@pytest.mark.parametrize("block", [None, 16])
def test_shapes_are_known_before_numbers(layer: Layer, block: int | None) -> None:
    """Blocks of 16 leave a shorter one at the end of every axis here."""
    weights = np.random.default_rng(0).standard_normal(WEIGHTS[layer]).astype(np.float32)
    for bits, symmetric in ((8, True), (3, False)):
        rule = Rule(path="*", bits=bits, block=block, symmetric=symmetric)
        made, abstract = quantize_array(weights, rule, layer), abstract_array(weights.shape, rule, layer)
        assert jax.tree.structure(made) == jax.tree.structure(abstract)
        assert [(a.shape, a.dtype) for a in jax.tree.leaves(made)] == [
            (a.shape, a.dtype) for a in jax.tree.leaves(abstract)
        ]
        assert made.shape == weights.shape and made.dequantize().shape == weights.shape
        again = assembled_array(parts_of(made), weights.shape, rule, layer)
        np.testing.assert_array_equal(again.dequantize(), made.dequantize())
        with pytest.raises(ValueError, match="do not fit"):
            assembled_array(parts_of(made), weights.shape, dataclasses.replace(rule, bits=2), layer)


def test_blocks_against_numpy() -> None:
    weights = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    rule = Rule(path="*", bits=4, block=8, scale_type="float32")
    found = np.asarray(quantize_array(weights, rule, "dense").dequantize())
    for start, stop in ((0, 8), (8, 16), (16, 20)):  # the last block is shorter, and has a scale of its own
        part = weights[start:stop]
        scale = np.abs(part).max(0) / np.float32(7)
        np.testing.assert_allclose(found[start:stop], np.clip(np.rint(part / scale), -8, 7) * scale, rtol=1e-6)


def test_slices_and_new_axes() -> None:
    weights = np.random.default_rng(2).standard_normal((3, 20, 6)).astype(np.float32)
    array = quantize_array(weights, Rule(path="*", bits=4, block=8, symmetric=False), "convolution")
    whole = np.asarray(array.dequantize())
    np.testing.assert_array_equal(array[...].dequantize(), whole)
    np.testing.assert_array_equal(array[:, None, :, 2:5].dequantize(), whole[:, None, :, 2:5])
    np.testing.assert_array_equal(array[:, None].tap(1).dequantize(), whole[1])
    for index in (0, (slice(None), slice(0, 2))):
        with pytest.raises(IndexError, match="quantized array"):
            array[index]


def test_rows_of_a_table() -> None:
    weights = np.random.default_rng(3).standard_normal((9, 20)).astype(np.float32)
    ids = np.array([[3, 0], [8, 3]])
    for rule in (Rule(path="*", bits=3, block=8), Rule(path="*", bits=8, per="tensor", symmetric=False)):
        table = quantize_array(weights, rule, "embedding")
        np.testing.assert_array_equal(table.rows(ids), np.asarray(table.dequantize())[ids])
