"""Beam search for transducers, batched and on the device, and a second opinion by a CTC head."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import IMPOSSIBLE, length_mask
from jaxasr.search.greedy import TransducerHead, choose_rows, penalise_blank
from jaxasr.search.hypotheses import Hypotheses, from_frames

# Odd multipliers of two running hashes of 32 bits by which equal token sequences are known.
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


def transducer_beam(
    head: TransducerHead,
    encoded: jax.Array,
    lengths: jax.Array,
    *,
    beam: int,
    context_size: int = 2,
    blank_penalty: jax.Array | float = 0.0,
    silent_ids: tuple[int, ...] = (),
) -> Hypotheses:
    """icefall's modified beam search: encoded (B, T, D), lengths (B,) in frames -> Hypotheses, N = beam, L = T.

    At most one token a frame. Each frame keeps the `beam` best of hypotheses times vocabulary; those that have come to
    say the same are then one, with the sum of their probabilities and the better one's times. Scores are the
    log-probabilities of all alignments found; hypotheses are ranked by score / (tokens + context_size), as icefall and
    sherpa-onnx do, and those of score IMPOSSIBLE are no hypotheses. Other arguments as in `transducer_greedy`.
    """
    batch, frames = encoded.shape[:2]
    projected = head.project(encoded)
    valid = length_mask(lengths, frames)
    offsets = jnp.arange(batch)[:, None] * beam

    def frame(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, ...]]:
        state, score, hashes = carry  # leaves (B * K, ...), (B, K), (B, K, 2)
        projection, in_row = inputs
        logits = penalise_blank(head.join(jnp.repeat(projection, beam, axis=0), state), head.blank_id, blank_penalty)
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(batch, beam, -1)
        vocabulary = log_probs.shape[-1]
        # Behind a row's end every hypothesis goes on as it is.
        best, index = lax.top_k((score[..., None] + log_probs).reshape(batch, -1), beam)
        going = in_row[:, None]
        parent = jnp.where(going, index // vocabulary, jnp.arange(beam))
        token = jnp.where(going, index % vocabulary, head.blank_id)
        emit = going & (token != head.blank_id)
        for silent in silent_ids:
            emit &= token != silent
        log_prob = jnp.take_along_axis(log_probs.reshape(batch, -1), parent * vocabulary + token, axis=1)

        rows = (offsets + parent).reshape(-1)
        state = jax.tree.map(lambda leaf: leaf[rows], state)
        hashes = jnp.take_along_axis(hashes, parent[..., None], axis=1)
        said = hashes * jnp.array(_MULTIPLIERS, jnp.uint32) + token[..., None].astype(jnp.uint32) + 1
        hashes = jnp.where(emit[..., None], said, hashes)
        flat = emit.reshape(-1)
        advanced = lax.cond(flat.any(), lambda: head.advance(state, token.reshape(-1)), lambda: state)
        state = jax.tree.map(functools.partial(choose_rows, flat), advanced, state)
        score = jnp.where(going, _merge(best, hashes), score)
        return (state, score, hashes), (parent, token, log_prob, emit)

    alone = jnp.where(jnp.arange(beam) == 0, 0.0, IMPOSSIBLE).astype(jnp.float32)
    start = (
        head.initial_state(batch * beam),
        jnp.broadcast_to(alone, (batch, beam)),
        jnp.zeros((batch, beam, 2), jnp.uint32),
    )
    (_, score, _), steps = lax.scan(frame, start, (projected.swapaxes(0, 1), valid.T))
    found = from_frames(*_trace_back(steps))._replace(score=score)
    return rank(found, score / (found.length + context_size))


def with_ctc(
    hypotheses: Hypotheses, log_probs: jax.Array, lengths: jax.Array, *, blank_id: int, weight: float
) -> Hypotheses:
    """Rank a transducer's hypotheses by (1 - weight) * score + weight * the CTC head's log-likelihood of each.

    log_probs (B, T, V) of the CTC head, lengths (B,) in frames. The two heads err differently: what a joiner lost
    between two alignments, such as a word said twice, CTC sees (rescoring of Watanabe et al., 2017, "Hybrid
    CTC/Attention Architecture for End-to-End Speech Recognition", section IV-B).
    """
    likelihood = ctc_log_likelihood(log_probs, lengths, hypotheses.tokens, hypotheses.length, blank_id=blank_id)
    both = (1 - weight) * hypotheses.score + weight * likelihood
    score = jnp.where(hypotheses.score < IMPOSSIBLE / 2, IMPOSSIBLE, both)
    return rank(hypotheses._replace(score=score), score)


def ctc_log_likelihood(
    log_probs: jax.Array, lengths: jax.Array, tokens: jax.Array, counts: jax.Array, *, blank_id: int
) -> jax.Array:
    """Log of the sum over all CTC alignments of N texts a row: (B, N) float32.

    log_probs (B, T, V), lengths (B,) in frames; tokens (B, N, U), of which counts (B, N) are valid. Optax' loss does
    the same for one text a row, with arrays (B, T, U) for its gradient.
    """
    batch, number, longest = tokens.shape
    same = jnp.pad(tokens[..., 1:] == tokens[..., :-1], ((0, 0), (0, 0), (1, 0)))
    skip = jnp.where(same, IMPOSSIBLE, 0.0)  # between equal tokens there must be a blank
    valid = length_mask(lengths, log_probs.shape[1])

    def frame(carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        blank, token = carry  # (B, N, U + 1), (B, N, U): log of all ways to end there
        now, in_row = inputs
        of_tokens = jnp.take_along_axis(now, tokens.reshape(batch, -1), axis=1).reshape(tokens.shape)
        before = jnp.pad(token, ((0, 0), (0, 0), (1, 0)), constant_values=IMPOSSIBLE)
        new_blank = jnp.logaddexp(blank, before) + now[:, blank_id, None, None]
        new_token = jnp.logaddexp(jnp.logaddexp(token, blank[..., :-1]), before[..., :-1] + skip) + of_tokens
        going = in_row[:, None, None]
        return (jnp.where(going, new_blank, blank), jnp.where(going, new_token, token)), None

    start = jnp.where(jnp.arange(longest + 1) == 0, 0.0, IMPOSSIBLE).astype(jnp.float32)
    carry = (
        jnp.broadcast_to(start, (batch, number, longest + 1)),
        jnp.full((batch, number, longest), IMPOSSIBLE, jnp.float32),
    )
    (blank, token), _ = lax.scan(frame, carry, (log_probs.swapaxes(0, 1), valid.T))
    token = jnp.pad(token, ((0, 0), (0, 0), (1, 0)), constant_values=IMPOSSIBLE)
    last = counts[..., None]
    return jnp.logaddexp(*(jnp.take_along_axis(each, last, axis=-1)[..., 0] for each in (blank, token)))


def rank(hypotheses: Hypotheses, by: jax.Array) -> Hypotheses:
    """The same hypotheses, those with the highest `by` (B, N) first."""
    order = jnp.argsort(by, axis=1, descending=True, stable=True)
    return jax.tree.map(
        lambda leaf: jnp.take_along_axis(leaf, order.reshape(*order.shape, *(1,) * (leaf.ndim - 2)), axis=1),
        hypotheses,
    )


def _merge(score: jax.Array, hashes: jax.Array) -> jax.Array:
    """Scores (B, K), best first: the first of each group of equal hashes (B, K, 2) takes them all."""
    equal = (hashes[:, :, None] == hashes[:, None]).all(-1)  # (B, K, K)
    first = ~(equal & jnp.tril(jnp.ones(equal.shape[1:], bool), -1)).any(-1)
    together = jax.nn.logsumexp(jnp.where(equal, score[:, None], IMPOSSIBLE), axis=-1)
    return jnp.where(first, together, IMPOSSIBLE)


def _trace_back(steps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Parents, tokens, log-probabilities, emissions (T, B, K) of a search -> the last three (B, K, T) of each path."""

    def back(place: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        parent, *facts = (jnp.take_along_axis(each, place, axis=1) for each in step)
        return parent, tuple(facts)

    ends = jnp.broadcast_to(jnp.arange(steps[0].shape[2]), steps[0].shape[1:])
    _, facts = lax.scan(back, ends, steps, reverse=True)
    return tuple(jnp.moveaxis(each, 0, -1) for each in facts)
