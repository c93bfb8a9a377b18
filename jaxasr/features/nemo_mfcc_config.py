"""Options of NeMo's cepstral front end, and how many frames it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxasr.arrays import Count, ceil_div
from jaxasr.features.nemo_config import NemoMelConfig

# What torchaudio's MFCC does, which NeMo calls: windows of a period, HTK's triangles without a norm, log(x + 1e-6).
TORCHAUDIO_MEL = NemoMelConfig(
    bins=64,
    mel_scale="htk",
    mel_norm="none",
    periodic=True,
    framing="reflected",
    preemphasis=0.0,
    log_guard_value=1e-6,
    normalize="none",
    dither=0.0,
)


@dataclass(frozen=True, kw_only=True)
class NemoMFCCConfig:
    """Options of `NemoMFCC` (AudioToMFCCPreprocessor): the log-mel energies, and how many `coefficients` are kept.

    ValueError for more coefficients than mel bins.
    """

    kind: Literal["nemo_mfcc"] = "nemo_mfcc"
    mel: NemoMelConfig = TORCHAUDIO_MEL
    coefficients: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.coefficients <= self.mel.bins:
            raise ValueError(f"coefficients must lie in 1..{self.mel.bins}, the mel bins, not {self.coefficients}")

    @property
    def sample_rate(self) -> int:
        """Samples per second that the front end takes (Hz)."""
        return self.mel.sample_rate

    @property
    def output_dim(self) -> int:
        """Width of a frame: its coefficients."""
        return self.coefficients

    @property
    def frame_seconds(self) -> float:
        """Seconds from frame to frame."""
        return self.mel.frame_seconds

    def frame_count(self, samples: Count) -> Count:
        """Frames that count of so many samples: an int for an int, an integer array for an array.

        Where samples fill all hops the front end makes a frame more, which does not count.
        """
        return ceil_div(samples, self.mel.hop_length)
