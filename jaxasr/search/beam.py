"""Beam search for transducers, batched and on the device, and a second opinion by a CTC head."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import LOG_ZERO, length_mask
from jaxasr.search.hypotheses import Buffers, Hypotheses, empty_buffers
from jaxasr.search.protocols import CTCHead, TransducerHead, choose_rows, is_token, penalise_blank

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

# Odd multipliers of two running hashes of 32 bits by which equal token sequences are known.
_MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)


class BeamState(NamedTuple):
    """What is known after some frames.

    Of each hypothesis: what the head remembers (B, K, ...), its score (B, K), hashes of its tokens (B, K, 2), frames
    still to skip (B, K). Of each row: the frames searched (B,). And the tokens found.
    `settled` (B,): tokens that all hypotheses began with, and that have left the state.
    """

    head: Any
    score: Float[Array, "B K"]
    hashes: UInt32[Array, "B K 2"]
    skip: Int[Array, "B K"]
    searched: Int[Array, " B"]
    found: Buffers
    settled: Int[Array, " B"]


class _Pool(NamedTuple):
    """Hypotheses within a piece: as in BeamState, with their number of tokens (B, K), and the last one's node (B, K).

    A hypothesis that has said nothing in the piece has the node -1 - its place before the piece.
    """

    head: Any
    score: Float[Array, "B K"]
    hashes: UInt32[Array, "B K 2"]
    skip: Int[Array, "B K"]
    length: Int[Array, "B K"]
    node: Int[Array, "B K"]


class _Nodes(NamedTuple):
    """Tokens that hypotheses came to say, and the nodes before them: arrays (..., B, 2 K), a slot for each."""

    before: Int[Array, "*steps B 2K"]
    token: Int[Array, "*steps B 2K"]
    duration: Int[Array, "*steps B 2K"]
    log_prob: Float[Array, "*steps B 2K"]


class _Options(NamedTuple):
    """How hypotheses may go on: arrays (B, K * choices) of what each choice says and costs.

    `parent`: the place of the hypothesis; `move`: frames that it moves on by; `emit`: whether it says `token`.
    """

    parent: Int[Array, "B options"]
    score: Float[Array, "B options"]
    token: Int[Array, "B options"]
    move: Int[Array, "B options"]
    duration: Int[Array, "B options"]
    log_prob: Float[Array, "B options"]
    emit: Bool[Array, "B options"]


@dataclasses.dataclass(frozen=True)
class TransducerBeam:
    """Time-synchronous beam search: N = beam.

    At each frame the `beam` best hypotheses that have left it are kept, and the `beam` best that stay there and say
    more, for as long as one of these is better than the last of those, and up to the head's `max_symbols` tokens (Saon
    et al., 2020, "Alignment-length synchronous decoding for RNN transducer", time-synchronous decoding). With
    `max_symbols` 1 every token leaves its frame, and this is icefall's modified beam search. Where the head predicts
    durations, a choice is a token with a duration; hypotheses that have jumped beyond a frame wait, and a blank has no
    duration of 0 (TDT, arXiv 2304.06795).

    Hypotheses that have come to say the same at one frame are then one, with the sum of their probabilities and the
    better one's times. Scores are the log-probabilities of all alignments found; hypotheses are ordered by score /
    (tokens + the head's length_offset), as icefall, sherpa-onnx and NeMo do. Those of score LOG_ZERO are no hypotheses.
    `blank_penalty` () is taken off the blank's logit before the softmax.
    """

    head: TransducerHead
    beam: int
    blank_penalty: Float[Array, ""] | float = 0.0

    def start(self, batch: int, frames: int) -> BeamState:
        """One hypothesis a row that says nothing; room for the head's `max_symbols` tokens a frame."""
        alone = jnp.where(jnp.arange(self.beam) == 0, 0.0, LOG_ZERO).astype(jnp.float32)
        return BeamState(
            head=jax.tree.map(functools.partial(_by_row, batch=batch), self.head.initial_state(batch * self.beam)),
            score=jnp.broadcast_to(alone, (batch, self.beam)),
            hashes=jnp.zeros((batch, self.beam, 2), jnp.uint32),
            skip=jnp.zeros((batch, self.beam), jnp.int32),
            searched=jnp.zeros((batch,), jnp.int32),
            found=empty_buffers(batch, self.beam, frames * self.head.max_symbols),
            settled=jnp.zeros((batch,), jnp.int32),
        )

    def step(self, state: BeamState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> BeamState:
        """encoded (B, T, D), lengths (B,) in frames."""
        batch, frames = encoded.shape[:2]
        valid = length_mask(lengths, frames)
        places = jnp.broadcast_to(-1 - jnp.arange(self.beam, dtype=jnp.int32), (batch, self.beam))
        pool = _Pool(state.head, state.score, state.hashes, state.skip, state.found.length, places)
        inputs = (jnp.arange(frames, dtype=jnp.int32), self.head.project(encoded).swapaxes(0, 1), valid.T)
        pool, nodes = lax.scan(self._frame, pool, inputs)
        found = _trace_back(pool, nodes, state.found, state.searched)
        return BeamState(pool.head, pool.score, pool.hashes, pool.skip, state.searched + lengths, found, state.settled)

    def advance(
        self, state: BeamState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> tuple[BeamState, Hypotheses]:
        """One piece of a stream, as `StreamingSearch` says: what all hypotheses begin with is settled.

        This changes no result. Where they disagree for so long that another such piece might not find room, the best
        one is settled whole, and those that do not go on from it are dropped.
        """
        state = self.step(state, encoded, lengths)
        found, best = state.found, self.finish(state)
        places = jnp.arange(found.tokens.shape[-1])
        alive = ~(state.score < LOG_ZERO / 2)  # asked so that NaN is
        equal = (
            (found.tokens == best.tokens[:, :1])
            & (found.frames == best.frames[:, :1])
            & (found.durations == best.durations[:, :1])
            & (places < jnp.minimum(found.length, best.length[:, :1])[..., None])
        )  # (B, K, L)
        shared = jnp.cumprod(equal, axis=-1).sum(axis=-1, dtype=jnp.int32)  # (B, K)
        longest = jnp.where(alive, found.length, 0).max(axis=1)
        full = longest + encoded.shape[1] * self.head.max_symbols > len(places)
        common = jnp.where(alive, shared, len(places)).min(axis=1)
        count = jnp.where(full, best.length[:, 0], jnp.minimum(common, best.length[:, 0]))
        settled = Hypotheses(*(leaf[:, :1] for leaf in best))._replace(length=count[:, None])
        state = state._replace(
            score=jnp.where(alive & (shared < count[:, None]), LOG_ZERO, state.score),
            found=found.without_first(count),
            settled=state.settled + count,
        )
        return state, settled

    def finish(self, state: BeamState) -> Hypotheses:
        """The hypotheses kept, best first; those that say the same, and were to go on at different frames, as one."""
        order = jnp.argsort(state.score, axis=1, descending=True, stable=True)
        score = merge_equal(gather(state.score, order), gather(state.hashes, order))
        found = Buffers(*(gather(leaf, order) for leaf in state.found))
        length = found.length + state.settled[:, None] + self.head.length_offset
        return best_first(found.scored(score), score / length)

    def _frame(
        self, pool: _Pool, inputs: tuple[Int[Array, ""], Float[Array, "B J"], Bool[Array, " B"]]
    ) -> tuple[_Pool, _Nodes]:
        """The hypotheses after one frame, and the nodes (max_symbols, B, 2 K) of what was said at it."""
        number, projection, in_row = inputs
        batch, beam = pool.score.shape
        here = in_row[:, None] & (pool.skip == 0)
        waiting = pool._replace(score=jnp.where(here, LOG_ZERO, pool.score))
        staying = pool._replace(score=jnp.where(here, pool.score, LOG_ZERO))
        nothing = jnp.zeros((self.head.max_symbols, batch, 2 * beam), jnp.int32)
        nodes = _Nodes(nothing, nothing, nothing, nothing.astype(jnp.float32))

        def going(loop: tuple[Int[Array, ""], _Pool, _Pool, _Nodes]) -> Bool[Array, ""]:
            said, _, staying, _ = loop
            # Asked so that NaN goes on.
            return (said < self.head.max_symbols) & ~(staying.score < LOG_ZERO / 2).all()

        def say(loop: tuple[Int[Array, ""], _Pool, _Pool, _Nodes]) -> tuple[Int[Array, ""], _Pool, _Pool, _Nodes]:
            said, left, staying, nodes = loop
            options = self._options(staying, projection, said == self.head.max_symbols - 1)
            first_node = (number * self.head.max_symbols + said) * 2 * beam
            left, leaving = self._choose(options, options.move > 0, staying, left, first_node)
            staying, more = self._choose(options, options.move == 0, staying, None, first_node + beam)
            # A score only ever falls: what is worse than all that have left would not be kept.
            kept = staying.score > left.score.min(axis=1, keepdims=True)
            staying = staying._replace(score=jnp.where(kept, staying.score, LOG_ZERO))
            both = (jnp.concatenate(pair, axis=1) for pair in zip(leaving, more, strict=True))
            nodes = _Nodes(*(whole.at[said].set(new) for whole, new in zip(nodes, both, strict=True)))
            return said + 1, left, staying, nodes

        _, pool, _, nodes = lax.while_loop(going, say, (jnp.zeros((), jnp.int32), waiting, staying, nodes))
        return pool._replace(skip=pool.skip - in_row[:, None]), nodes

    def _options(self, pool: _Pool, projection: Float[Array, "B J"], last: Bool[Array, ""]) -> _Options:
        """What each hypothesis may say at a frame: its best tokens, or nothing. After the `last` one it moves on."""
        head, (batch, beam) = self.head, pool.score.shape
        state = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), pool.head)
        logits = head.join(jnp.repeat(projection, beam, axis=0), state).reshape(batch, beam, -1)
        vocabulary = logits.shape[-1] - len(head.durations)
        of_tokens = penalise_blank(logits[..., :vocabulary], head.blank_id, self.blank_penalty)
        # The `beam` best of all options are among the best tokens of each hypothesis, and the ways to say nothing.
        spoken = is_token(jnp.arange(vocabulary, dtype=jnp.int32), head)
        best, best_ids = lax.top_k(jnp.where(spoken, of_tokens, LOG_ZERO), min(beam, vocabulary))
        silent = jnp.array([head.blank_id, *head.silent_ids], jnp.int32)
        token = jnp.concatenate([best_ids, jnp.broadcast_to(silent, (batch, beam, len(silent)))], axis=-1)
        log_prob = jnp.concatenate([best, of_tokens[..., silent]], axis=-1)
        log_prob -= jax.nn.logsumexp(of_tokens, axis=-1, keepdims=True)
        emit = is_token(token, head)[..., None]  # (B, K, choices, 1)
        if head.durations:
            duration = jnp.array(head.durations, jnp.int32)
            of_durations = jax.nn.log_softmax(logits[..., vocabulary:], axis=-1)[:, :, None]  # (B, K, 1, durations)
            score = jnp.where(emit | (duration > 0), log_prob[..., None] + of_durations, LOG_ZERO)
            move = jnp.maximum(duration, jnp.where(emit & ~last, 0, 1))
        else:
            duration, score = jnp.ones((1,), jnp.int32), log_prob[..., None]
            move = jnp.where(emit & ~last, 0, 1)
        # What is no hypothesis here may have looked at the padding after a row, where anything stands.
        so_far = pool.score[..., None, None]
        score = jnp.where(so_far < LOG_ZERO / 2, LOG_ZERO, so_far + score)
        parent = jnp.arange(beam, dtype=jnp.int32)[:, None, None]
        each = (parent, score, token[..., None], move, duration, log_prob[..., None], emit)
        return _Options(*(jnp.broadcast_to(one, score.shape).reshape(batch, -1) for one in each))

    def _choose(
        self,
        options: _Options,
        possible: Bool[Array, "B options"],
        before: _Pool,
        others: _Pool | None,
        first_node: Int[Array, ""],
    ) -> tuple[_Pool, _Nodes]:
        """The best of `others` and of the `possible` options of the hypotheses `before`, with equal ones merged.

        Returns them, and the nodes (B, K) of what they say, which are numbered from `first_node` on.
        """
        score = jnp.where(possible, options.score, LOG_ZERO)
        if others is not None:  # those come first, with their places as parents, and say nothing
            score = jnp.concatenate([others.score, score], axis=1)
            before = jax.tree.map(lambda *pools: jnp.concatenate(pools, axis=1), others, before)
            options = _beside(options, others)
        # NaN comes first, so that it reaches the scores that are looked at in the end.
        _, index = lax.top_k(jnp.where(jnp.isnan(score), jnp.inf, score), self.beam)
        best = gather(score, index)
        parent, _, token, move, duration, log_prob, emit = (gather(leaf, index) for leaf in options)
        pool: _Pool = jax.tree.map(functools.partial(gather, places=parent), before)
        hashes = jnp.where(emit[..., None], said_hash(pool.hashes, token), pool.hashes)
        nodes = _Nodes(pool.node, token, duration, log_prob)
        skip = pool.skip + move
        at_one_frame = jnp.concatenate([hashes, skip[..., None].astype(jnp.uint32)], axis=-1)
        return _Pool(
            head=self._advance(pool.head, token, emit),
            score=merge_equal(best, at_one_frame),
            hashes=hashes,
            skip=skip,
            length=pool.length + emit,
            node=jnp.where(emit, first_node + jnp.arange(self.beam, dtype=jnp.int32), pool.node),
        ), nodes

    def _advance(self, state: Any, token: Int[Array, "B K"], emit: Bool[Array, "B K"]) -> Any:
        """What the head remembers of each hypothesis (B, K, ...) after its token where it says one."""
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state)
        said = emit.reshape(-1)
        advanced = lax.cond(said.any(), lambda: self.head.advance(flat, token.reshape(-1)), lambda: flat)
        chosen = jax.tree.map(functools.partial(choose_rows, said), advanced, flat)
        return jax.tree.map(functools.partial(_by_row, batch=token.shape[0]), chosen)


