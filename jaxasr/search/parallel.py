"""Search of a parallel head, which says all tokens of an utterance at once: the best of each, or the n best texts.

Of a stream it says those of one window at once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import LOG_ZERO, ceil_div, length_mask, zero_beyond
from jaxasr.search.beam import best_first, gather, merge_equal, said_hash
from jaxasr.search.hypotheses import Buffers, Emissions, Hypotheses, empty_buffers
from jaxasr.search.protocols import (
    Fired,
    ParallelHead,
    StreamedParallelHead,
    first_maximum,
    is_token,
    penalise_blank,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt32


# Fewer positions than these are all decoded: a second decoder takes longer to compile than it saves.
DECODED_IN_ONE = 128


class ParallelState(NamedTuple):
    """Of each row: what was encoded so far (B, frames, D) float32, and how many frames that is (B,)."""

    encoded: Float[Array, "B frames D"]
    searched: Int[Array, " B"]


class _Said(NamedTuple):
    """What a parallel head says: log-probabilities (B, L, V), of which counts (B,) positions are valid.

    `frames`, `durations` (B, L): the encoded frame of each position, and frames from the one before.
    """

    log_probs: Float[Array, "B L V"]
    counts: Int[Array, " B"]
    frames: Int[Array, "B L"]
    durations: Int[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class ParallelSearch:
    """The n best texts of a parallel head: N = beam.

    Positions are independent of each other, so that the beam keeps the `beam` best of all texts. Those that differ in
    ids that are no tokens only are one, with the sum of their probabilities. The score is the log-probability of all
    positions, those without a token included. `blank_penalty` () is taken off the blank's logit.

    The decoder sees all frames, so that nothing is decoded before `finish`.
    """

    head: ParallelHead
    beam: int = 1
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> ParallelState:
        """Nothing encoded; room for `frames` encoded frames."""
        room = jnp.zeros((batch, frames, self.head.encoder_dim), jnp.float32)
        return ParallelState(room, jnp.zeros((batch,), jnp.int32))

    def step(self, state: ParallelState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> ParallelState:
        """encoded (B, T, D), lengths (B,) in frames. What comes after a row's length is kept until more comes."""
        places = jnp.arange(state.encoded.shape[1]) - state.searched[:, None]  # (B, frames), in the piece
        source = jnp.clip(places, 0, encoded.shape[1] - 1)[..., None]
        new = ((places >= 0) & (places < encoded.shape[1]))[..., None]
        piece = jnp.take_along_axis(encoded.astype(jnp.float32), source, axis=1)
        return ParallelState(jnp.where(new, piece, state.encoded), state.searched + lengths)

    def finish(self, state: ParallelState) -> Hypotheses:
        """The texts found, the best first; a NaN of the network reaches their scores."""
        fired = self.head.fire(*state)
        said = _said(self._decode(fired, state), fired, self.head.blank_id, self.blank_penalty)
        tokens, log_probs, score = _best(said) if self.beam == 1 else _n_best(self, said)
        shape = tokens.shape
        emitted = is_token(tokens, self.head) & length_mask(said.counts, shape[2])[:, None]
        frames, durations = (jnp.broadcast_to(each[:, None], shape) for each in (said.frames, said.durations))
        emissions = Emissions(tokens, frames, durations, log_probs, emitted)
        found = empty_buffers(*shape).append(emissions)
        if fired.steps is not None:
            frames, durations = fired.steps.spans(found.length, shape[2])
            found = found._replace(frames=frames, durations=durations)
        sound = jnp.isfinite(zero_beyond(*state)).all((1, 2))[:, None]
        return best_first(found.scored(jnp.where(sound, score, jnp.nan)), score)

    def _decode(self, fired: Fired, state: ParallelState) -> Float[Array, "B L V"]:
        """The head's logits; where tokens leave half of the positions free, these are not decoded, but zeros.

        There is a position for each frame, which is more than twice as many as speech has tokens.
        """
        size = fired.vectors.shape[1]
        first = ceil_div(size, 2)
        if size < DECODED_IN_ONE:
            return self.head.decode(fired, *state)

        def in_part() -> jax.Array:
            logits = self.head.decode(fired.first(first), *state)
            return jnp.pad(logits, ((0, 0), (0, size - first), (0, 0)))

        logits: jax.Array = lax.cond((fired.counts <= first).all(), in_part, lambda: self.head.decode(fired, *state))
        return logits


class StreamedState(NamedTuple):
    """What a stream has left in the head, and the tokens found that are not settled."""

    head: Any
    found: Buffers


