"""Options of stacked frames at a low rate, and how many of them there are."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxasr.arrays import Count, ceil_div
from jaxasr.features.kaldi_config import KaldiConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LfrConfig:
    """Frames of a filterbank, `stacked` of them to one, `shift` apart (FunASR's lfr_m and lfr_n).

    The default filterbank is FunASR's, but for its dither: that is 1 by default, which makes the original random.
    """

    kind: Literal["lfr"] = "lfr"
    fbank: KaldiConfig = KaldiConfig(window="hamming", high_freq=0.0, snip_edges=True, sample_scale=32768.0)
    stacked: int = 7
    shift: int = 6

    def __post_init__(self) -> None:
        if self.shift < 1 or self.stacked < 1:
            raise ValueError(f"stacked and shift must be positive, not {self.stacked} and {self.shift}")

    @property
    def sample_rate(self) -> int:
        """Samples per second (Hz)."""
        return self.fbank.sample_rate

    @property
    def output_dim(self) -> int:
        """Width of a stacked frame."""
        return self.fbank.output_dim * self.stacked

    @property
    def frame_seconds(self) -> float:
        """Seconds from stacked frame to stacked frame."""
        return self.fbank.frame_seconds * self.shift

    @property
    def context(self) -> tuple[int, int]:
        """Frames of the filterbank before and after the one in the middle of a stacked frame."""
        return (self.stacked - 1) // 2, self.stacked - 1 - (self.stacked - 1) // 2

    @property
    def reach(self) -> tuple[int, int]:
        """Samples that a stacked frame is made of, before and from the sample where its middle one stands on.

        The latter are rounded up to whole shifts of stacked frames: in these FunASR takes a stream's samples.
        """
        (before, after), (earlier, later) = self.fbank.reach, self.context
        hop = self.fbank.frame_shift
        return before + earlier * hop, ceil_div(after + later * hop, self.shift * hop) * self.shift * hop

    def frame_count(self, samples: Count) -> Count:
        """Stacked frames that so many samples give: an int for an int, an integer array for an array."""
        return ceil_div(self.fbank.frame_count(samples), self.shift)