class JointState(NamedTuple):
    """The transducer's search, and the CTC head's log-probabilities (B, frames, V) of what it has searched."""

    beam: BeamState
    log_probs: Float[Array, "B frames V"]


@dataclasses.dataclass(frozen=True)
class JointBeam:
    """A transducer's beam search whose hypotheses are scored by both heads: N = the beam.

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
        """The transducer's hypotheses, best first by both heads; the score is the weighted sum."""
        found = self.transducer.finish(state.beam)
        likelihood = ctc_log_likelihood(
            state.log_probs, state.beam.searched, found.tokens, found.length, blank_id=self.ctc.blank_id
        )
        both = (1 - self.weight) * found.score + self.weight * likelihood
        score = jnp.where(found.score < LOG_ZERO / 2, LOG_ZERO, both)
        return best_first(found._replace(score=score), score)


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


def best_first(hypotheses: Hypotheses, by: Float[Array, "B N"]) -> Hypotheses:
    """The same hypotheses, those with the highest `by` (B, N) first."""
    order = jnp.argsort(by, axis=1, descending=True, stable=True)
    return Hypotheses(*(gather(leaf, order) for leaf in hypotheses))


def said_hash(hashes: UInt32[Array, "B K 2"], token: Int[Array, "B K"]) -> UInt32[Array, "B K 2"]:
    """The hashes of hypotheses (B, K, 2) after one token more each."""
    return hashes * jnp.array(_MULTIPLIERS, jnp.uint32) + token[..., None].astype(jnp.uint32) + 1