@dataclasses.dataclass(frozen=True)
class StreamedParallelSearch:
    """The best token of each position of a parallel head, window by window. The score sums their log-probabilities."""

    head: StreamedParallelHead
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> StreamedState:
        """Nothing said; room for a token a frame, and for the one that is open before them."""
        return StreamedState(self.head.initial_state(batch), empty_buffers(batch, 1, frames + 1))

    def step(self, state: StreamedState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> StreamedState:
        """A window that does not end the stream: encoded (B, T, D), of which lengths (B,) frames exist."""
        return self._window(state, encoded, lengths, jnp.zeros(lengths.shape, bool))

    def advance(
        self, state: StreamedState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> tuple[StreamedState, Hypotheses]:
        """One window of a stream, as `StreamingSearch` says: all that is said is settled."""
        state = self._window(state, encoded, lengths, final)
        return state._replace(found=state.found.emptied()), self.finish(state)

    def finish(self, state: StreamedState) -> Hypotheses:
        """The tokens found."""
        return state.found.scored(state.found.log_probs.sum(axis=-1))

    def _window(
        self, state: StreamedState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> StreamedState:
        encoded = encoded.astype(jnp.float32)
        head, fired = self.head.fire_step(state.head, encoded, lengths, final)
        head, logits = self.head.decode_step(head, fired, encoded, lengths)
        said = _said(logits, fired, self.head.blank_id, self.blank_penalty)
        tokens, log_probs, _ = _best(said)
        emitted = is_token(tokens, self.head) & length_mask(said.counts, tokens.shape[2])[:, None]
        emissions = Emissions(tokens, said.frames[:, None], said.durations[:, None], log_probs, emitted)
        return StreamedState(head, state.found.append(emissions))


def _said(logits: Float[Array, "B L V"], fired: Fired, blank_id: int, blank_penalty: Float[Array, ""] | float) -> _Said:
    penalised = penalise_blank(logits, blank_id, blank_penalty)
    before = jnp.pad(fired.frames, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return _Said(jax.nn.log_softmax(penalised, axis=-1), fired.counts, fired.frames, fired.frames - before)


def _best(said: _Said) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best id of each position (B, 1, L), its log-probability, and their sum (B, 1)."""
    tokens, best = first_maximum(said.log_probs)
    valid = length_mask(said.counts, tokens.shape[1])
    return tokens[:, None], best[:, None], jnp.where(valid, best, 0.0).sum(axis=-1)[:, None]


def _n_best(search: ParallelSearch, said: _Said) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ids of the beam's texts at each position (B, K, L), their log-probabilities, and the scores (B, K)."""
    batch, positions, vocabulary = said.log_probs.shape
    beam = search.beam
    best, ids = lax.top_k(said.log_probs, min(beam, vocabulary))
    valid = length_mask(said.counts, positions)
    # After the last position the first choice goes on at no cost.
    best = jnp.where(valid[..., None], best, jnp.where(jnp.arange(best.shape[-1]) == 0, 0.0, LOG_ZERO))

    def position(
        carry: tuple[Float[Array, "B K"], UInt32[Array, "B K 2"]], inputs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        score, hashes = carry
        of_choice, choice_ids, here = inputs
        together = (score[..., None] + of_choice[:, None]).reshape(batch, -1)
        score, places = lax.top_k(together, beam)
        parent, choice = places // of_choice.shape[-1], places % of_choice.shape[-1]
        hashes, token = gather(hashes, parent), gather(choice_ids, choice)
        emit = is_token(token, search.head) & here[:, None]
        hashes = jnp.where(emit[..., None], said_hash(hashes, token), hashes)
        return (jnp.maximum(merge_equal(score, hashes), LOG_ZERO), hashes), (parent, choice)

    alone = jnp.where(jnp.arange(beam) == 0, 0.0, LOG_ZERO).astype(jnp.float32)
    start = (jnp.broadcast_to(alone, (batch, beam)), jnp.zeros((batch, beam, 2), jnp.uint32))
    inputs = (best.swapaxes(0, 1), ids.swapaxes(0, 1), valid.T)
    (score, _), (parents, choices) = lax.scan(position, start, inputs)

    def back(at: Int[Array, "B K"], nodes: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return gather(nodes[0], at), gather(nodes[1], at)

    last = jnp.broadcast_to(jnp.arange(beam), (batch, beam))
    _, chosen = lax.scan(back, last, (parents, choices), reverse=True)  # (L, B, K)
    chosen = jnp.moveaxis(chosen, 0, 1)  # (B, L, K)
    tokens, log_probs = (jnp.take_along_axis(each, chosen, axis=-1).swapaxes(1, 2) for each in (ids, best))
    return tokens, log_probs, score
