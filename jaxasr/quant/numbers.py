"""The formulas of quantization: where a grid lies, which value of it stands for a weight, and what that costs.

A grid of b bits has the integers lo = -2^(b-1) to hi = 2^(b-1)-1. An integer q stands for (q - z) * s, with a scale s
and, on an asymmetric grid, a zero z, which is a real number. Source: google/praxis, layers/quantization/operations.py,
whose offset is s * z; AQT (2105.03536, section 3). Rounding is to the nearest, ties to even (IEEE 754; praxis' newer
quantizer rounds ties up). Zeros and scales are rounded to their stored type before weights are, so that what is stored
costs no more than a grid a little wider.

All functions take weights (...) and `axes`, over which one grid is shared; bounds, scales and zeros keep these axes
with length 1. They can be traced and differentiated wherever rounding is passed by (`straight_through`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# A search tries bounds from the largest magnitude down to a fifth of it: at 2 bits a symmetric grid of normal numbers
# is best at a third, which the usual floor of a half does not reach.
FACTORS = (1.0, 0.2, 33)  # first, last, how many


class Grid(NamedTuple):
    """Where a grid lies: `scale` (step between two integers) and `zero` (what stands for 0, or None)."""

    scale: jax.Array
    zero: jax.Array | None


class Bounds(NamedTuple):
    """The weights that the ends of a grid stand for."""

    low: jax.Array
    high: jax.Array


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest integer of so many bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def max_bounds(weights: jax.Array, axes: tuple[int, ...]) -> Bounds:
    """The least and the largest weight."""
    return Bounds(weights.min(axes, keepdims=True), weights.max(axes, keepdims=True))


def percentile_bounds(weights: jax.Array, axes: tuple[int, ...], percentile: float) -> Bounds:
    """Bounds that leave the share 100 - percentile of the weights outside, half of it at either end.

    Source: Wu et al., 2020 (arXiv 2004.09602), there of magnitudes. praxis' `percentile` is another thing, a
    factor of the largest magnitude (operations.py, reduce_precision).
    """
    rest = (100.0 - percentile) / 2
    low, high = jnp.percentile(weights, jnp.array([rest, 100.0 - rest]), axis=axes, keepdims=True)
    return Bounds(low, high)


def searched_bounds(
    weights: jax.Array, axes: tuple[int, ...], bits: int, symmetric: bool, dtype: DTypeLike = jnp.float32
) -> Bounds:
    """The largest bounds cut by the factor, the same at both ends, that gives the least squared error.

    Ties keep the larger bound. Source: praxis, optimization.py (one end, absolute error, down to a half) and its AQT
    quantizer (both ends).
    """
    widest = max_bounds(weights, axes)

    def attempt(best: tuple[jax.Array, jax.Array], factor: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        least, chosen = best
        grid = grid_of(Bounds(widest.low * factor, widest.high * factor), bits, symmetric, dtype)
        error = jnp.square(dequantize(quantize(weights, grid, bits), grid) - weights).sum(axes, keepdims=True)
        better = error < least
        return (jnp.where(better, error, least), jnp.where(better, factor, chosen)), None

    start = (jnp.full_like(widest.low, jnp.inf), jnp.ones_like(widest.low))
    (_, factor), _ = jax.lax.scan(attempt, start, jnp.linspace(*FACTORS, dtype=weights.dtype))
    return Bounds(widest.low * factor, widest.high * factor)


def grid_of(bounds: Bounds, bits: int, symmetric: bool, dtype: DTypeLike = jnp.float32) -> Grid:
    """The grid with these ends, its scale and zero stored in `dtype`.

    Symmetric: s = max(|low|, |high|) / hi. Asymmetric: s = (high - low) / (hi - lo), z = lo - low / s. Where all
    weights are one number s is its magnitude, and 1 for zeros, so that they stay what they are.
    """
    lo, hi = limits(bits)
    if symmetric:
        return Grid(_scale(jnp.maximum(jnp.abs(bounds.low), jnp.abs(bounds.high)) / hi, dtype), None)
    step = (bounds.high - bounds.low) / (hi - lo)
    scale = _scale(jnp.where(step == 0, jnp.abs(bounds.low), step), dtype)
    return Grid(scale, (lo - bounds.low / scale.astype(bounds.low.dtype)).astype(dtype))


def quantize(weights: jax.Array, grid: Grid, bits: int) -> jax.Array:
    """The integers that stand for the weights, int8: clip(round(w / s + z), lo, hi)."""
    return jnp.clip(jnp.round(position(weights, grid)), *limits(bits)).astype(jnp.int8)


def dequantize(integers: jax.Array, grid: Grid) -> jax.Array:
    """What the integers stand for, float32: (q - z) * s."""
    steps = integers.astype(jnp.float32)
    if grid.zero is not None:
        steps = steps - grid.zero.astype(jnp.float32)
    return steps * grid.scale.astype(jnp.float32)


def straight_through(weights: jax.Array, grid: Grid, bits: int) -> jax.Array:
    """What the integers of the weights stand for, with a gradient of 1 inside the grid and 0 outside.

    x - sg(x) + sg(round(x)), then clip (praxis; Bengio et al., 2013, arXiv 1308.3432). Gradients reach the grid too.
    """
    at = position(weights, grid)
    integers = jnp.clip(at + jax.lax.stop_gradient(jnp.round(at) - at), *limits(bits))
    return dequantize(integers, grid).astype(weights.dtype)


def position(weights: jax.Array, grid: Grid) -> jax.Array:
    """Where the weights lie on the grid, before they are rounded: w / s + z."""
    at = weights / grid.scale.astype(weights.dtype)
    return at if grid.zero is None else at + grid.zero.astype(weights.dtype)


def _scale(step: jax.Array, dtype: DTypeLike) -> jax.Array:
    stored = step.astype(dtype)
    return jnp.where(stored == 0, jnp.ones_like(stored), stored)