def _by_row(leaf: Shaped[Array, "BK ..."], batch: int) -> Shaped[Array, "{batch} K ..."]:
    """A leaf of all hypotheses, row after row, with an axis for the rows."""
    return leaf.reshape(batch, -1, *leaf.shape[1:])


def gather(leaf: Shaped[Array, "B K ..."], places: Int[Array, "B N"]) -> Shaped[Array, "B N ..."]:
    """Hypotheses of each row by their places (B, N): leaf (B, K, ...) -> (B, N, ...)."""
    return jnp.take_along_axis(leaf, places.reshape(*places.shape, *(1,) * (leaf.ndim - 2)), axis=1)


def merge_equal(score: Float[Array, "B K"], marks: UInt32[Array, "B K marks"]) -> Float[Array, "B K"]:
    """Scores (B, K), best first: the first of each group of equal marks (B, K, marks) takes them all."""
    equal = (marks[:, :, None] == marks[:, None]).all(-1)  # (B, K, K)
    first = ~(equal & jnp.tril(jnp.ones(equal.shape[1:], bool), -1)).any(-1)
    together = jax.nn.logsumexp(jnp.where(equal, score[:, None], LOG_ZERO), axis=-1)
    return jnp.where(first, together, LOG_ZERO)


def _beside(options: _Options, others: _Pool) -> _Options:
    """Options (B, others + options) of which the first are to go on as they are; the other parents come after them."""
    none = jnp.zeros(others.score.shape, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(none.shape[1], dtype=jnp.int32), none.shape)
    stay = _Options(places, others.score, none, none, none, none.astype(jnp.float32), none.astype(bool))
    options = options._replace(parent=options.parent + none.shape[1])
    return _Options(*(jnp.concatenate(pair, axis=1) for pair in zip(stay, options, strict=True)))


