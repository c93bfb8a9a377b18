"""Beam search against one written out in Python, and its ranking by a CTC head."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from counting_head import BLANK, VOCABULARY, CountingHead, LogProbs
from golden_models import quick_jit
from jaxasr.arrays import LOG_ZERO
from jaxasr.search.beam import JointBeam, JointState, TransducerBeam, ctc_log_likelihood
from jaxasr.search.greedy import TransducerGreedy
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import search_whole
from jaxasr.training.losses import ctc_loss


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def written_out(
    head: CountingHead, frames: np.ndarray, beam: int, penalty: float = 0.0, silent: tuple[int, ...] = ()
) -> list[tuple[tuple[int, ...], list[int], list[float], float]]:
    """icefall's modified beam search of one utterance (T, V): tokens, frames, log-probabilities, score, best first."""
    hypotheses: dict[tuple[int, ...], tuple[float, list[int], list[float]]] = {(): (0.0, [], [])}
    for number, frame in enumerate(frames):
        candidates = []
        for said, (score, at, probs) in hypotheses.items():
            cells = sum((head.by_token[token] for token in said), np.zeros(VOCABULARY))
            logits = 2.0 * frame + head.by_token[said[-1] if said else BLANK] + head.by_count[len(said)] + cells
            logits[BLANK] -= penalty
            for token, log_prob in enumerate(log_softmax(logits)):
                candidates.append((score + log_prob, said, at, probs, token, log_prob))
        hypotheses = {}
        for score, said, at, probs, token, log_prob in sorted(candidates, key=lambda c: -c[0])[:beam]:
            if token != BLANK and token not in silent:
                said, at, probs = (*said, token), [*at, number], [*probs, log_prob]
            if said in hypotheses:
                before, at, probs = hypotheses[said]
                score = np.logaddexp(before, score)
            hypotheses[said] = (score, at, probs)
    ranked = sorted(hypotheses.items(), key=lambda item: -item[1][0] / (len(item[0]) + 2))
    return [(said, at, probs, score) for said, (score, at, probs) in ranked]


def random_frames(batch: int, lengths: np.ndarray) -> np.ndarray:
    encoded = np.random.default_rng(batch).standard_normal((batch, 20, VOCABULARY)).astype(np.float32)
    encoded[..., BLANK] += 1
    for row, length in enumerate(lengths):
        encoded[row, length:] = np.nan  # never reaches a result
    return encoded


@pytest.mark.parametrize(("beam", "penalty", "silent"), [(1, 0.0, ()), (2, 0.0, ()), (4, 1.5, (5,)), (8, 0.0, (5, 0))])
@pytest.mark.parametrize("batch", [1, 3])
def test_against_a_search_in_python(batch: int, beam: int, penalty: float, silent: tuple[int, ...]) -> None:
    head = CountingHead(0, silent)
    lengths = np.array([20, 13, 0][:batch], np.int32)
    encoded = random_frames(batch, lengths)
    search = quick_jit(lambda x, n, p: search_whole(TransducerBeam(head, beam, p), x, n))
    found = search(encoded, lengths, penalty)
    assert found.tokens.shape == (batch, beam, 20)
    for row, length in enumerate(lengths):
        expected = written_out(head, encoded[row, :length], beam, penalty, silent)
        valid = np.asarray(found.score[row]) > LOG_ZERO / 2
        assert valid.sum() == len(expected) and valid[: len(expected)].all()
        for rank, (tokens, at, log_probs, score) in enumerate(expected):
            count = int(found.length[row, rank])
            assert tuple(found.tokens[row, rank, :count].tolist()) == tokens
            assert found.frames[row, rank, :count].tolist() == at
            np.testing.assert_allclose(found.log_probs[row, rank, :count], log_probs, atol=1e-4)
            np.testing.assert_allclose(found.score[row, rank], score, atol=1e-3)


def test_a_beam_of_one_is_greedy_search() -> None:
    head = CountingHead(3)
    lengths = np.array([20, 7, 0], np.int32)
    encoded = random_frames(3, lengths)
    one = search_whole(TransducerBeam(head, 1), encoded, lengths)
    greedy = search_whole(TransducerGreedy(head), encoded, lengths)
    for name in ("tokens", "frames", "durations", "length"):
        np.testing.assert_array_equal(getattr(one, name), getattr(greedy, name))
    np.testing.assert_allclose(one.log_probs, greedy.log_probs, atol=1e-5)


def test_a_wide_beam_sums_all_alignments() -> None:
    """With room for everything, the scores of all texts are their probabilities: together one."""
    head = CountingHead(2)
    encoded = random_frames(1, np.array([20]))[:, :3]
    found = search_whole(TransducerBeam(head, VOCABULARY**2), encoded, jnp.array([3]))
    texts = {tuple(found.tokens[0, k, : found.length[0, k]].tolist()) for k in range(found.score.shape[1])}
    valid = np.asarray(found.score[0]) > LOG_ZERO / 2
    assert len(texts) >= valid.sum() > VOCABULARY
    assert 0.9 < np.exp(np.asarray(found.score[0])[valid]).sum() <= 1.00001


