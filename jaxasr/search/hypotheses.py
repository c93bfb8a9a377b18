"""What every search returns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Hypotheses(NamedTuple):
    """Token sequences of a batch as arrays of fixed shape; the n-best axis N is second, the best first.

    tokens, frames, durations (B, N, L) int32: ids, the encoded frame each was emitted at, encoded frames it spans.
    log_probs (B, N, L) float32: of each token under the search's softmax at temperature 1. length (B, N) int32: how
    many are valid. score (B, N) float32: of greedy searches the sum of the valid log_probs; others say what theirs is.
    """

    tokens: jax.Array
    frames: jax.Array
    durations: jax.Array
    log_probs: jax.Array
    length: jax.Array
    score: jax.Array


def from_frames(tokens: jax.Array, log_probs: jax.Array, emitted: jax.Array) -> Hypotheses:
    """Hypotheses of at most one token a frame: tokens, log_probs, emitted (bool), all (B, N, T)."""
    length = emitted.sum(axis=-1, dtype=jnp.int32)
    # A stable sort brings the emitting frames to the front in their order.
    order = jnp.argsort(~emitted, axis=-1, stable=True).astype(jnp.int32)
    valid = jnp.arange(tokens.shape[-1]) < length[..., None]
    probs = jnp.where(valid, jnp.take_along_axis(log_probs, order, axis=-1), 0.0)
    return Hypotheses(
        tokens=jnp.where(valid, jnp.take_along_axis(tokens, order, axis=-1), 0).astype(jnp.int32),
        frames=jnp.where(valid, order, 0),
        durations=valid.astype(jnp.int32),
        log_probs=probs,
        length=length,
        score=probs.sum(axis=-1),
    )
