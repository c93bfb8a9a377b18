"""Recordings into cuts, each of which is heard at once, made while the recordings are decoded."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from jaxasr.longform.configs import Span

# Long audio is cut inside the last CUT_SEARCH (fraction) of the longest window, in the middle of its quietest
# CUT_STRETCH seconds.
CUT_SEARCH, CUT_STRETCH = 0.3, 0.2


@dataclasses.dataclass(frozen=True)
class Cut:
    """What is heard at once of a recording: `samples` (n,), which begin with sample `start` of the recording."""

    start: int
    samples: np.ndarray


class Cutter(Protocol):
    """One recording's cuts, its samples (n,) given bit by bit."""

    def push(self, samples: np.ndarray) -> list[Cut]:
        """The cuts that are whole after these samples."""
        ...

    def finish(self) -> list[Cut]:
        """The cuts that end with the recording."""
        ...


class SpeechFinder(Protocol):
    """One recording's segments of speech in samples, its samples (n,) given bit by bit."""

    @property
    def pending(self) -> Span:
        """The first sample that a later segment may hold, and up to where one that is open surely lasts.

        The two are equal where none is open.
        """
        ...

    def push(self, samples: np.ndarray) -> list[Span]:
        """The segments that are known to end after these samples."""
        ...

    def finish(self) -> list[Span]:
        """The segments that end with the recording."""
        ...


class SpeechDetector(Protocol):
    """What finds speech: `finder` for one recording."""

    def finder(self) -> SpeechFinder:
        """A new one, that has heard nothing."""
        ...


class Uncut:
    """A Cutter that gives a recording as one cut, whatever its length."""

    def __init__(self) -> None:
        self._heard: list[np.ndarray] = []

    def push(self, samples: np.ndarray) -> list[Cut]:
        """None: the cut ends with the recording."""
        self._heard.append(samples)
        return []

    def finish(self) -> list[Cut]:
        """The recording, unless it is empty."""
        samples = self._heard[0] if len(self._heard) == 1 else np.concatenate([np.zeros(0, np.float32), *self._heard])
        self._heard = []
        return [Cut(0, samples)] if len(samples) else []


class QuietCutter:
    """A Cutter that gives all of a recording, in cuts no longer than `longest` samples, which meet at quiet points.

    `rate`: samples a second. A recording that is no longer is one cut.
    """

    def __init__(self, longest: int, rate: int) -> None:
        self._longest, self._rate = longest, rate
        self._start, self._rest = 0, np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> list[Cut]:
        """The cuts that are whole after these samples."""
        self._rest = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        cuts = []
        while len(self._rest) > self._longest:
            stop = quiet_point(self._rest, self._longest, self._rate)
            cuts.append(Cut(self._start, self._rest[:stop]))
            self._start, self._rest = self._start + stop, self._rest[stop:]
        self._rest = self._rest.copy() if cuts else self._rest  # lets the others go when they have been heard
        return cuts

    def finish(self) -> list[Cut]:
        """The rest, if there is any."""
        return [Cut(self._start, self._rest)] if len(self._rest) else []


class SpeechCutter:
    """A Cutter that gives the segments that `finder` finds; those over `longest` samples are parted at quiet points.

    `rate`: samples a second.
    """

    def __init__(self, finder: SpeechFinder, longest: int, rate: int) -> None:
        self._finder, self._longest, self._rate = finder, longest, rate
        self._start, self._kept = 0, np.zeros(0, np.float32)  # what segments to come may hold
        self._next: int | None = None  # where the next cut of the open segment begins, after its first ones

    def push(self, samples: np.ndarray) -> list[Cut]:
        """The cuts that are whole after these samples."""
        self._kept = np.concatenate([self._kept, samples])
        cuts = [cut for span in self._finder.push(samples) for cut in self._whole(span)]
        first, sure = self._finder.pending
        if sure > first:
            begin = first if self._next is None else self._next
            more, self._next = self._long_cuts(begin, sure)
            cuts += more
            first = self._next
        self._kept, self._start = self._kept[max(first - self._start, 0) :].copy(), max(first, self._start)
        return cuts

    def finish(self) -> list[Cut]:
        """The cuts that end with the recording."""
        return [cut for span in self._finder.finish() for cut in self._whole(span)]

    def _whole(self, span: Span) -> list[Cut]:
        """The cuts of a segment that has ended."""
        begin = span[0] if self._next is None else self._next
        self._next = None
        cuts, begin = self._long_cuts(begin, span[1])
        rest = self._kept[begin - self._start : span[1] - self._start]
        return [*cuts, Cut(begin, rest)] if len(rest) else cuts

    def _long_cuts(self, begin: int, stop: int) -> tuple[list[Cut], int]:
        """Cuts of samples `begin` to `stop` while there are more than the longest has, and where the rest begins."""
        cuts = []
        while stop - begin > self._longest:
            sound = self._kept[begin - self._start : stop - self._start]
            point = quiet_point(sound, self._longest, self._rate)
            cuts.append(Cut(begin, sound[:point]))
            begin += point
        return cuts, begin


def quiet_point(samples: np.ndarray, longest: int, rate: int) -> int:
    """Where to cut so that what comes before has at most `longest` samples: in the quietest stretch near its end."""
    earliest = int(longest * (1 - CUT_SEARCH))
    searched = samples[earliest:longest]
    stretch = max(min(int(CUT_STRETCH * rate), len(searched) // 2), 1)
    energy = np.concatenate([[0.0], np.cumsum(np.square(searched, dtype=np.float64))])
    quietest = int(np.argmin(energy[stretch:] - energy[:-stretch]))
    return earliest + quietest + stretch // 2
