"""Recordings are cut while they come, at the same points whatever the bits that they come in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from jaxasr.longform.configs import Span
from jaxasr.longform.cutting import Cut, Cutter, QuietCutter, SpeechCutter, Uncut

RATE = 1000
LONGEST = 30 * RATE


def noise(seconds: float, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32)


def all_cuts(cutter: Cutter, samples: np.ndarray, sizes: Sequence[int] = (1 << 30,)) -> list[Cut]:
    cuts, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(samples):
            break
        cuts += cutter.push(samples[start : start + size])
        start += size
    return [*cuts, *cutter.finish()]


def places(cuts: Sequence[Cut]) -> list[Span]:
    return [(cut.start, cut.start + len(cut.samples)) for cut in cuts]


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
    cuts = places(all_cuts(QuietCutter(LONGEST, RATE), samples))
    assert cuts[0][0] == 0 and cuts[-1][1] == len(samples)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(cuts))
    assert all(stop - start <= LONGEST for start, stop in cuts)
    for pause, (_, stop) in zip(pauses, cuts, strict=False):
        assert pause <= stop / RATE <= pause + 0.4


def test_an_hour_makes_cuts_no_longer_than_allowed() -> None:
    cuts = places(all_cuts(QuietCutter(LONGEST, RATE), np.zeros(3600 * RATE, np.float32)))
    assert max(stop - start for start, stop in cuts) <= LONGEST
    assert sum(stop - start for start, stop in cuts) == 3600 * RATE
    assert len(cuts) <= 180


def test_short_audio_is_one_cut_and_none_of_nothing() -> None:
    assert places(all_cuts(QuietCutter(LONGEST, RATE), np.zeros(5, np.float32))) == [(0, 5)]
    for cutter in (QuietCutter(LONGEST, RATE), Uncut(), SpeechCutter(Found([]), LONGEST, RATE)):
        assert all_cuts(cutter, np.zeros(0, np.float32)) == []


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
    expected, found = all_cuts(make(), samples), all_cuts(make(), samples, sizes)
    assert places(found) == places(expected)
    for cut in found:
        np.testing.assert_array_equal(cut.samples, samples[cut.start : cut.start + len(cut.samples)])


def test_segments_are_cuts_and_long_ones_are_parted() -> None:
    samples = noise(140)
    samples[38000:38400] = 0
    cuts = places(all_cuts(SpeechCutter(Found([(700, 4000), (12000, 71000)]), LONGEST, RATE), samples, [2000]))
    assert cuts[0] == (700, 4000) and cuts[1][0] == 12000 and cuts[-1][1] == 71000
    assert 38000 <= cuts[1][1] <= 38400 and all(stop - start <= LONGEST for start, stop in cuts)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(cuts[1:]))


def test_what_no_segment_needs_is_let_go() -> None:
    cutter = SpeechCutter(Found([(700, 4000)]), LONGEST, RATE)
    kept = []
    for _ in range(200):
        cutter.push(noise(1))
        kept.append(len(cutter._kept))
    assert max(kept) <= 4000
