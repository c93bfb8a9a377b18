"""Greedy searches against ones written out in Python, with heads made for the purpose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from counting_head import BLANK, VOCABULARY, CountingHead, LogProbs
from golden_models import quick_jit
from jaxasr.search.beam import JointBeam, TransducerBeam
from jaxasr.search.greedy import CTCGreedy, TransducerGreedy
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import first_maximum, search_whole


def written_out(
    head: CountingHead, frames: np.ndarray, penalty: float, silent: tuple[int, ...]
) -> tuple[list[int], list[int], list[float]]:
    """One utterance (T, V), frame by frame."""
    tokens: list[int] = []
    at: list[int] = []
    log_probs: list[float] = []
    total = np.zeros(VOCABULARY)
    for number, frame in enumerate(frames):
        logits = 2.0 * frame + head.by_token[tokens[-1] if tokens else BLANK] + head.by_count[len(tokens)] + total
        logits[BLANK] -= penalty
        token = int(np.argmax(logits))
        if token != BLANK and token not in silent:
            tokens.append(token)
            at.append(number)
            log_probs.append(float(logits[token] - np.log(np.exp(logits).sum())))
            total = total + head.by_token[token]
    return tokens, at, log_probs


@functools.cache
def transducer_search(silent: tuple[int, ...]) -> tuple[CountingHead, Callable[..., Hypotheses]]:
    """A head and its compiled search (encoded, lengths, penalty)."""
    head = CountingHead(0, silent)
    return head, quick_jit(lambda x, n, p: search_whole(TransducerGreedy(head, p), x, n))


@pytest.mark.parametrize("penalty", [0.0, 1.5])
@pytest.mark.parametrize("silent", [(), (5,), (5, 0)])
@pytest.mark.parametrize("batch", [1, 3])
def test_transducer(batch: int, penalty: float, silent: tuple[int, ...]) -> None:
    head, search = transducer_search(silent)
    rng = np.random.default_rng(batch)
    encoded = rng.standard_normal((batch, 20, VOCABULARY)).astype(np.float32)
    encoded[..., BLANK] += 1
    lengths = np.array([20, 13, 0][:batch], np.int32)
    for row, length in enumerate(lengths):
        encoded[row, length:] = np.nan  # never reaches a result
    hypotheses = search(encoded, lengths, penalty)
    assert hypotheses.tokens.shape == hypotheses.frames.shape == hypotheses.log_probs.shape == (batch, 1, 20)
    said = 0
    for row, length in enumerate(lengths):
        tokens, at, log_probs = written_out(head, encoded[row, :length], penalty, silent)
        count = int(hypotheses.length[row, 0])
        assert hypotheses.tokens[row, 0, :count].tolist() == tokens
        assert hypotheses.frames[row, 0, :count].tolist() == at
        np.testing.assert_allclose(hypotheses.log_probs[row, 0, :count], log_probs, atol=1e-4)
        np.testing.assert_allclose(hypotheses.score[row, 0], sum(log_probs), atol=1e-3)
        assert not hypotheses.tokens[row, 0, count:].any()
        assert not hypotheses.log_probs[row, 0, count:].any()
        said += count
    assert said > 3


def test_the_penalty_only_ever_adds_tokens_to_frames() -> None:
    """Blank's logit is what it takes from; the log-probabilities are those after it."""
    head = CountingHead(1)
    head.by_token[:] = head.by_count[:] = 0  # a head that forgets, so that frames are comparable
    encoded = np.random.default_rng(5).standard_normal((1, 40, VOCABULARY)).astype(np.float32)
    plain = search_whole(TransducerGreedy(head), encoded, jnp.array([40]))
    eager = search_whole(TransducerGreedy(head, 1e9), encoded, jnp.array([40]))
    assert int(eager.length[0, 0]) == 40 > int(plain.length[0, 0])
    without = 2.0 * np.delete(encoded[0].astype(np.float64), BLANK, axis=1)
    best = without.max(axis=1) - np.log(np.exp(without).sum(axis=1))
    np.testing.assert_allclose(eager.log_probs[0, 0], best, atol=1e-5)


def written_out_with_durations(
    head: CountingHead, frames: np.ndarray, durations: tuple[int, ...], max_symbols: int
) -> list[tuple[int, int, int]]:
    """One utterance (T, V + durations) as NeMo's batched TDT search goes, without durations its RNN-T search.

    (token, frame, duration) of each token.
    """
    found: list[tuple[int, int, int]] = []
    total = np.zeros(VOCABULARY)
    at = here = 0
    while at < len(frames):
        said = [token for token, _, _ in found]
        logits = 2.0 * frames[at]
        logits[:VOCABULARY] += head.by_token[said[-1] if said else BLANK] + head.by_count[len(said)] + total
        token = int(np.argmax(logits[:VOCABULARY]))
        duration = durations[int(np.argmax(logits[VOCABULARY:]))] if durations else 0
        if token == BLANK:
            at, here = at + max(duration, 1), 0
            continue
        found.append((token, at, duration if durations else 1))
        total = total + head.by_token[token]
        here += 1
        if duration or here == max_symbols:
            at, here = at + max(duration, 1), 0
    return found