def all_alignments(head: CountingHead, frames: np.ndarray) -> dict[tuple[int, ...], float]:
    """The log-probability of every text of a few frames (T, V + durations): the sum over its alignments."""
    texts: dict[tuple[int, ...], float] = {}

    def walk(at: int, here: int, said: tuple[int, ...], so_far: float) -> None:
        if at >= len(frames):
            texts[said] = np.logaddexp(texts.get(said, -np.inf), so_far)
            return
        cells = sum((head.by_token[token] for token in said), np.zeros(VOCABULARY))
        logits = 2.0 * frames[at]
        logits[:VOCABULARY] += head.by_token[said[-1] if said else BLANK] + head.by_count[len(said)] + cells
        log_probs = log_softmax(logits[:VOCABULARY])
        of_durations = log_softmax(logits[VOCABULARY:]) if head.durations else np.zeros(1)
        for duration, of_duration in zip(head.durations or (0,), of_durations, strict=True):
            if duration or not head.durations:
                walk(at + max(duration, 1), 0, said, so_far + log_probs[BLANK] + of_duration)
            for token in np.flatnonzero(log_probs > -100):
                if token != BLANK:
                    onward = max(duration, 1) if here + 1 == head.max_symbols else duration
                    after = so_far + log_probs[token] + of_duration
                    walk(at + onward, 0 if onward else here + 1, (*said, int(token)), after)

    walk(0, 0, (), 0.0)
    return texts


@pytest.mark.parametrize(("durations", "max_symbols"), [((), 2), ((0, 1, 2), 2), ((1, 3), 1)])
def test_a_wide_beam_finds_every_text_with_the_probability_of_all_its_alignments(
    durations: tuple[int, ...], max_symbols: int
) -> None:
    """Several tokens a frame, and frames that are skipped; two tokens beside the blank, so that all ways fit in it."""
    head = CountingHead(6, durations=durations, max_symbols=max_symbols)
    encoded = np.random.default_rng(9).standard_normal((2, 2, VOCABULARY + len(durations))).astype(np.float32)
    encoded[..., [k for k in range(VOCABULARY) if k not in (BLANK, 4, 7)]] = -200
    lengths = np.array([2, 1], np.int32)
    found = quick_jit(lambda x, n: search_whole(TransducerBeam(head, 200), x, n))(encoded, lengths)
    for row, length in enumerate(lengths):
        expected = all_alignments(head, encoded[row, :length])
        likely = np.asarray(found.score[row]) > -100
        made = {
            tuple(found.tokens[row, k, : found.length[row, k]].tolist()): float(found.score[row, k])
            for k in np.flatnonzero(likely)
        }
        assert made.keys() == expected.keys() and len(made) == likely.sum() > 2
        for text, score in expected.items():
            np.testing.assert_allclose(made[text], score, atol=1e-3)


def hypotheses_of(texts: list[list[int]], scores: list[float], longest: int) -> Hypotheses:
    tokens = np.zeros((1, len(texts), longest), np.int32)
    for rank, text in enumerate(texts):
        tokens[0, rank, : len(text)] = text
    none = jnp.zeros(tokens.shape, jnp.int32)
    length = jnp.array([[len(text) for text in texts]])
    return Hypotheses(
        jnp.asarray(tokens), none, none, none.astype(jnp.float32), length, score=jnp.array([scores], jnp.float32)
    )


class Found(TransducerBeam):
    """A transducer's search that has found these hypotheses."""

    def finish(self, state: Any) -> Hypotheses:
        return state.hypotheses


@dataclasses.dataclass
class FoundState:
    hypotheses: Hypotheses
    searched: Any


def ctc_likelihood(log_probs: np.ndarray, text: list[int]) -> float:
    """The log of the sum over all paths of a few frames that collapse to the text."""
    total = -np.inf
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [token for token, _ in itertools.groupby(path) if token != 0] == text:
            total = np.logaddexp(total, sum(log_probs[t, token] for t, token in enumerate(path)))
    return float(total)


def test_likelihoods_are_those_of_optax() -> None:
    """Several texts a row, some of them empty or too long for their frames, of rows that differ in length."""
    rng = np.random.default_rng(6)
    log_probs = jax.nn.log_softmax(jnp.asarray(rng.standard_normal((3, 12, 5)), jnp.float32))
    lengths, counts = jnp.array([12, 7, 0]), jnp.array([[4, 0], [5, 6], [0, 1]])
    tokens = jnp.asarray(rng.integers(1, 5, (3, 2, 6)), jnp.int32).at[0, 0].set(2)  # 2 2 2 2
    made = quick_jit(functools.partial(ctc_log_likelihood, blank_id=0))(log_probs, lengths, tokens, counts)
    loss = [ctc_loss(log_probs, tokens[:, k], lengths, counts[:, k]) for k in range(2)]
    possible = np.array([[True, True], [True, False], [True, False]])
    np.testing.assert_allclose(np.asarray(made)[possible], -np.stack(loss, axis=1)[possible], atol=1e-4)
    assert (np.asarray(made)[~possible] < LOG_ZERO / 2).all()


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_ctc_ranks_hypotheses_anew(weight: float) -> None:
    texts, scores = [[1, 1], [1], [2], []], [-1.0, -1.5, -2.0, -2.5]
    logits = np.random.default_rng(4).standard_normal((5, 3))
    log_probs = np.stack([log_softmax(frame) for frame in logits]).astype(np.float32)
    padded = np.concatenate([log_probs, np.full((2, 3), np.nan, np.float32)])[None]
    given = hypotheses_of([*texts, [2, 2]], [*scores, LOG_ZERO], 7)
    search: Any = JointBeam(Found(CountingHead(0), 5), LogProbs(blank_id=0), weight)
    ranked = search.finish(JointState(FoundState(given, jnp.array([5])), padded))
    expected = sorted(
        ((1 - weight) * score + weight * ctc_likelihood(log_probs, text), text)
        for text, score in zip(texts, scores, strict=True)
    )[::-1]
    for rank, (score, text) in enumerate(expected):
        assert ranked.tokens[0, rank, : ranked.length[0, rank]].tolist() == text
        np.testing.assert_allclose(ranked.score[0, rank], score, atol=1e-4)
    assert ranked.score[0, -1] == LOG_ZERO and ranked.tokens[0, -1, :2].tolist() == [2, 2]
