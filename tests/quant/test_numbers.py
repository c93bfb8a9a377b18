"""The formulas against numpy written out, published vectors, and the errors that the reference implementation has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.quant import numbers
from jaxasr.quant.array import quantize_array
from jaxasr.quant.numbers import (
    Bounds,
    dequantize,
    grid_of,
    max_bounds,
    percentile_bounds,
    quantize,
    searched_bounds,
    straight_through,
)
from jaxasr.quant.rules import Rule

COLUMN = np.array([[0.9], [-0.2], [0.35], [-0.75]], np.float32)


@pytest.mark.parametrize(
    ("bits", "symmetric", "scale", "offset", "integers"),
    [
        (4, True, 0.128571, None, [7, -2, 3, -6]),
        (4, False, 0.11, -0.13, [7, -3, 2, -8]),
        (2, True, 0.9, None, [1, 0, 0, -1]),
        (2, False, 0.55, -0.35, [1, -1, 0, -2]),
    ],
)
def test_vectors_of_the_reference(
    bits: int, symmetric: bool, scale: float, offset: float | None, integers: list[int]
) -> None:
    grid = grid_of(max_bounds(COLUMN, (0,)), bits, symmetric)
    np.testing.assert_allclose(grid.scale, [[scale]], rtol=1e-5)
    if offset is None:
        assert grid.zero is None
    else:
        np.testing.assert_allclose(grid.scale * grid.zero, [[offset]], rtol=1e-4)
    np.testing.assert_array_equal(np.ravel(quantize(COLUMN, grid, bits)), integers)


def test_rounding_is_to_the_nearest_and_of_ties_to_the_even() -> None:
    weights = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 7.0], np.float32)
    grid = grid_of(Bounds(jnp.float32(-7), jnp.float32(7)), 4, True)
    np.testing.assert_array_equal(quantize(weights, grid, 4), [0, 2, 2, 0, -2, 7])


def test_a_search_against_numpy() -> None:
    """Every factor tried by hand."""
    weights = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    best = np.full(5, np.inf)
    bound = np.zeros(5)
    for factor in np.linspace(1, 0.2, 33, dtype=np.float32):
        scale = factor * np.abs(weights).max(0) / 1
        error = ((np.clip(np.rint(weights / scale), -2, 1) * scale - weights) ** 2).sum(0)
        bound = np.where(error < best, factor * np.abs(weights).max(0), bound)
        best = np.minimum(error, best)
    found = searched_bounds(weights, (0,), 2, True)
    np.testing.assert_allclose(np.maximum(-found.low, found.high)[0], bound, rtol=1e-6)


def test_a_search_of_the_published_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """praxis' test of its search by channel: 4 bits, squared error, 11 factors down to a half."""
    monkeypatch.setattr(numbers, "FACTORS", (1.0, 0.5, 11))
    found = searched_bounds(np.array([[1, 2, 3], [4, 1, 2]], np.float32), (0,), 4, True)
    np.testing.assert_allclose(found.high, [[4, 1.9, 3]], rtol=1e-6)


def test_percentiles_leave_half_of_the_rest_outside_at_either_end() -> None:
    weights = np.arange(1001, dtype=np.float32)[:, None]
    found = percentile_bounds(weights, (0,), 98.0)
    np.testing.assert_allclose([found.low[0, 0], found.high[0, 0]], [10, 990], rtol=1e-5)


@pytest.mark.parametrize(
    ("bits", "symmetric", "block", "bounds", "error"),
    [
        (4, True, None, "max", 0.136),
        (4, False, None, "max", 0.119),
        (4, True, 64, "search", 0.095),
        (2, True, None, "max", 0.844),
        (2, True, None, "search", 0.386),
        (2, False, None, "search", 0.347),
        (2, False, 64, "max", 0.452),
        (2, False, 32, "search", 0.312),
    ],
)
def test_error_of_normal_weights(bits: int, symmetric: bool, block: int | None, bounds: str, error: float) -> None:
    """The root mean squares that were measured with the reference implementation, to 2 % of them.

    At 2 bits clipping is worth more than blocks.
    """
    weights = np.random.default_rng(1).standard_normal((512, 256)).astype(np.float32)
    rule = Rule(path="*", bits=bits, symmetric=symmetric, block=block, bounds=bounds, scale_type="float32")
    found = np.asarray(quantize_array(weights, rule, "dense").dequantize())
    assert np.sqrt(np.mean((found - weights) ** 2)) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.123, -3.0])
def test_equal_weights_stay_what_they_are(symmetric: bool, value: float) -> None:
    weights = np.full((4, 1), value, np.float32)
    grid = grid_of(max_bounds(weights, (0,)), 4, symmetric)
    np.testing.assert_allclose(dequantize(quantize(weights, grid, 4), grid), weights, rtol=1e-6)


def test_gradients_pass_by_rounding_inside_the_grid_alone() -> None:
    weights = jnp.array([0.3, 0.9, -2.0])
    grid = grid_of(Bounds(jnp.float32(-1), jnp.float32(1)), 4, True)
    np.testing.assert_allclose(
        straight_through(weights, grid, 4), dequantize(quantize(weights, grid, 4), grid), rtol=1e-6
    )
    found = jax.grad(lambda w: straight_through(w, grid, 4).sum())(weights)
    np.testing.assert_allclose(found, [1, 1, 0], atol=1e-6)
