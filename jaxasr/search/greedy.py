"""Greedy search, batched and on the device: for transducers under `lax.scan`, for CTC by one arg-max."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import length_mask
from jaxasr.search.hypotheses import Hypotheses, from_frames


class TransducerHead(Protocol):
    """What a search needs of a transducer, whatever its predictor is made of."""

    @property
    def blank_id(self) -> int: ...

    def project(self, encoded: jax.Array) -> jax.Array: ...

    def initial_state(self, batch: int) -> Any: ...

    def advance(self, state: Any, tokens: jax.Array) -> Any: ...

    def join(self, projected: jax.Array, state: Any) -> jax.Array: ...


def transducer_greedy(
    head: TransducerHead,
    encoded: jax.Array,
    lengths: jax.Array,
    *,
    blank_penalty: jax.Array | float = 0.0,
    silent_ids: tuple[int, ...] = (),
) -> Hypotheses:
    """At most one token a frame: encoded (B, T, D), lengths (B,) in frames -> Hypotheses with N = 1, L = T.

    `blank_penalty` is taken off the blank's logit before the softmax. `silent_ids` are taken for blank: neither
    emitted nor shown to the predictor (sherpa-onnx treats <unk> so; icefall's own search does not).
    """
    projected = head.project(encoded)
    valid = length_mask(lengths, encoded.shape[1])

    def frame(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, ...]]:
        projection, in_row = inputs
        logits = head.join(projection, state)
        logits = penalise_blank(logits, head.blank_id, blank_penalty)
        token, best = first_maximum(logits)
        log_prob = -jnp.log(jnp.exp(logits - best[:, None]).sum(axis=-1))
        emit = in_row & (token != head.blank_id)
        for silent in silent_ids:
            emit &= token != silent
        advanced = lax.cond(emit.any(), lambda: head.advance(state, token), lambda: state)
        state = jax.tree.map(functools.partial(choose_rows, emit), advanced, state)
        return state, (token, log_prob, emit)

    _, outputs = lax.scan(frame, head.initial_state(encoded.shape[0]), (projected.swapaxes(0, 1), valid.T))
    tokens, log_probs, emitted = (each.T[:, None] for each in outputs)  # (B, 1, T)
    return from_frames(tokens, log_probs, emitted)


def ctc_greedy(
    log_probs: jax.Array,
    lengths: jax.Array,
    *,
    blank_id: int,
    blank_penalty: jax.Array | float = 0.0,
) -> Hypotheses:
    """Best path with repeats merged and blanks removed: log_probs (B, T, V), lengths (B,) -> Hypotheses, N = 1, L = T.

    A token's frame is the first of its run. `blank_penalty` is taken off the blank before renormalising.
    """
    log_probs = jax.nn.log_softmax(penalise_blank(log_probs, blank_id, blank_penalty), axis=-1)
    tokens, best = first_maximum(log_probs)
    previous = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=blank_id)[:, :-1]
    emitted = (tokens != blank_id) & (tokens != previous) & length_mask(lengths, tokens.shape[1])
    return from_frames(tokens[:, None], best[:, None], emitted[:, None])


def penalise_blank(logits: jax.Array, blank_id: int, penalty: jax.Array | float) -> jax.Array:
    """Logits or log-probabilities (..., V) with the penalty taken off the blank's."""
    return logits - jnp.where(jnp.arange(logits.shape[-1]) == blank_id, penalty, 0.0)


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
