"""What runs together: windows of clips, batches of windows, rows of padded samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


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