@pytest.mark.parametrize(("durations", "max_symbols"), [((), 2), ((), 5), ((0, 1, 2, 4), 1), ((0, 1, 2), 3)])
@pytest.mark.parametrize("batch", [1, 3, 17], ids=["one frame at a time", "four", "two"])
def test_several_tokens_a_frame_and_durations(durations: tuple[int, ...], max_symbols: int, batch: int) -> None:
    head = CountingHead(4, durations=durations, max_symbols=max_symbols)
    lengths = np.array([20, 13, 0, *range(14)][:batch], np.int32)
    encoded = np.random.default_rng(8).standard_normal((batch, 20, VOCABULARY + len(durations))).astype(np.float32)
    encoded[..., BLANK] += 0.5
    for row, length in enumerate(lengths):
        encoded[row, length:] = np.nan
    search = TransducerGreedy(head)
    hypotheses = quick_jit(lambda x, n: search_whole(search, x, n))(encoded, lengths)
    assert hypotheses.tokens.shape == (batch, 1, 20 * max_symbols)
    several = 0
    for row, length in enumerate(lengths):
        expected = written_out_with_durations(head, encoded[row, :length], durations, max_symbols)
        count = int(hypotheses.length[row, 0])
        made = (hypotheses.tokens, hypotheses.frames, hypotheses.durations)
        assert list(zip(*(each[row, 0, :count].tolist() for each in made), strict=True)) == expected
        several += len(expected) - len({frame for _, frame, _ in expected})
    assert bool(several) == (max_symbols > 1)


ADVERSARIES = {
    "never a blank": CountingHead(5, max_symbols=3),
    "never a duration": CountingHead(5, durations=(0, 2), max_symbols=3),
}


@pytest.mark.parametrize("beam", [None, 3])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_joiner_that_never_lets_go_of_a_frame_still_ends(name: str, beam: int | None) -> None:
    """The worst is that every frame says as much as it may, in batches of any size, in pieces too."""
    head = ADVERSARIES[name]
    search = TransducerGreedy(head) if beam is None else TransducerBeam(head, beam)
    encoded = np.zeros((2, 6, VOCABULARY + len(head.durations)), np.float32)
    encoded[..., BLANK] = -1e4
    encoded[..., VOCABULARY + 1 :] = -1e4
    lengths = np.array([6, 2], np.int32)
    for sizes in ([6], [3, 3]):
        hypotheses = in_pieces(search, encoded, lengths, sizes)
        for row, length in enumerate(lengths):
            assert hypotheses.length[row, 0] == 3 * length
            assert hypotheses.frames[row, 0, : 3 * length].tolist() == np.repeat(np.arange(length), 3).tolist()
            assert not (np.asarray(hypotheses.tokens[row, 0, : 3 * length]) == BLANK).any()


def in_pieces(search: Any, encoded: np.ndarray, lengths: np.ndarray, sizes: list[int]) -> Hypotheses:
    """The hypotheses of utterances that come in pieces of so many frames."""
    step = jax.jit(search.step)  # pieces of one size share a program
    state = search.start(*encoded.shape[:2])
    start = 0
    for size in sizes:
        piece = encoded[:, start : start + size]
        state = step(state, piece, np.clip(lengths - start, 0, size))
        start += size
    assert start == encoded.shape[1]
    return search.finish(state)


SEARCHES = {
    "transducer": TransducerGreedy(CountingHead(5)),
    "several symbols": TransducerGreedy(CountingHead(5, max_symbols=3)),
    "durations": TransducerGreedy(CountingHead(5, durations=(0, 1, 3), max_symbols=2)),
    "ctc": CTCGreedy(LogProbs()),
    "beam": TransducerBeam(CountingHead(5), 4),
    "beam of several symbols": TransducerBeam(CountingHead(5, max_symbols=3), 4),
    "beam of durations": TransducerBeam(CountingHead(5, durations=(0, 1, 3), max_symbols=2), 4),
    "joint": JointBeam(TransducerBeam(CountingHead(5), 4), LogProbs(), 0.4),
}


@functools.cache
def whole_search(name: str) -> Callable[..., Hypotheses]:
    """The compiled search (encoded, lengths) of whole utterances."""
    return quick_jit(lambda x, n: search_whole(SEARCHES[name], x, n))


