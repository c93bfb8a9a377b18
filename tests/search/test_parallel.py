"""Search of a parallel head against all texts, counted by hand; what is no token is left out."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.arrays import LOG_ZERO
from jaxasr.heads.parallel_config import ParallelConfig
from jaxasr.search import (
    GreedyConfig,
    ParallelSearchConfig,
    choose_search,
)
from jaxasr.search import parallel as module
from jaxasr.search.parallel import ParallelSearch, StreamedParallelSearch
from jaxasr.search.protocols import search_whole

VOCABULARY, POSITIONS = 5, 4
COUNTS = np.array([4, 2, 0])


class Fired(NamedTuple):
    vectors: jnp.ndarray
    counts: jnp.ndarray
    frames: jnp.ndarray
    steps: None = None

    def first(self, size: int) -> Fired:
        return self._replace(vectors=self.vectors[:, :size], frames=self.frames[:, :size])


class Stub:
    """A head whose encoded frames are logits: a position is a frame."""

    blank_id, silent_ids, encoder_dim = 0, (1,), VOCABULARY

    def fire(self, encoded: jnp.ndarray, lengths: jnp.ndarray) -> Fired:
        frames = jnp.broadcast_to(jnp.arange(encoded.shape[1], dtype=jnp.int32) * 2, encoded.shape[:2])
        return Fired(encoded, lengths, frames)

    def decode(self, fired: Fired, encoded: jnp.ndarray, lengths: jnp.ndarray) -> object:
        return fired.vectors


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 2, (len(COUNTS), POSITIONS, VOCABULARY)).astype(np.float32)


def all_texts(logits: np.ndarray) -> dict[tuple[int, ...], float]:
    """Every text of the positions (L, V) with its log-probability, the likeliest first."""
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    texts: dict[tuple[int, ...], float] = {}
    for choice in itertools.product(range(VOCABULARY), repeat=len(logits)):
        text = tuple(i for i in choice if i > 1)
        score = float(sum(log_probs[place, i] for place, i in enumerate(choice)))
        texts[text] = float(np.logaddexp(texts.get(text, -np.inf), score))
    return dict(sorted(texts.items(), key=lambda item: -item[1]))


def test_the_best_of_each_position(logits: np.ndarray) -> None:
    found = quick_jit(lambda x: search_whole(ParallelSearch(Stub()), x, jnp.asarray(COUNTS)))(logits)
    for row, count in enumerate(COUNTS):
        best = logits[row, :count].argmax(-1)
        kept = [place for place in range(count) if best[place] > 1]
        assert found.tokens[row, 0, : found.length[row, 0]].tolist() == best[kept].tolist()
        assert found.frames[row, 0, : found.length[row, 0]].tolist() == [2 * place for place in kept]
        normal = logits[row, :count].max(-1) - np.log(np.exp(logits[row, :count]).sum(-1))
        assert found.score[row, 0] == pytest.approx(normal.sum(), abs=1e-5)  # the silent positions' too
        np.testing.assert_allclose(found.log_probs[row, 0, : len(kept)], normal[kept], atol=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("most", [65, 66])
def test_positions_that_no_token_needs_are_not_decoded(monkeypatch: pytest.MonkeyPatch, most: int, beam: int) -> None:
    """Up to half of the positions, and one more; the result is that of all of them."""
    decoded: list[int] = []

    class Watched(Stub):
        def decode(self, fired: Fired, encoded: jnp.ndarray, lengths: jnp.ndarray) -> object:
            decoded.append(fired.vectors.shape[1])
            # A part of the positions is told apart from all of them by its scores.
            return fired.vectors * (1 if fired.vectors.shape[1] == encoded.shape[1] else 2)

    positions = 130
    x = np.random.default_rng(5).normal(0, 2, (2, positions, VOCABULARY)).astype(np.float32)
    counts = jnp.asarray([most, 7])

    def run(x: np.ndarray) -> object:
        return quick_jit(lambda x: search_whole(ParallelSearch(Watched(), beam=beam), x, counts))(x)

    found: Any = run(x)
    assert sorted(set(decoded)) == [65, positions]
    monkeypatch.setattr(module, "DECODED_IN_ONE", positions + 1)
    expected: Any = run(x if most > 65 else 2 * x)
    for name in ("tokens", "frames", "length", "score", "log_probs"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_n_best_are_those_of_all_texts(logits: np.ndarray) -> None:
    """With room for all texts a beam finds each with the sum of its ways; of fewer, it misses a way at most."""
    beam = 64
    found = quick_jit(lambda x: search_whole(ParallelSearch(Stub(), beam), x, jnp.asarray(COUNTS)))(logits)
    for row, count in enumerate(COUNTS):
        texts = all_texts(logits[row, :count])
        number = min(12, len(texts))
        ours = [tuple(found.tokens[row, n, : found.length[row, n]].tolist()) for n in range(number)]
        assert ours == list(texts)[:number]
        np.testing.assert_allclose(found.score[row, :number], list(texts.values())[:number], atol=0.02)
        assert (found.score[row, len(texts) :] <= LOG_ZERO / 2).all()
    few = quick_jit(lambda x: search_whole(ParallelSearch(Stub(), 3), x, jnp.asarray(COUNTS)))(logits)
    np.testing.assert_array_equal(few.tokens[:2, 0], found.tokens[:2, 0])


def test_without_silence_a_small_beam_is_exact(logits: np.ndarray) -> None:
    spoken = logits.copy()
    spoken[..., :2] = -50
    found = quick_jit(lambda x: search_whole(ParallelSearch(Stub(), 3), x, jnp.asarray(COUNTS)))(spoken)
    for row, count in enumerate(COUNTS[:2]):
        texts = all_texts(spoken[row, :count])
        assert [tuple(found.tokens[row, n, :count].tolist()) for n in range(3)] == list(texts)[:3]
        np.testing.assert_allclose(found.score[row], list(texts.values())[:3], atol=1e-4)


def test_a_penalty_of_the_blank_says_more(logits: np.ndarray) -> None:
    silent = logits.copy()
    silent[..., 0] += 20
    run = quick_jit(lambda x, penalty: search_whole(ParallelSearch(Stub(), 1, penalty), x, jnp.asarray(COUNTS)))
    assert run(silent, 0.0).length[0, 0] == 0
    assert run(silent, 100.0).length[0, 0] > 0


def test_what_is_no_number_reaches_the_score(logits: np.ndarray) -> None:
    broken = logits.copy()
    broken[0, 1, 2] = np.nan
    broken[2] = np.nan  # beyond the row's length
    found = quick_jit(lambda x: search_whole(ParallelSearch(Stub()), x, jnp.asarray(COUNTS)))(broken)
    assert np.isnan(found.score[0, 0]) and np.isfinite(found.score[1:]).all()


HEADS = {"parallel": ParallelConfig(vocabulary_size=5)}


@pytest.mark.parametrize(
    ("kind", "head", "beam", "chosen"),
    [
        (None, None, None, ParallelSearchConfig()),
        (None, None, 4, ParallelSearchConfig(beam=4)),
        (None, "parallel", 1, ParallelSearchConfig()),
        ("greedy", None, None, GreedyConfig()),
        ("parallel", None, 2, ParallelSearchConfig(beam=2)),
    ],
)
@pytest.mark.parametrize("own", [GreedyConfig(), ParallelSearchConfig()])
def test_it_is_chosen(own: object, kind: str | None, head: str | None, beam: int | None, chosen: object) -> None:
    assert choose_search(own, HEADS, kind, head, beam) == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "head", "beam", "fault"),
    [
        ("beam", None, None, "needs a transducer head"),
        (None, "ctc", None, "no ctc head: take parallel"),
        (None, None, 0, "beam of 1 or more"),
    ],
)
def test_what_it_cannot_be(kind: str | None, head: str | None, beam: int | None, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        choose_search(ParallelSearchConfig(), HEADS, kind, head, beam)


class StreamedStub(Stub):
    """The same window by window; its state counts the streams' frames."""

    def initial_state(self, batch: int) -> jnp.ndarray:
        return jnp.zeros((batch,), jnp.int32)

    def fire_step(
        self, state: jnp.ndarray, encoded: jnp.ndarray, lengths: jnp.ndarray, final: jnp.ndarray
    ) -> tuple[jnp.ndarray, Fired]:
        places = state[:, None] + jnp.arange(encoded.shape[1], dtype=jnp.int32)
        return state + lengths, Fired(encoded, lengths, places * 2)

    def decode_step(
        self, state: jnp.ndarray, fired: Fired, encoded: jnp.ndarray, lengths: jnp.ndarray
    ) -> tuple[jnp.ndarray, jnp.ndarray]:
        return state, fired.vectors


def test_windows_say_what_the_whole_says(logits: np.ndarray) -> None:
    whole = search_whole(ParallelSearch(Stub()), jnp.asarray(logits), jnp.asarray(COUNTS))
    search = StreamedParallelSearch(StreamedStub())
    state = search.start(len(COUNTS), POSITIONS)
    for first in range(0, POSITIONS, 2):
        lengths = jnp.clip(jnp.asarray(COUNTS) - first, 0, 2)
        state = search.step(state, jnp.asarray(logits[:, first : first + 2]), lengths)
    found = search.finish(state)
    for row in range(len(COUNTS)):
        count = int(whole.length[row, 0])
        assert int(found.length[row, 0]) == count
        np.testing.assert_array_equal(found.tokens[row, 0, :count], whole.tokens[row, 0, :count])
        np.testing.assert_array_equal(found.frames[row, 0, :count], whole.frames[row, 0, :count])
