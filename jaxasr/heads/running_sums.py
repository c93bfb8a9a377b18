"""Running sums of weights, and where they reach whole numbers: there a predictor has found a token.

A sum is kept as a whole number and a fraction, from sums of two float32 numbers, so that it falls on the same side of
each whole number as a sum in float64, on every device and after thousands of frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# A peak of the second head stands where the running sum reaches this instead of 1, so that the last one, whose sum is
# a whole number by construction, is not lost to rounding.
PEAK = 1.0 - 1e-4


class Running(NamedTuple):
    """A running sum of weights: its whole part (B, T) int32 and the fraction (B, T) in 0..1 after each frame."""

    whole: Int[Array, "B T"]
    fraction: Float[Array, "B T"]

    @property
    def fires(self) -> Float[Array, "B T"]:
        """The fraction after each frame, plus 1 where the frame completes a token: FunASR's cif_peak."""
        before = jnp.pad(self.whole, ((0, 0), (1, 0)))[:, :-1]
        return (self.whole > before) + self.fraction

    @property
    def counts(self) -> Int[Array, " B"]:
        """Tokens of each row."""
        return self.whole[:, -1]


def running_sum(weights: Float[Array, "B T"]) -> Running:
    """The running sum of weights (B, T) float32 in two float32 numbers a frame, the second being what the first lost.

    Sums of two numbers without loss: Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B.
    """

    def add(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        high, lost = _two_sum(one[0], other[0])
        return _two_sum(high, lost + (one[1] + other[1]))

    high, low = lax.associative_scan(add, (weights, jnp.zeros_like(weights)), axis=1)
    whole = jnp.floor(high)
    whole = jnp.where((high == whole) & (low < 0), whole - 1, whole)
    return Running(whole.astype(jnp.int32), (high - whole) + low)


def _two_sum(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> tuple[jax.Array, jax.Array]:
    """a + b rounded, and what rounding took from it."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def fire_places(running: Running, most: int) -> Int[Array, "B {most}"]:
    """The frame that completes each of the first `most` tokens: (B, most), T where none does."""
    return (running.whole[:, None] <= jnp.arange(most)[:, None]).sum(axis=-1, dtype=jnp.int32)
