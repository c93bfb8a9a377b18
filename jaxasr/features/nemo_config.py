"""Options of NeMo's log-mel front end, and how many frames it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxasr.arrays import Count

WindowShape = Literal["hann", "hamming", "blackman", "bartlett", "none"]
# What stands beyond the ends of a clip, and how many frames count: "zeros" since NeMo 2.5, samples // hop_length;
# "reflected" from 1.0 to 2.4, one frame more. A checkpoint does not say with which it was trained. "zeros_all": zeros
# beyond the ends as well, and as many frames as "reflected", as exports with a front end of their own have them.
Framing = Literal["zeros", "reflected", "zeros_all"]
Normalization = Literal["per_feature", "all_features", "none"]


@dataclass(frozen=True, kw_only=True)
class NemoMelConfig:
    """Options of `NemoMel` under NeMo's meaning (AudioToMelSpectrogramPreprocessor, 3.0.0), in samples and Hz.

    `shortest`: samples below which a clip gets zeros on both sides, half of them each; 0 for none. NeMo's `transcribe`
    does so with arrays, not with files, at 16000. ValueError for what cannot be.
    """

    kind: Literal["nemo_mel"] = "nemo_mel"
    sample_rate: int = 16000  # Hz
    window_length: int = 400
    hop_length: int = 160
    fft_length: int = 512
    bins: int = 80
    low_freq: float = 0.0  # Hz
    high_freq: float = 8000.0  # Hz
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["slaney", "none"] = "slaney"  # "slaney": every triangle has the area 1
    window: WindowShape = "hann"
    periodic: bool = False  # whether the window is that of a period; else it is symmetric
    framing: Framing = "zeros"
    subtract_mean: bool = False  # of a clip's samples, before all else
    preemphasis: float = 0.97  # 0 for none
    mag_power: float = 2.0  # of the magnitudes before the mel triangles
    log: bool = True
    log_guard: Literal["add", "clamp"] = "add"
    log_guard_value: float = 2.0**-24
    normalize: Normalization = "per_feature"
    pad_value: float = 0.0  # of the frames beyond a clip's end
    dither: float = 1e-5  # deviation of the noise; added only where a key is given
    shortest: int = 0

    def __post_init__(self) -> None:
        if self.sample_rate <= 0:
            raise ValueError(f"sample_rate must be positive, got {self.sample_rate}")
        if not 1 <= self.hop_length or not 1 <= self.window_length <= self.fft_length:
            raise ValueError(
                "hop_length must be positive and window_length lie in 1..fft_length, "
                f"got {self.hop_length}, {self.window_length} and {self.fft_length}"
            )
        if not 0.0 <= self.low_freq < self.high_freq <= self.sample_rate / 2:
            raise ValueError(
                f"low_freq and high_freq must satisfy 0 <= low < high <= {self.sample_rate / 2:g} Hz, "
                f"got {self.low_freq:g} and {self.high_freq:g}"
            )
        for name in ("bins", "mag_power", "log_guard_value"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("preemphasis", "dither", "shortest"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def output_dim(self) -> int:
        """Width of a frame: its mel bins."""
        return self.bins

    @property
    def lines(self) -> int:
        """Lines of the spectrum."""
        return self.fft_length // 2 + 1

    @property
    def frame_seconds(self) -> float:
        """Seconds from frame to frame."""
        return self.hop_length / self.sample_rate

    @property
    def reach(self) -> tuple[int, int] | None:
        """Samples that a frame is made of, before and from sample number * hop_length on; None where all are needed.

        Pre-emphasis looks at the sample before the first, and a mirrored end at one more.
        """
        if self.normalize != "none" or self.subtract_mean or self.shortest:
            return None
        return self.left + 2, self.window_length - self.left

    @property
    def left(self) -> int:
        """Samples of a frame's window before sample number * hop_length.

        The window stands in the middle of a Fourier transform whose middle is at that sample.
        """
        return self.fft_length // 2 - (self.fft_length - self.window_length) // 2

    def frame_count(self, samples: Count) -> Count:
        """Frames that count of so many samples: an int for an int, an integer array for an array. None of nothing."""
        padded = lengthened(samples, self.shortest)
        frames = padded // self.hop_length
        return frames if self.framing == "zeros" else frames + (padded > 0)


def lengthened(samples: Count, shortest: int) -> Count:
    """`samples`, or `shortest` where there are fewer, an empty clip staying empty; for integers and integer arrays."""
    lack = (shortest - samples) * (samples < shortest) * (samples > 0)
    return samples + lack
