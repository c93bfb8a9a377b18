"""Options of Kaldi's log-mel filterbank, its mel triangles, and how many frames it makes of how many samples."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxasr.arrays import Count, at_least_zero

WindowShape = Literal["povey", "hamming", "hann"]


@dataclass(frozen=True, kw_only=True)
class KaldiConfig:
    """Options of `KaldiFbank` under Kaldi's meaning; the defaults are those of icefall and sherpa-onnx.

    FunASR's are window="hamming", high_freq=0.0, snip_edges=True, sample_scale=32768.0. ValueError for what cannot be.
    """

    kind: Literal["kaldi"] = "kaldi"
    sample_rate: int = 16000  # Hz
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    bins: int = 80
    low_freq: float = 20.0  # Hz
    high_freq: float = -400.0  # Hz; zero or below counts from the Nyquist frequency
    window: WindowShape = "povey"  # povey and hamming are symmetric, hann periodic, as in kaldi-native-fbank
    preemphasis: float = 0.97
    remove_dc_offset: bool = True
    dither: float = 0.0  # deviation of the noise, in units of scaled samples; added only where a key is given
    snip_edges: bool = False  # True: only frames that lie wholly inside; False: the ends are mirrored
    energy_floor: float = 1.1920929e-07  # of a mel energy before the logarithm: float32's epsilon, log -15.9424
    sample_scale: float = 1.0  # multiplies samples in -1..1; FunASR and Kaldi itself work on 32768

    def __post_init__(self) -> None:
        if self.sample_rate <= 0:
            raise ValueError(f"sample_rate must be positive, got {self.sample_rate}")
        if self.frame_shift < 1 or self.frame_length < self.frame_shift:
            raise ValueError(
                "frame_shift_ms must cover at least one sample and frame_length_ms at least one shift, "
                f"got {self.frame_shift_ms} and {self.frame_length_ms}"
            )
        if not 0.0 <= self.preemphasis <= 1.0:
            raise ValueError(f"preemphasis must lie in 0..1, got {self.preemphasis}")
        if self.dither < 0.0:
            raise ValueError(f"dither must not be negative, got {self.dither}")
        if self.energy_floor <= 0.0:
            raise ValueError(f"energy_floor must be positive, got {self.energy_floor}")
        if self.sample_scale <= 0.0:
            raise ValueError(f"sample_scale must be positive, got {self.sample_scale}")
        nyquist = self.sample_rate / 2
        if not 0.0 <= self.low_freq < self.highest_frequency <= nyquist:
            raise ValueError(
                f"low_freq and high_freq must satisfy 0 <= low < high <= {nyquist:g} Hz, "
                f"got {self.low_freq:g} and {self.high_freq:g} (that is {self.highest_frequency:g})"
            )
        if self.bins < 3:
            raise ValueError(f"bins must be at least 3, got {self.bins}")
        mel_banks(self)

    @property
    def frame_length(self) -> int:
        """Samples of a frame."""
        return _milliseconds(self.sample_rate, self.frame_length_ms)

    @property
    def frame_shift(self) -> int:
        """Samples from frame to frame."""
        return _milliseconds(self.sample_rate, self.frame_shift_ms)

    @property
    def fft_length(self) -> int:
        """Points of the Fourier transform: the frame length rounded up to a power of two."""
        return 1 << (self.frame_length - 1).bit_length()

    @property
    def highest_frequency(self) -> float:
        """Upper edge of the last mel bin in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @property
    def output_dim(self) -> int:
        """Width of a frame: its mel bins."""
        return self.bins

    @property
    def frame_seconds(self) -> float:
        """Seconds from frame to frame."""
        return self.frame_shift / self.sample_rate

    @property
    def reach(self) -> tuple[int, int]:
        """Samples that a frame is made of, before and from sample number * frame_shift on."""
        before = 0 if self.snip_edges else self.frame_length // 2 - self.frame_shift // 2
        return before, self.frame_length - before

    def frame_count(self, samples: Count) -> Count:
        """Frames that so many samples give: an int for an int, an integer array for an array."""
        if not self.snip_edges:
            return (samples + self.frame_shift // 2) // self.frame_shift
        return at_least_zero((samples - self.frame_length) // self.frame_shift + 1)


def _milliseconds(sample_rate: int, milliseconds: float) -> int:
    # Kaldi multiplies in float32 and cuts off: other arithmetic gives another size at odd rates.
    return int(np.float32(sample_rate) * np.float32(0.001) * np.float32(milliseconds))


@functools.lru_cache(maxsize=32)
def mel_banks(config: KaldiConfig) -> np.ndarray:
    """Triangles on the mel scale 1127 ln(1 + f / 700), (fft_length / 2 + 1, bins) float32.

    In float32 step by step, as Kaldi computes them: the low bins hold one or two lines of the spectrum, so that float64
    moves their logarithm by up to 1e-3. ValueError where a bin would hold no line at all.
    """
    lines = np.arange(config.fft_length // 2, dtype=np.float32)  # Kaldi leaves the Nyquist line out
    mel = _mel(np.float32(config.sample_rate / config.fft_length) * lines)[:, None]
    low, high = _mel(np.array([config.low_freq, config.highest_frequency], np.float32))
    delta = (high - low) / np.float32(config.bins + 1)
    left, center, right = (low + np.arange(i, i + config.bins, dtype=np.float32) * delta for i in range(3))
    weights = np.where(mel <= center, (mel - left) / (center - left), (right - mel) / (right - center))
    weights = np.where((mel > left) & (mel < right), weights, np.float32(0))
    empty = np.flatnonzero(~weights.any(axis=0))
    if empty.size:
        raise ValueError(f"bins: {config.bins} are too many, bin {empty[0]} holds no line of the spectrum")
    weights = np.pad(weights, ((0, 1), (0, 0)))
    weights.flags.writeable = False
    return weights


def _mel(frequency: np.ndarray) -> np.ndarray:
    # The logarithm is rounded once from float64, as the C library's logf is; numpy's own float32 one errs by more.
    ratio = np.float32(1) + frequency / np.float32(700)
    return np.float32(1127) * np.log(ratio.astype(np.float64)).astype(np.float32)