@pytest.mark.parametrize("sizes", [[1] * 20, [7, 2, 7, 2, 2], [20]], ids=["frames", "pieces", "whole"])
@pytest.mark.parametrize("name", SEARCHES)
def test_pieces_give_what_the_whole_gives(name: str, sizes: list[int]) -> None:
    search = SEARCHES[name]
    lengths = np.array([20, 8, 0], np.int32)
    width = VOCABULARY + (3 if "durations" in name else 0)
    logits = np.random.default_rng(11).standard_normal((3, 20, width)).astype(np.float32)
    logits[..., BLANK] += 0.5
    logits[:, 5:8] = logits[:, 4:5]  # runs that cross the edges of pieces, for CTC
    encoded = np.asarray(jax.nn.log_softmax(logits))
    whole = whole_search(name)(encoded, lengths)
    pieces = in_pieces(search, encoded, lengths, sizes)
    assert int(whole.length.max()) > 3
    for field in ("tokens", "frames", "durations", "length"):
        np.testing.assert_array_equal(getattr(pieces, field), getattr(whole, field), err_msg=field)
    for field in ("log_probs", "score"):
        np.testing.assert_allclose(getattr(pieces, field), getattr(whole, field), rtol=1e-5, atol=1e-5, err_msg=field)


@pytest.mark.parametrize("sizes", [[1] * 20, [7, 2, 7, 2, 2]], ids=["frames", "pieces"])
@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "joint"])
def test_what_is_settled_and_what_is_not_are_the_whole(name: str, sizes: list[int]) -> None:
    """Of a stream: what leaves the state piece by piece, and the best of what is left, say what the whole says."""
    search = SEARCHES[name]
    lengths = np.array([20, 8, 0], np.int32)
    width = VOCABULARY + (3 if "durations" in name else 0)
    logits = np.random.default_rng(12).standard_normal((3, 20, width)).astype(np.float32)
    logits[..., BLANK] += 1.0
    logits[:, 5:8] = logits[:, 4:5]
    encoded = np.asarray(jax.nn.log_softmax(logits))
    whole = whole_search(name)(encoded, lengths)
    step, finish = quick_jit(search.advance), quick_jit(search.finish)
    state = search.start(3, 20)
    said: list[list[tuple[Any, ...]]] = [[], [], []]
    start = early = 0
    for size in sizes:
        counted = np.clip(lengths - start, 0, size)
        state, settled = step(state, encoded[:, start : start + size], counted, start + size >= lengths)
        start += size
        rest = finish(state)
        for row in range(3):
            said[row] += tokens_of(settled, row)
            early += bool(said[row]) and start < lengths[row]
    for row in range(3):
        expected, found = tokens_of(whole, row), said[row] + tokens_of(rest, row)
        assert [each[:3] for each in found] == [each[:3] for each in expected]
        np.testing.assert_allclose([each[3] for each in found], [each[3] for each in expected], atol=1e-5)
    assert said[0] + tokens_of(rest, 0)
    assert early or "beam" in name  # whose hypotheses may disagree to the end


def tokens_of(hypotheses: Hypotheses, row: int) -> list[tuple[Any, ...]]:
    """(token, frame, duration, log-probability) of each token of a row's best hypothesis."""
    fields = (np.asarray(leaf)[row, 0, : int(hypotheses.length[row, 0])].tolist() for leaf in hypotheses[:4])
    return list(zip(*fields, strict=True))


def test_a_beam_without_room_settles_its_best_hypothesis() -> None:
    """Hypotheses that disagree from the first token on: the best one goes on, however long, and others from it."""
    head = CountingHead(5)
    search = TransducerBeam(head, 4)
    encoded = np.random.default_rng(13).standard_normal((1, 40, VOCABULARY)).astype(np.float32)
    step, finish = quick_jit(search.advance), quick_jit(search.finish)
    whole: list[tuple[Any, ...]] = []
    state = search.start(1, 4)  # room for four tokens, with two frames a piece
    for start in range(0, 40, 2):
        state, settled = step(state, encoded[:, start : start + 2], np.array([2]), np.array([False]))
        whole += tokens_of(settled, 0)
    rest = finish(state)
    whole += tokens_of(rest, 0)
    assert len(whole) > 10
    assert np.isfinite(rest.score[0, 0])
    frames = [frame for _, frame, _, _ in whole]
    assert frames == sorted(set(frames)) and 0 <= frames[0] and frames[-1] < 40


