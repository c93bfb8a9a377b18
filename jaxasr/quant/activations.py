"""Activations as integers of 8 bits, for the time of one product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxasr.quant.rules import Ranges

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

LARGEST = 127  # -128 is left out, so that both signs reach as far


def quantize_activations(
    x: Float[Array, "*batch D"], ranges: Ranges
) -> tuple[Int[Array, "*batch D"], Float[Array, "*#batch 1"]]:
    """x (..., D) -> (int8 (..., D), steps (..., 1) float32) with x near integers * steps, symmetric, by x itself.

    `ranges`: one step for each vector of the last axis, so that no frame depends on another one, or one for all but the
    first axis. Both are signed: CPUs multiply signed with unsigned integers in slow loops. Zeros have a step of 1.
    """
    axes = (x.ndim - 1,) if ranges == "token" or x.ndim < 2 else tuple(range(1, x.ndim))
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axes, keepdims=True)
    steps = jnp.where(largest == 0, 1.0, largest / LARGEST)
    # Infinities and NaN go on as steps, so that a search that hears of them can say so.
    return jnp.clip(jnp.round(wide / steps), -LARGEST, LARGEST).astype(jnp.int8), steps
