"""Greedy search, batched and on the device: for transducers under `lax.scan`, for CTC by one arg-max."""

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


@dataclasses.dataclass(frozen=True)
class TransducerGreedy:
    """Greedy search of a transducer: N = 1.

    `blank_penalty` () is taken off the blank's logit before the softmax. `max_symbols`: tokens that one frame may
    emit. With 1 every token ends its frame, as in icefall's and sherpa-onnx's search; with more, a frame is left at its
    blank or at the last of them (NeMo's rule). Where the head predicts durations, a token moves on by its own: by 0
    frames it stays, and a blank moves on by one frame at least (TDT, arXiv 2304.06795, with NeMo's batched rules).
    """

    head: TransducerHead
    blank_penalty: Float[Array, ""] | float = 0.0
    max_symbols: int = 1

    def start(self, batch: int, frames: int) -> TransducerState:
        """No token said; room for `max_symbols` tokens a frame."""
        none = jnp.zeros((batch,), jnp.int32)
        room = empty_buffers(batch, 1, frames * self.max_symbols)
        return TransducerState(self.head.initial_state(batch), none, none, room)

    def step(
        self, state: TransducerState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> TransducerState:
        """encoded (B, T, D), lengths (B,) in frames."""
        projected = self.head.project(encoded)
        batch, steps = encoded.shape[:2]
        valid = length_mask(lengths, steps)
        # One token a frame at most, and no frame skipped: the state of the head alone is carried from frame to frame.
        plain = self.max_symbols == 1 and not self.head.durations
        frame = self._one_token if plain else self._several_tokens
        carry, outputs = lax.scan(frame, (state.head, state.skip), (projected.swapaxes(0, 1), valid.T))
        # (T, B) or (T, symbols, B) to (B, 1, T * symbols)
        tokens, durations, log_probs, emitted = (
            jnp.moveaxis(each, -1, 0).reshape(batch, 1, steps * self.max_symbols) for each in outputs
        )
        at = jnp.repeat(jnp.arange(steps, dtype=jnp.int32), self.max_symbols) + state.searched[:, None, None]
        found = state.found.append(Emissions(tokens, at, durations, log_probs, emitted))
        return TransducerState(*carry, state.searched + lengths, found)

    def finish(self, state: TransducerState) -> Hypotheses:
        """The tokens found; the score is the sum of their log-probabilities."""
        return state.found.scored(state.found.log_probs.sum(axis=-1))

    def _one_token(
        self, carry: Any, inputs: tuple[Float[Array, "B J"], Bool[Array, " B"]]
    ) -> tuple[Any, tuple[jax.Array, ...]]:
        (head, skip), (projection, in_row) = carry, inputs
        head, (token, _, log_prob, emit) = self._symbol(head, projection, in_row)
        return (head, skip), (token, jnp.ones_like(token), log_prob, emit)

    def _several_tokens(
        self, carry: Any, inputs: tuple[Float[Array, "B J"], Bool[Array, " B"]]
    ) -> tuple[Any, tuple[jax.Array, ...]]:
        (head, skip), (projection, in_row) = carry, inputs
        batch = skip.shape[0]
        nothing = jnp.zeros((self.max_symbols, batch), jnp.int32)
        outputs = (nothing, nothing, nothing.astype(jnp.float32), nothing.astype(bool))

        def symbol(loop: Any) -> Any:
            number, head, here, onward, outputs = loop
            head, (token, duration, log_prob, emit) = self._symbol(head, projection, here)
            spanned = duration if self.head.durations else jnp.ones_like(duration)
            now = (token, spanned, log_prob, emit)
            outputs = tuple(kept.at[number].set(new) for kept, new in zip(outputs, now, strict=True))
            stays = here & emit & (duration == 0)
            onward = jnp.where(here & ~stays, jnp.maximum(duration, 1), onward)
            return number + 1, head, stays, onward, outputs

        def going(loop: tuple[jax.Array, Any, jax.Array, jax.Array, Any]) -> jax.Array:
            number, _, here, _, _ = loop
            return (number < self.max_symbols) & here.any()

        looking = in_row & (skip == 0)
        loop = (jnp.zeros((), jnp.int32), head, looking, jnp.ones((batch,), jnp.int32), outputs)
        _, head, _, onward, outputs = lax.while_loop(going, symbol, loop)
        # A row that still stays after the last symbol moves on by one frame, as `onward` has it from the beginning.
        skip = jnp.where(looking, onward, skip) - in_row
        return (head, skip), outputs

    def _symbol(
        self, head: Any, projection: Float[Array, "B J"], here: Bool[Array, " B"]
    ) -> tuple[Any, tuple[jax.Array, ...]]:
        """The best token of each row; only the rows that are `here` (B,) emit it.

        Returns the head's state after it, and (token, duration, log-probability, whether it is emitted), each (B,).
        """
        logits = self.head.join(projection, head)
        vocabulary = logits.shape[-1] - len(self.head.durations)
        of_tokens = penalise_blank(logits[:, :vocabulary], self.head.blank_id, self.blank_penalty)
        token, best = first_maximum(of_tokens)
        log_prob = -jnp.log(jnp.exp(of_tokens - best[:, None]).sum(axis=-1))
        emit = here & is_token(token, self.head)
        if self.head.durations:
            choice, _ = first_maximum(logits[:, vocabulary:])
            duration = jnp.asarray(self.head.durations, jnp.int32)[choice]
        else:
            duration = jnp.zeros_like(token)
        advanced = lax.cond(emit.any(), lambda: self.head.advance(head, token), lambda: head)
        head = jax.tree.map(functools.partial(choose_rows, emit), advanced, head)
        return head, (token, duration, log_prob, emit)


class CTCState(NamedTuple):
    """Of each row: the last frame's best id (B,), frames searched (B,), the tokens found."""

    last: Int[Array, " B"]
    searched: Int[Array, " B"]
    found: Buffers


@dataclasses.dataclass(frozen=True)
class CTCGreedy:
    """The best path of a CTC head with repeats merged and blanks removed: N = 1.

    A token's frame is the first of its run. `blank_penalty` () is taken off the blank before renormalising.
    """

    head: CTCHead
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> CTCState:
        """Nothing said, as after a blank; room for a token a frame."""
        blank = jnp.full((batch,), self.head.blank_id, jnp.int32)
        return CTCState(blank, jnp.zeros((batch,), jnp.int32), empty_buffers(batch, 1, frames))

    def step(self, state: CTCState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> CTCState:
        """encoded (B, T, D), lengths (B,) in frames."""
        penalised = penalise_blank(self.head(encoded), self.head.blank_id, self.blank_penalty)
        tokens, best = first_maximum(jax.nn.log_softmax(penalised, axis=-1))
        history = jnp.concatenate([state.last[:, None], tokens], axis=1)
        emitted = (tokens != self.head.blank_id) & (tokens != history[:, :-1]) & length_mask(lengths, tokens.shape[1])
        at = jnp.arange(tokens.shape[1], dtype=jnp.int32) + state.searched[:, None]
        found = Emissions(*(each[:, None] for each in (tokens, at, jnp.ones_like(tokens), best, emitted)))
        last = jnp.take_along_axis(history, lengths[:, None], axis=1)[:, 0]
        return CTCState(last, state.searched + lengths, state.found.append(found))

    def finish(self, state: CTCState) -> Hypotheses:
        """The tokens found; the score is the sum of their log-probabilities."""
        return state.found.scored(state.found.log_probs.sum(axis=-1))