@pytest.mark.parametrize("name", SEARCHES)
def test_rows_of_a_state_can_be_swapped(name: str) -> None:
    """As a stream's slots are: a state has the batch axis first in every leaf."""
    search = SEARCHES[name]
    width = VOCABULARY + (3 if "durations" in name else 0)
    encoded = np.asarray(jax.nn.log_softmax(np.random.default_rng(12).standard_normal((2, 12, width)))).astype(
        np.float32
    )
    lengths = jnp.array([6, 6])
    step = jax.jit(search.step)
    state = step(search.start(2, 12), encoded[:, :6], lengths)
    swapped = step(jax.tree.map(lambda leaf: np.asarray(leaf)[::-1], state), encoded[::-1, 6:], lengths)
    straight = search.finish(step(state, encoded[:, 6:], lengths))
    for ours, theirs in zip(search.finish(swapped), straight, strict=True):
        np.testing.assert_allclose(ours[::-1], theirs, rtol=1e-5, atol=1e-5)


def test_tokens_beyond_the_buffers_are_dropped() -> None:
    search = TransducerGreedy(CountingHead(1), blank_penalty=1e9)
    encoded = np.random.default_rng(5).standard_normal((1, 12, VOCABULARY)).astype(np.float32)
    whole = search_whole(search, encoded, jnp.array([12]))
    short = search.finish(search.step(search.start(1, 5), encoded, jnp.array([12])))
    assert short.tokens[0, 0].tolist() == whole.tokens[0, 0, :5].tolist() and short.length[0, 0] == 5


def ctc_greedy(log_probs: np.ndarray, lengths: jax.Array, penalty: float = 0.0) -> Hypotheses:
    search = CTCGreedy(LogProbs(blank_id=0), penalty)
    hypotheses: Hypotheses = quick_jit(lambda x, n: search_whole(search, x, n))(log_probs, lengths)
    return hypotheses


def one_hot_path(path: list[int], vocabulary: int = 5, sure: float = 4.0) -> np.ndarray:
    logits = np.random.default_rng(len(path)).standard_normal((len(path), vocabulary)) * 0.1
    logits[np.arange(len(path)), path] += sure
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize(
    ("path", "tokens", "frames"),
    [
        ([0, 0, 0], [], []),
        ([1, 1, 0, 1, 2, 2], [1, 1, 2], [0, 3, 4]),
        ([3, 4, 3, 3, 0], [3, 4, 3], [0, 1, 2]),
        ([0, 2, 0, 2, 2], [2, 2], [1, 3]),
    ],
)
def test_ctc_merges_repeats_and_drops_blanks(path: list[int], tokens: list[int], frames: list[int]) -> None:
    log_probs = one_hot_path(path)
    hypotheses = ctc_greedy(log_probs[None], jnp.array([len(path)]))
    count = int(hypotheses.length[0, 0])
    assert hypotheses.tokens[0, 0, :count].tolist() == tokens
    assert hypotheses.frames[0, 0, :count].tolist() == frames
    np.testing.assert_allclose(hypotheses.log_probs[0, 0, :count], log_probs[frames, tokens], atol=1e-6)


def test_ctc_stops_at_each_rows_length() -> None:
    log_probs = np.stack([one_hot_path([1, 2, 3, 4]), one_hot_path([4, 3, 2, 1])])
    log_probs[1, 2:] = np.nan
    hypotheses = ctc_greedy(log_probs, jnp.array([4, 2]))
    np.testing.assert_array_equal(hypotheses.tokens[:, 0], [[1, 2, 3, 4], [4, 3, 0, 0]])
    np.testing.assert_array_equal(hypotheses.length[:, 0], [4, 2])
    assert bool(jnp.isfinite(hypotheses.score).all())


def test_ctc_penalty_is_renormalised() -> None:
    log_probs = np.log(np.array([[[0.6, 0.3, 0.1]]], np.float32))
    plain = ctc_greedy(log_probs, jnp.array([1]))
    eager = ctc_greedy(log_probs, jnp.array([1]), np.log(4.0))
    assert int(plain.length[0, 0]) == 0
    assert eager.tokens[0, 0].tolist() == [1]
    np.testing.assert_allclose(np.exp(eager.log_probs[0, 0, 0]), 0.3 / (0.6 / 4 + 0.4), rtol=1e-5)


def test_the_first_of_equal_maxima() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (200, 7)).astype(np.float32)
    index, best = first_maximum(jnp.asarray(values))
    np.testing.assert_array_equal(index, values.argmax(axis=1))
    np.testing.assert_array_equal(best, values.max(axis=1))
    infinite = jnp.array([[-jnp.inf, -jnp.inf], [0.0, jnp.inf]])
    np.testing.assert_array_equal(first_maximum(infinite)[0], [0, 1])


def test_the_greatest_of_no_numbers_is_still_an_index() -> None:
    """Overflow in a narrow type must end in a wrong word, not in an id beyond the vocabulary."""
    index, _ = first_maximum(jnp.array([[jnp.nan, 1.0, jnp.nan]]))
    assert 0 <= int(index[0]) < 3
