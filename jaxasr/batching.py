"""What runs together: windows of long audio, batches of windows, rows of padded samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Long audio is cut inside the last CUT_SEARCH (fraction) of the longest window, in the middle of its quietest
# CUT_STRETCH seconds.
CUT_SEARCH, CUT_STRETCH = 0.3, 0.2


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of one clip: the clip's number, and where the stretch begins and ends in samples."""

    clip: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows that run in one program of `rows` rows (the last may be empty) and `samples` samples."""

    windows: tuple[Window, ...]
    rows: int
    samples: int


def cut(samples: np.ndarray, longest: int, rate: int) -> list[tuple[int, int]]:
    """(start, stop) of windows no longer than `longest` samples that cover a clip, cut at quiet points.

    Each cut is in the middle of the stretch with the least energy near the longest window's end.
    """
    windows, start = [], 0
    while len(samples) - start > longest:
        earliest = start + int(longest * (1 - CUT_SEARCH))
        searched = samples[earliest : start + longest]
        stretch = max(min(int(CUT_STRETCH * rate), len(searched) // 2), 1)
        energy = np.concatenate([[0.0], np.cumsum(np.square(searched, dtype=np.float64))])
        quietest = int(np.argmin(energy[stretch:] - energy[:-stretch]))
        stop = earliest + quietest + stretch // 2
        windows.append((start, stop))
        start = stop
    return [*windows, (start, len(samples))]


def assemble(batch: Batch, clips: Sequence[np.ndarray], *, before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """The padded rows of a batch, (rows, samples) float32, and their lengths in samples, (rows,) int32.

    `before`, `after`: samples of silence around every window, which count into its length. An empty row has length 0.
    """
    waveforms = np.zeros((batch.rows, batch.samples), np.float32)
    lengths = np.zeros((batch.rows,), np.int32)
    for row, window in enumerate(batch.windows):
        size = window.stop - window.start
        waveforms[row, before : before + size] = clips[window.clip][window.start : window.stop]
        lengths[row] = before + size + after
    return waveforms, lengths
