"""Recordings are cut while they come, into the same pieces whatever the bits that they come in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from jaxasr.longform.configs import Span
from jaxasr.longform.cutting import Cutter, Piece, QuietCutter, SpeechCutter, Uncut

RATE = 1000
LONGEST = 30 * RATE


def noise(seconds: float, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32)


def cut(cutter: Cutter, samples: np.ndarray, sizes: Sequence[int] = (1 << 30,)) -> list[Piece]:
    pieces, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(samples):
            break
        pieces += cutter.push(samples[start : start + size])
        start += size
    return [*pieces, *cutter.finish()]


def places(pieces: Sequence[Piece]) -> list[Span]:
    return [(piece.start, piece.start + len(piece.samples)) for piece in pieces]


class Found:
    """A finder that knows the segments beforehand, and hears `late` samples after the sound."""

    def __init__(self, spans: Sequence[Span], late: int = 0) -> None:
        self._spans, self._late = list(spans), late
        self._heard = 0

    @property
    def pending(self) -> Span:
        heard = max(self._heard - self._late, 0)
        first = self._spans[0][0] if self._spans else heard
        return (first, heard) if first < heard else (heard, heard)

    def push(self, samples: np.ndarray) -> list[Span]:
        self._heard += len(samples)
        ended = list(itertools.takewhile(lambda span: span[1] <= self._heard - self._late, self._spans))
        del self._spans[: len(ended)]
        return ended

    def finish(self) -> list[Span]:
        return self._spans


def test_long_audio_is_cut_where_it_is_quiet() -> None:
    samples = noise(100)
    pauses = [25.0, 52.0, 78.5]
    for pause in pauses:
        samples[int(pause * RATE) : int((pause + 0.4) * RATE)] *= 0.001
    pieces = places(cut(QuietCutter(LONGEST, RATE), samples))
    assert pieces[0][0] == 0 and pieces[-1][1] == len(samples)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(pieces))
    assert all(stop - start <= LONGEST for start, stop in pieces)
    for pause, (_, stop) in zip(pauses, pieces, strict=False):
        assert pause <= stop / RATE <= pause + 0.4


def test_an_hour_makes_pieces_no_longer_than_allowed() -> None:
    pieces = places(cut(QuietCutter(LONGEST, RATE), np.zeros(3600 * RATE, np.float32)))
    assert max(stop - start for start, stop in pieces) <= LONGEST
    assert sum(stop - start for start, stop in pieces) == 3600 * RATE
    assert len(pieces) <= 180


def test_short_audio_is_one_piece_and_none_of_nothing() -> None:
    assert places(cut(QuietCutter(LONGEST, RATE), np.zeros(5, np.float32))) == [(0, 5)]
    for cutter in (QuietCutter(LONGEST, RATE), Uncut(), SpeechCutter(Found([]), LONGEST, RATE)):
        assert cut(cutter, np.zeros(0, np.float32)) == []


def makers() -> Iterator[Callable[[], Cutter]]:
    spans = [(700, 4000), (4000, 9000), (12000, 91000), (91500, 91600), (100000, 139999)]
    yield lambda: QuietCutter(LONGEST, RATE)
    yield Uncut
    yield lambda: SpeechCutter(Found(spans), LONGEST, RATE)
    yield lambda: SpeechCutter(Found(spans, late=2500), LONGEST, RATE)


@pytest.mark.parametrize("make", list(makers()))
@pytest.mark.parametrize("sizes", [(1000,), (1, 30000, 17), (7777, 64000), (29999, 30001)])
def test_bits_make_no_difference(make: Callable[[], Cutter], sizes: Sequence[int]) -> None:
    samples = noise(140)
    expected, found = cut(make(), samples), cut(make(), samples, sizes)
    assert places(found) == places(expected)
    for piece in found:
        np.testing.assert_array_equal(piece.samples, samples[piece.start : piece.start + len(piece.samples)])


def test_segments_are_pieces_and_long_ones_are_cut() -> None:
    samples = noise(140)
    samples[38000:38400] = 0
    pieces = places(cut(SpeechCutter(Found([(700, 4000), (12000, 71000)]), LONGEST, RATE), samples, [2000]))
    assert pieces[0] == (700, 4000) and pieces[1][0] == 12000 and pieces[-1][1] == 71000
    assert 38000 <= pieces[1][1] <= 38400 and all(stop - start <= LONGEST for start, stop in pieces)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(pieces[1:]))


def test_what_no_segment_needs_is_let_go() -> None:
    cutter = SpeechCutter(Found([(700, 4000)]), LONGEST, RATE)
    kept = []
    for _ in range(200):
        cutter.push(noise(1))
        kept.append(len(cutter._kept))
    assert max(kept) <= 4000
