"""Activations as integers of 8 bits, for the time of one product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from jaxasr.quant.ranges import row_extremes
from jaxasr.quant.rules import Ranges

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

LARGEST = 127  # -128 is left out, so that both signs reach as far


def quantize_activations(
    x: Float[Array, "*batch D"], ranges: Ranges, step: Float[Array, "*ones"] | None = None
) -> tuple[Int[Array, "*batch D"], Float[Array, "*#batch 1"]]:
    """x (..., D) -> (int8 (..., D), steps (..., 1) float32) with x near integers * steps, symmetric, by x itself.

    `ranges`: one step for each vector of the last axis, so that no frame depends on another one, or one for all frames
    of an utterance (`ranges.py`). Both are signed: CPUs multiply signed with unsigned integers in slow loops. Zeros
    have a step of 1. Source: praxis, operations.py, reduce_precision_activation, whose one step is that of all of x.

    A `step` that was found before, of size 1, is that of all ("static"): what lies beyond its range is cut off, and NaN
    becomes a 0, which no reduction looks for. Encoders carry NaN past their products.
    """
    wide = x.astype(jnp.float32)
    if step is not None:
        steps = step.reshape((1,) * x.ndim)
        return _integers(wide, steps), steps
    if ranges == "token" or x.ndim < 2:
        largest = jnp.abs(wide).max(-1, keepdims=True)
    else:
        low, high = row_extremes(wide)
        largest = jnp.maximum(-low, high)
    steps = jnp.where(largest == 0, 1.0, largest / LARGEST)
    # Infinities and NaN go on as steps, so that a search that hears of them can say so.
    return _integers(wide, steps), steps


def _integers(x: Float[Array, "*batch D"], steps: Float[Array, "*#batch 1"]) -> Int[Array, "*batch D"]:
    return jnp.clip(jnp.round(x / steps), -LARGEST, LARGEST).astype(jnp.int8)


def quantize_from_zero(
    x: Float[Array, "*batch D"], ranges: Ranges
) -> tuple[Int[Array, "*batch D"], Int[Array, "*#batch 1"], Float[Array, "*#batch 1"]]:
    """x (..., D) -> (int8 (..., D), zeros (..., 1) int32, steps (..., 1) float32), x near (integers - zeros) * steps.

    ONNX's DynamicQuantizeLinear, whose integers are unsigned, less 128: the range from the least to the largest
    activation, 0 included, has 255 steps, and 0 is a whole number of them. `ranges`: as `quantize_activations` says.
    """
    wide = x.astype(jnp.float32)
    if ranges == "token" or x.ndim < 2:
        low, high = jnp.minimum(wide.min(-1, keepdims=True), 0), jnp.maximum(wide.max(-1, keepdims=True), 0)
    else:
        low, high = row_extremes(wide)
    # XLA would multiply by the reciprocal of what is constant or broadcast, which is another number in a quarter of the
    # cases, and on a tie another integer. So no divisor is such.
    span = (high - low) / lax.optimization_barrier(jnp.full_like(low, 255))
    steps = jnp.where(span == 0, 1.0, span)  # onnxruntime's choice for zeros
    zeros = jnp.clip(jnp.round(-low / steps), 0, 255)
    integers = jnp.clip(jnp.round(wide / (steps + 0 * wide)) + zeros, 0, 255) - 128
    return integers.astype(jnp.int8), zeros.astype(jnp.int32) - 128, steps
