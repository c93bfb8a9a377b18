"""What every search returns, and the buffers that it fills on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped


class Hypotheses(NamedTuple):
    """Token sequences of a batch as arrays of fixed shape; the n-best axis N is second, the best first.

    tokens, frames, durations (B, N, L) int32: ids, the encoded frame each was emitted at, encoded frames it spans;
    parts of frames where the head's configuration says so (`ModelConfig.seconds_per_step`).
    log_probs (B, N, L) float32: of each token under the search's softmax at temperature 1. length (B, N) int32: how
    many are valid. score (B, N) float32: of greedy searches the sum of the valid log_probs; others say what theirs is.
    """

    tokens: Int[Array, "B N L"]
    frames: Int[Array, "B N L"]
    durations: Int[Array, "B N L"]
    log_probs: Float[Array, "B N L"]
    length: Int[Array, "B N"]
    score: Float[Array, "B N"]


class Buffers(NamedTuple):
    """Tokens found so far: arrays (B, N, L) as in `Hypotheses`, zero after length (B, N)."""

    tokens: Int[Array, "B N L"]
    frames: Int[Array, "B N L"]
    durations: Int[Array, "B N L"]
    log_probs: Float[Array, "B N L"]
    length: Int[Array, "B N"]

    def append(self, found: Emissions) -> Buffers:
        """The buffers with what was emitted at the end of each row; tokens beyond their size are dropped."""
        # A stable sort brings the emissions to the front in their order.
        order = jnp.argsort(~found.emitted, axis=-1, stable=True).astype(jnp.int32)
        length = self.length + found.emitted.sum(axis=-1, dtype=jnp.int32)
        places = jnp.arange(self.tokens.shape[-1]) - self.length[..., None]  # (B, N, L), of an emission in its row
        source = jnp.take_along_axis(order, jnp.clip(places, 0, order.shape[-1] - 1), axis=-1)
        new = (places >= 0) & (places < (length - self.length)[..., None])

        def appended(old: Shaped[Array, "B N L"], values: Shaped[Array, "B N E"]) -> Shaped[Array, "B N L"]:
            return jnp.where(new, jnp.take_along_axis(values, source, axis=-1).astype(old.dtype), old)

        return Buffers(
            tokens=appended(self.tokens, found.tokens),
            frames=appended(self.frames, found.frames),
            durations=appended(self.durations, found.durations),
            log_probs=appended(self.log_probs, found.log_probs),
            length=jnp.minimum(length, self.tokens.shape[-1]),
        )

    def say(
        self,
        token: Int[Array, " B"],
        frame: Int[Array, " B"],
        duration: Int[Array, " B"],
        log_prob: Float[Array, " B"],
        emit: Bool[Array, " B"],
    ) -> Buffers:
        """The buffers of one hypothesis a row with one token more where `emit`; beyond their size it is dropped."""
        size = self.tokens.shape[-1]
        rows, place = jnp.arange(token.shape[0]), jnp.where(emit, self.length[:, 0], size)

        def put(old: Shaped[Array, "B 1 L"], values: Shaped[Array, " B"]) -> Shaped[Array, "B 1 L"]:
            return old.at[rows, 0, place].set(values.astype(old.dtype), mode="drop")

        return Buffers(
            tokens=put(self.tokens, token),
            frames=put(self.frames, frame),
            durations=put(self.durations, duration),
            log_probs=put(self.log_probs, log_prob),
            length=jnp.minimum(self.length + emit[:, None], size),
        )

    def emptied(self) -> Buffers:
        """Buffers of the same size with nothing in them."""
        return Buffers(*map(jnp.zeros_like, self))

    def without_first(self, count: Int[Array, " B"]) -> Buffers:
        """The buffers without the first count (B,) tokens of each hypothesis; shorter ones are empty."""
        length = jnp.maximum(self.length - count[:, None], 0)
        places = jnp.arange(self.tokens.shape[-1]) + count[:, None, None]
        left = jnp.arange(self.tokens.shape[-1]) < length[..., None]

        def shifted(values: Shaped[Array, "B N L"]) -> Shaped[Array, "B N L"]:
            return jnp.where(left, jnp.take_along_axis(values, places, axis=-1, mode="clip"), 0)

        return Buffers(
            tokens=shifted(self.tokens),
            frames=shifted(self.frames),
            durations=shifted(self.durations),
            log_probs=shifted(self.log_probs),
            length=length,
        )

    def scored(self, score: Float[Array, "B N"]) -> Hypotheses:
        """Hypotheses of these tokens with a score (B, N)."""
        return Hypotheses(*self, score=score)


class Emissions(NamedTuple):
    """What a piece of an utterance said, in the order of its frames: arrays (B, N, E), of which `emitted` count."""

    tokens: Int[Array, "B N E"]
    frames: Int[Array, "B N E"]
    durations: Int[Array, "B N E"]
    log_probs: Float[Array, "B N E"]
    emitted: Bool[Array, "B N E"]


def empty_buffers(batch: int, number: int, size: int) -> Buffers:
    """Buffers of `size` tokens for `number` hypotheses a row, with nothing in them."""
    zeros = jnp.zeros((batch, number, size), jnp.int32)
    log_probs = jnp.zeros(zeros.shape, jnp.float32)
    return Buffers(zeros, zeros, zeros, log_probs, jnp.zeros((batch, number), jnp.int32))
