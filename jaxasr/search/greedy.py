"""Greedy search, batched and on the device: for transducers a loop over tokens, for CTC one arg-max."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import length_mask
from jaxasr.search.hypotheses import Buffers, Emissions, Hypotheses, empty_buffers
from jaxasr.search.protocols import CTCHead, TransducerHead, choose_rows, first_maximum, is_token, penalise_blank

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class TransducerState(NamedTuple):
    """Of each row: what the head remembers, frames still to skip (B,), frames searched (B,), the tokens found."""

    head: Any
    skip: Int[Array, " B"]
    searched: Int[Array, " B"]
    found: Buffers


class _Walk(NamedTuple):
    """Of each row in a piece: what the head remembers, its frame (B,), tokens said there (B,), the tokens found."""

    head: Any
    at: Int[Array, " B"]
    symbols: Int[Array, " B"]
    found: Buffers


@dataclasses.dataclass(frozen=True)
class TransducerGreedy:
    """Greedy search of a transducer: N = 1.

    `blank_penalty` () is taken off the blank's logit before the softmax. A frame is left at its blank, or at the last
    of the head's `max_symbols` tokens (NeMo's rule); with 1 every token ends its frame, as in icefall's and
    sherpa-onnx's search. Where the head predicts durations, a token moves on by its own: by 0 frames it stays, and a
    blank moves on by one frame at least (TDT, arXiv 2304.06795, with the rules of NeMo's strategy greedy_batch).

    Rows go on by themselves: each step of the loop takes some frames of every row from where that row is, follows the
    blanks among them, and says at most one token (label looping, arXiv 2406.06220, with several frames at a time).
    """

    head: TransducerHead
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> TransducerState:
        """No token said; room for `max_symbols` tokens a frame."""
        none = jnp.zeros((batch,), jnp.int32)
        room = empty_buffers(batch, 1, frames * self.head.max_symbols)
        return TransducerState(self.head.initial_state(batch), none, none, room)

    def step(
        self, state: TransducerState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> TransducerState:
        """encoded (B, T, D), lengths (B,) in frames."""
        projected = self.head.project(encoded)

        def going(walk: _Walk) -> Bool[Array, ""]:
            return (walk.at < lengths).any()

        def on(walk: _Walk) -> _Walk:
            return self._say(walk, projected, lengths, state.searched)

        walk = lax.while_loop(going, on, _Walk(state.head, state.skip, jnp.zeros_like(state.skip), state.found))
        return TransducerState(walk.head, walk.at - lengths, state.searched + lengths, walk.found)

    def advance(
        self,
        state: TransducerState,
        encoded: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
        final: Bool[Array, " B"],
    ) -> tuple[TransducerState, Hypotheses]:
        """One piece of a stream, as `StreamingSearch` says: all that is said is settled. It may end anywhere."""
        state = self.step(state, encoded, lengths)
        return state._replace(found=state.found.emptied()), self.finish(state)

    def finish(self, state: TransducerState) -> Hypotheses:
        """The tokens found; the score is the sum of their log-probabilities."""
        return state.found.scored(state.found.log_probs.sum(axis=-1))

    def _say(
        self, walk: _Walk, projected: Float[Array, "B T J"], lengths: Int[Array, " B"], searched: Int[Array, " B"]
    ) -> _Walk:
        """Every row goes on to its next token, or beyond the frames that are looked at together."""
        head, (batch, frames, width) = self.head, projected.shape
        window = frames_together(batch)
        places = jnp.minimum(walk.at[:, None] + jnp.arange(window), frames - 1)
        ahead_of = jnp.take_along_axis(projected, places[..., None], axis=1).reshape(-1, width)
        said = head.join(ahead_of, jax.tree.map(lambda leaf: jnp.repeat(leaf, window, axis=0), walk.head))
        token, duration, log_prob = (each.reshape(batch, window) for each in self._best(said))
        blank = ~is_token(token, head)
        ahead = jnp.zeros_like(walk.at)  # the first frame with a token, or the one after the last blank
        for place in range(window):
            onward = place + jnp.maximum(duration[:, place], 1)
            # What a row has beyond this piece is not blank: its next piece says what stands there.
            within = walk.at + place < lengths
            ahead = jnp.where((ahead == place) & blank[:, place] & within, onward, ahead)
        emit = (ahead < window) & (walk.at + ahead < lengths)
        chosen = jnp.minimum(ahead, window - 1)[:, None]
        token, duration, log_prob = (
            jnp.take_along_axis(each, chosen, axis=1)[:, 0] for each in (token, duration, log_prob)
        )
        at = walk.at + ahead
        symbols = jnp.where(ahead > 0, 0, walk.symbols) + emit
        moved = jnp.where(symbols == head.max_symbols, jnp.maximum(duration, 1), duration)
        spanned = duration if head.durations else jnp.ones_like(duration)
        advanced = lax.cond(emit.any(), lambda: head.advance(walk.head, token), lambda: walk.head)
        return _Walk(
            head=jax.tree.map(functools.partial(choose_rows, emit), advanced, walk.head),
            at=at + jnp.where(emit, moved, 0),
            symbols=jnp.where(emit & (moved > 0), 0, symbols),
            found=walk.found.say(token, at + searched, spanned, log_prob, emit),
        )

    def _best(self, logits: Float[Array, "rows outputs"]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The best token of each row of logits, the frames that it moves on by, its log-probability: each (rows,)."""
        vocabulary = logits.shape[-1] - len(self.head.durations)
        of_tokens = penalise_blank(logits[:, :vocabulary], self.head.blank_id, self.blank_penalty)
        token, best = first_maximum(of_tokens)
        log_prob = -jnp.log(jnp.exp(of_tokens - best[:, None]).sum(axis=-1))
        if not self.head.durations:
            return token, jnp.zeros_like(token), log_prob
        choice, _ = first_maximum(logits[:, vocabulary:])
        return token, jnp.asarray(self.head.durations, jnp.int32)[choice], log_prob


def frames_together(batch: int) -> int:
    """Frames of a row that the joiner sees at once in a batch of so many rows.

    Those after a token were seen in vain. They cost little where the joiner's weights are read from memory for a few
    rows; one row by itself is a product of its own on a CPU, which is faster frame by frame (docs/decisions.md).
    """
    if batch == 1:
        return 1
    return 4 if batch <= 16 else 2


class CTCState(NamedTuple):
    """Of each row: the last frame's best id (B,), frames searched (B,), the tokens found.

    `settled` (B,): the frame of the last token that has left the state as settled, -1 if there is none.
    """

    last: Int[Array, " B"]
    searched: Int[Array, " B"]
    found: Buffers
    settled: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class CTCGreedy:
    """The best path of a CTC head with repeats merged and blanks removed: N = 1.

    A token's frame is the first of its run, unless the head's `token_frames` says otherwise. `blank_penalty` () is
    taken off the blank before renormalising.
    """

    head: CTCHead
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> CTCState:
        """Nothing said, as after a blank; room for a token a frame."""
        blank = jnp.full((batch,), self.head.blank_id, jnp.int32)
        none = jnp.full((batch,), -1, jnp.int32)
        return CTCState(blank, jnp.zeros((batch,), jnp.int32), empty_buffers(batch, 1, frames), none)

    def step(self, state: CTCState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> CTCState:
        """encoded (B, T, D), lengths (B,) in frames."""
        penalised = penalise_blank(self.head(encoded), self.head.blank_id, self.blank_penalty)
        tokens, best = first_maximum(jax.nn.log_softmax(penalised, axis=-1))
        history = jnp.concatenate([state.last[:, None], tokens], axis=1)
        emitted = (tokens != self.head.blank_id) & (tokens != history[:, :-1]) & length_mask(lengths, tokens.shape[1])
        at = jnp.arange(tokens.shape[1], dtype=jnp.int32) + state.searched[:, None]
        found = Emissions(*(each[:, None] for each in (tokens, at, jnp.ones_like(tokens), best, emitted)))
        last = jnp.take_along_axis(history, lengths[:, None], axis=1)[:, 0]
        return CTCState(last, state.searched + lengths, state.found.append(found), state.settled)

    def advance(
        self, state: CTCState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> tuple[CTCState, Hypotheses]:
        """One piece of a stream, as `StreamingSearch` says: all that is said is settled. It may end anywhere."""
        state = self.step(state, encoded, lengths)
        length = state.found.length[:, 0]
        last = jnp.take_along_axis(state.found.frames[:, 0], jnp.maximum(length - 1, 0)[:, None], axis=1)[:, 0]
        settled = jnp.where(length > 0, last, state.settled)
        return state._replace(found=state.found.emptied(), settled=settled), self.finish(state)

    def finish(self, state: CTCState) -> Hypotheses:
        """The tokens found; the score is the sum of their log-probabilities."""
        found = state.found
        if self.head.token_frames == "previous":
            first = jnp.maximum(found.frames[..., :1] - 1, 0)
            first = jnp.where(state.settled[:, None, None] < 0, first, state.settled[:, None, None])
            valid = jnp.arange(found.frames.shape[-1]) < found.length[..., None]
            begins = jnp.where(valid, jnp.concatenate([first, found.frames[..., :-1]], axis=-1), 0)
            found = found._replace(frames=begins, durations=found.frames - begins)
        return found.scored(found.log_probs.sum(axis=-1))
