"""What a search asks of a head, what the other rooms ask of a search, and the steps that searches share."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp

from jaxasr.search.hypotheses import Hypotheses

State = TypeVar("State")


class TransducerHead(Protocol):
    """A transducer, whatever its predictor is made of. Its state is a pytree of arrays with the batch axis first."""

    @property
    def blank_id(self) -> int: ...

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Ids taken for blank: neither emitted nor shown to the predictor."""
        ...

    @property
    def durations(self) -> tuple[int, ...]:
        """Encoded frames that a token may span, in the order of the logits after the vocabulary's; () without any."""
        ...

    @property
    def length_offset(self) -> int:
        """What is added to a hypothesis' number of tokens when scores are divided by lengths."""
        ...

    def project(self, encoded: jax.Array) -> jax.Array:
        """encoded (B, T, D) -> (B, T, J)."""
        ...

    def initial_state(self, batch: int) -> Any:
        """The state of `batch` rows that have said nothing."""
        ...

    def advance(self, state: Any, tokens: jax.Array) -> Any:
        """The state after tokens (B,)."""
        ...

    def join(self, projected: jax.Array, state: Any) -> jax.Array:
        """One projected frame (B, J) with each row's state: logits (B, V + durations) float32."""
        ...


class CTCHead(Protocol):
    """A CTC head: encoded frames to log-probabilities."""

    @property
    def blank_id(self) -> int: ...

    @property
    def vocabulary_size(self) -> int: ...

    def __call__(self, encoded: jax.Array) -> jax.Array:
        """encoded (B, T, D) -> log-probabilities (B, T, V) float32."""
        ...


class Search(Protocol, Generic[State]):
    """A search over encoded frames in one piece or in many: what has been found so far is an explicit state.

    A state is a pytree of arrays with the batch axis first, so that rows can be swapped with `jnp.where`. One step over
    an utterance and several over its pieces give the same hypotheses.
    """

    def start(self, batch: int, frames: int) -> State:
        """The state before the first frame, with room for what `frames` encoded frames can say."""
        ...

    def step(self, state: State, encoded: jax.Array, lengths: jax.Array) -> State:
        """Search one more piece: encoded (B, T, D), of which the first lengths (B,) frames of a row count."""
        ...

    def finish(self, state: State) -> Hypotheses:
        """What has been found, best first; the state may go on afterwards."""
        ...


def search_whole(search: Search[Any], encoded: jax.Array, lengths: jax.Array) -> Hypotheses:
    """The hypotheses of whole utterances: encoded (B, T, D), lengths (B,) in frames."""
    return search.finish(search.step(search.start(*encoded.shape[:2]), encoded, lengths))


def penalise_blank(logits: jax.Array, blank_id: int, penalty: jax.Array | float) -> jax.Array:
    """Logits or log-probabilities (..., V) with the penalty taken off the blank's."""
    return logits - jnp.where(jnp.arange(logits.shape[-1]) == blank_id, penalty, 0.0)


def is_token(tokens: jax.Array, head: TransducerHead) -> jax.Array:
    """Which ids (...) a search emits: neither the blank nor a silent one."""
    emitted = tokens != head.blank_id
    for silent in head.silent_ids:
        emitted &= tokens != silent
    return emitted


def choose_rows(chosen: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Rows of `new` where chosen (B,), rows of `old` elsewhere; both (B, ...)."""
    return jnp.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def first_maximum(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index of the maximum over the last axis, and the maximum: (..., V) -> (...) int32, (...).

    Written as a maximum and a comparison: on CPU this is an order of magnitude faster than `jnp.argmax`.
    """
    best = values.max(axis=-1)
    positions = jnp.arange(values.shape[-1], dtype=jnp.int32)
    # Where nothing compares equal, NaN, the last index keeps the result inside the vocabulary.
    return jnp.where(values == best[..., None], positions, values.shape[-1] - 1).min(axis=-1), best
