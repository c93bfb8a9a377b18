"""Times of tokens from the weights of a predictor, as FunASR 1.4 states them (utils/timestamp_tools.py).

FunASR's rule takes the token before a peak to last until the next one, moves all peaks by one and a half steps, and
scales the weights until there is a peak more than there are tokens. Of a plain Paraformer (`pred_timestamp`) FunASR
passes weights and running sums in each other's place, so that the sums are scaled. Times are whole quarters of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.heads.parallel_config import STEP_PARTS
from jaxasr.heads.running_sums import PEAK, Running, fire_places

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

SHIFT = -3 * STEP_PARTS // 2  # from a peak to its time
LONGEST = 12 * STEP_PARTS  # of a token, after which there is silence
SILENCE = 5 * STEP_PARTS  # after the last peak, more than which is silence in half


class Steps(NamedTuple):
    """What the rule reads of each row: the weights (B, S) of its steps, where they have peaks, and how many there are.

    A peak stands where the whole part of `running` grows. After lengths (B,) steps weights are zeros.
    """

    weights: Float[Array, "B S"]
    running: Running
    lengths: Int[Array, " B"]

    def spans(
        self, counts: Int[Array, "B N"], most: int, shift: int = SHIFT
    ) -> tuple[Int[Array, "B N {most}"], Int[Array, "B N {most}"]]:
        """Begin and duration of the first `most` tokens of hypotheses with counts (B, N) tokens, in parts of a step.

        Nothing begins before 0, where FunASR's times are negative. `shift`: from a peak to its time, in parts.
        """

        def of_one(counts: Int[Array, " B"]) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
            again = _scaled(self.weights, counts)
            enough = (self.running.counts == counts + 1)[:, None]
            chosen = Running(*(jnp.where(enough, own, other) for own, other in zip(self.running, again, strict=True)))
            places = fire_places(chosen, most + 1) * STEP_PARTS + shift
            begin, following = places[:, :-1], places[:, 1:]
            stop = jnp.minimum(following, begin + LONGEST)
            end = (self.lengths * STEP_PARTS)[:, None]
            final = jnp.where(end - following > SILENCE, (end + following) // 2, end)
            last = jnp.arange(most) == counts[:, None] - 1
            stop = jnp.where(last & (stop == following), final, stop)
            begin = jnp.maximum(begin, 0)
            return zero_beyond(begin, counts), zero_beyond(jnp.maximum(stop - begin, 0), counts)

        return jax.vmap(of_one, in_axes=1, out_axes=1)(counts)


def steps_exchanged(weights: Float[Array, "B T1"], running: Running, lengths: Int[Array, " B"]) -> Steps:
    """What FunASR passes of a plain predictor's weights and sums, of lengths (B,) frames and the tail: exchanged."""
    there = length_mask(lengths + 1, weights.shape[1])
    high = jnp.cumsum((weights >= PEAK) & there, axis=1, dtype=jnp.int32)
    return Steps(jnp.where(there, running.fires, 0), Running(high, jnp.zeros_like(weights)), lengths + 1)


def _scaled(weights: Float[Array, "B S"], counts: Int[Array, " B"]) -> Running:
    """The peaks of weights that add up to one more than the tokens, step by step as FunASR adds them in float32.

    A step has one peak at most, and what is above it stays.
    """
    total = weights.sum(axis=-1)
    scaled = weights / (jnp.where(total > 0, total, 1.0) / (counts + 1))[:, None]

    def add(total: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        total = total + weight
        fires = total >= PEAK
        total = jnp.where(fires, total - PEAK, total)
        return total, (fires, total)

    _, (fires, left) = lax.scan(add, jnp.zeros_like(total), scaled.T)
    return Running(jnp.cumsum(fires, axis=0, dtype=jnp.int32).T, left.T)
