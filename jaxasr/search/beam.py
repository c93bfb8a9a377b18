"""Beam search for transducers, batched and on the device, and a second opinion by a CTC head."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import LOG_ZERO, length_mask
from jaxasr.search.hypotheses import Buffers, Emissions, Hypotheses, empty_buffers
from jaxasr.search.protocols import CTCHead, TransducerHead, choose_rows, is_token, penalise_blank

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

# Odd multipliers of two running hashes of 32 bits by which equal token sequences are known.
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


class BeamState(NamedTuple):
    """What is known after some frames.

    Of each hypothesis: what the head remembers (B, K, ...), its score (B, K), hashes of its tokens (B, K, 2). Of each
    row: the frames searched (B,). And the tokens found.
    """

    head: Any
    score: Float[Array, "B K"]
    hashes: UInt32[Array, "B K 2"]
    searched: Int[Array, " B"]
    found: Buffers


@dataclasses.dataclass(frozen=True)
class TransducerBeam:
    """icefall's modified beam search, at most one token a frame: N = beam.

    Each frame keeps the `beam` best of hypotheses times vocabulary; those that have come to say the same are then one,
    with the sum of their probabilities and the better one's times. Scores are the log-probabilities of all alignments
    found; hypotheses are ranked by score / (tokens + the head's length_offset), as icefall and sherpa-onnx do. Those of
    score LOG_ZERO are no hypotheses. `blank_penalty` () is taken off the blank's logit before the softmax.
    """

    head: TransducerHead
    beam: int
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> BeamState:
        """One hypothesis a row that says nothing; room for a token a frame."""
        alone = jnp.where(jnp.arange(self.beam) == 0, 0.0, LOG_ZERO).astype(jnp.float32)
        return BeamState(
            head=jax.tree.map(functools.partial(_by_row, batch=batch), self.head.initial_state(batch * self.beam)),
            score=jnp.broadcast_to(alone, (batch, self.beam)),
            hashes=jnp.zeros((batch, self.beam, 2), jnp.uint32),
            searched=jnp.zeros((batch,), jnp.int32),
            found=empty_buffers(batch, self.beam, frames),
        )

    def step(self, state: BeamState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> BeamState:
        """encoded (B, T, D), lengths (B,) in frames."""
        valid = length_mask(lengths, encoded.shape[1])
        inputs = (self.head.project(encoded).swapaxes(0, 1), valid.T)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state.head)  # (B * K, ...)
        (flat, score, hashes), steps = lax.scan(self._frame, (flat, state.score, state.hashes), inputs)
        head = jax.tree.map(functools.partial(_by_row, batch=encoded.shape[0]), flat)
        ancestor, tokens, log_probs, emitted = _trace_back(steps)
        # Each hypothesis goes on with the tokens of the one that it descends from.
        found = jax.tree.map(functools.partial(_gather, places=ancestor), state.found)
        at = jnp.arange(encoded.shape[1], dtype=jnp.int32) + state.searched[:, None, None]
        at = jnp.broadcast_to(at, tokens.shape)
        found = found.append(Emissions(tokens, at, jnp.ones_like(tokens), log_probs, emitted))
        return BeamState(head, score, hashes, state.searched + lengths, found)

    def finish(self, state: BeamState) -> Hypotheses:
        """The hypotheses kept, ranked."""
        return rank(state.found.scored(state.score), state.score / (state.found.length + self.head.length_offset))

    def _frame(
        self, carry: Any, inputs: tuple[Float[Array, "B J"], Bool[Array, " B"]]
    ) -> tuple[Any, tuple[jax.Array, ...]]:
        (state, score, hashes), (projection, in_row) = carry, inputs
        head, (batch, beam) = self.head, score.shape
        logits = head.join(jnp.repeat(projection, beam, axis=0), state)
        logits = penalise_blank(logits, head.blank_id, self.blank_penalty)
        log_probs = jax.nn.log_softmax(logits, axis=-1).reshape(batch, beam, -1)
        vocabulary = log_probs.shape[-1]
        # After a row's end every hypothesis goes on as it is.
        best, index = lax.top_k((score[..., None] + log_probs).reshape(batch, -1), beam)
        going = in_row[:, None]
        parent = jnp.where(going, index // vocabulary, jnp.arange(beam))
        token = jnp.where(going, index % vocabulary, head.blank_id)
        emit = going & is_token(token, head)
        log_prob = jnp.take_along_axis(log_probs.reshape(batch, -1), parent * vocabulary + token, axis=1)

        rows = (jnp.arange(batch)[:, None] * beam + parent).reshape(-1)
        state = jax.tree.map(lambda leaf: leaf[rows], state)
        hashes = _gather(hashes, parent)
        said = hashes * jnp.array(_MULTIPLIERS, jnp.uint32) + token[..., None].astype(jnp.uint32) + 1
        hashes = jnp.where(emit[..., None], said, hashes)
        flat = emit.reshape(-1)
        advanced = lax.cond(flat.any(), lambda: head.advance(state, token.reshape(-1)), lambda: state)
        state = jax.tree.map(functools.partial(choose_rows, flat), advanced, state)
        score = jnp.where(going, _merge(best, hashes), score)
        return (state, score, hashes), (parent, token, log_prob, emit)


class JointState(NamedTuple):
    """The transducer's search, and the CTC head's log-probabilities (B, frames, V) of what it has searched."""

    beam: BeamState
    log_probs: Float[Array, "B frames V"]


@dataclasses.dataclass(frozen=True)
class JointBeam:
    """A transducer's beam search whose hypotheses are ranked by both heads: N = the beam.

    Ranked by (1 - weight) * score + weight * the CTC head's log-likelihood of each text. The two heads err differently:
    what a joiner lost between two alignments, such as a word said twice, CTC sees (rescoring of Watanabe et al., 2017,
    "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section IV-B).
    """

    transducer: TransducerBeam
    ctc: CTCHead
    weight: float

    def start(self, batch: int, frames: int) -> JointState:
        """As the transducer's search starts; room for the log-probabilities of `frames` frames."""
        log_probs = jnp.zeros((batch, frames, self.ctc.vocabulary_size), jnp.float32)
        return JointState(self.transducer.start(batch, frames), log_probs)

    def step(self, state: JointState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> JointState:
        """encoded (B, T, D), lengths (B,) in frames."""
        piece = self.ctc(encoded)
        places = jnp.arange(state.log_probs.shape[1]) - state.beam.searched[:, None]  # (B, frames), in the piece
        source = jnp.clip(places, 0, piece.shape[1] - 1)[..., None]
        new = ((places >= 0) & (places < lengths[:, None]))[..., None]
        log_probs = jnp.where(new, jnp.take_along_axis(piece, source, axis=1), state.log_probs)
        return JointState(self.transducer.step(state.beam, encoded, lengths), log_probs)

    def finish(self, state: JointState) -> Hypotheses:
        """The transducer's hypotheses, ranked by both heads; the score is the weighted sum."""
        found = self.transducer.finish(state.beam)
        likelihood = ctc_log_likelihood(
            state.log_probs, state.beam.searched, found.tokens, found.length, blank_id=self.ctc.blank_id
        )
        both = (1 - self.weight) * found.score + self.weight * likelihood
        score = jnp.where(found.score < LOG_ZERO / 2, LOG_ZERO, both)
        return rank(found._replace(score=score), score)


def ctc_log_likelihood(
    log_probs: Float[Array, "B T V"],
    lengths: Int[Array, " B"],
    tokens: Int[Array, "B N U"],
    counts: Int[Array, "B N"],
    *,
    blank_id: int,
) -> Float[Array, "B N"]:
    """Log of the sum over all CTC alignments of N texts a row: (B, N) float32.

    log_probs (B, T, V), lengths (B,) in frames; tokens (B, N, U), of which counts (B, N) are valid. Optax' loss does
    the same for one text a row, with arrays (B, T, U) for its gradient.
    """
    batch, number, longest = tokens.shape
    same = jnp.pad(tokens[..., 1:] == tokens[..., :-1], ((0, 0), (0, 0), (1, 0)))
    skip = jnp.where(same, LOG_ZERO, 0.0)  # between equal tokens there must be a blank
    valid = length_mask(lengths, log_probs.shape[1])

    def frame(carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        blank, token = carry  # (B, N, U + 1), (B, N, U): log of all ways to end there
        now, in_row = inputs
        of_tokens = jnp.take_along_axis(now, tokens.reshape(batch, -1), axis=1).reshape(tokens.shape)
        before = jnp.pad(token, ((0, 0), (0, 0), (1, 0)), constant_values=LOG_ZERO)
        new_blank = jnp.logaddexp(blank, before) + now[:, blank_id, None, None]
        new_token = jnp.logaddexp(jnp.logaddexp(token, blank[..., :-1]), before[..., :-1] + skip) + of_tokens
        going = in_row[:, None, None]
        return (jnp.where(going, new_blank, blank), jnp.where(going, new_token, token)), None

    start = jnp.where(jnp.arange(longest + 1) == 0, 0.0, LOG_ZERO).astype(jnp.float32)
    carry = (
        jnp.broadcast_to(start, (batch, number, longest + 1)),
        jnp.full((batch, number, longest), LOG_ZERO, jnp.float32),
    )
    (blank, token), _ = lax.scan(frame, carry, (log_probs.swapaxes(0, 1), valid.T))
    token = jnp.pad(token, ((0, 0), (0, 0), (1, 0)), constant_values=LOG_ZERO)
    last = counts[..., None]
    return jnp.logaddexp(*(jnp.take_along_axis(each, last, axis=-1)[..., 0] for each in (blank, token)))


def rank(hypotheses: Hypotheses, by: Float[Array, "B N"]) -> Hypotheses:
    """The same hypotheses, those with the highest `by` (B, N) first."""
    order = jnp.argsort(by, axis=1, descending=True, stable=True)
    return Hypotheses(*(_gather(leaf, order) for leaf in hypotheses))


def _by_row(leaf: Shaped[Array, "BK ..."], batch: int) -> Shaped[Array, "{batch} K ..."]:
    """A leaf of all hypotheses, row after row, with an axis for the rows."""
    return leaf.reshape(batch, -1, *leaf.shape[1:])


def _gather(leaf: Shaped[Array, "B K ..."], places: Int[Array, "B N"]) -> Shaped[Array, "B N ..."]:
    """Hypotheses of each row by their places (B, N): leaf (B, K, ...) -> (B, N, ...)."""
    return jnp.take_along_axis(leaf, places.reshape(*places.shape, *(1,) * (leaf.ndim - 2)), axis=1)


def _merge(score: Float[Array, "B K"], hashes: UInt32[Array, "B K 2"]) -> Float[Array, "B K"]:
    """Scores (B, K), best first: the first of each group of equal hashes (B, K, 2) takes them all."""
    equal = (hashes[:, :, None] == hashes[:, None]).all(-1)  # (B, K, K)
    first = ~(equal & jnp.tril(jnp.ones(equal.shape[1:], bool), -1)).any(-1)
    together = jax.nn.logsumexp(jnp.where(equal, score[:, None], LOG_ZERO), axis=-1)
    return jnp.where(first, together, LOG_ZERO)


def _trace_back(steps: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Parents, tokens, log-probabilities, emissions (T, B, K) of a search -> the path of each hypothesis.

    That is its place before the first frame (B, K), then the last three along its path, (B, K, T).
    """

    def back(place: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        parent, *facts = (jnp.take_along_axis(each, place, axis=1) for each in step)
        return parent, tuple(facts)

    ends = jnp.broadcast_to(jnp.arange(steps[0].shape[2]), steps[0].shape[1:])
    ancestor, facts = lax.scan(back, ends, steps, reverse=True)
    return ancestor, *(jnp.moveaxis(each, 0, -1) for each in facts)