def _trace_back(pool: _Pool, nodes: _Nodes, found: Buffers, searched: Int[Array, " B"]) -> Buffers:
    """What the hypotheses of `pool` say: what their ancestors had `found`, then their nodes (T, symbols, B, 2 K)."""
    frames, symbols, batch, slots = nodes.token.shape
    beam, size = pool.score.shape[1], found.tokens.shape[-1]
    rows, columns = jnp.arange(batch)[:, None], jnp.arange(beam)
    facts = jax.tree.map(lambda leaf: leaf.reshape(frames * symbols, batch, slots), nodes)

    def going(loop: tuple[Int[Array, "B K"], Int[Array, "B K"], Any]) -> Bool[Array, ""]:
        return (loop[0] >= 0).any()

    def back(loop: tuple[Int[Array, "B K"], Int[Array, "B K"], Any]) -> tuple[Any, Any, Any]:
        node, place, said = loop
        at = jnp.maximum(node, 0) // slots
        before, token, duration, log_prob = (leaf[at, rows, jnp.maximum(node, 0) % slots] for leaf in facts)
        put = jnp.where(node >= 0, place, size)
        values = (token, at // symbols + searched[:, None], duration, log_prob)
        said = tuple(
            leaf.at[rows, columns, put].set(value, mode="drop") for leaf, value in zip(said, values, strict=True)
        )
        return jnp.where(node >= 0, before, node), place - 1, said

    empty = tuple(jnp.zeros_like(leaf) for leaf in found[:4])
    root, _, said = lax.while_loop(going, back, (pool.node, pool.length - 1, empty))
    earlier: Buffers = jax.tree.map(functools.partial(gather, places=-1 - root), found)
    old = jnp.arange(size) < earlier.length[..., None]
    tokens, at, durations, log_probs = (
        jnp.where(old, before, new) for before, new in zip(earlier[:4], said, strict=True)
    )
    return Buffers(tokens, at, durations, log_probs, jnp.minimum(pool.length, size))
