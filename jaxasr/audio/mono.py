"""Channels to one, at full scale 1 and 16 kHz."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from fractions import Fraction
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np

from jaxasr.errors import AudioError

SAMPLE_RATE: Final = 16000  # Hz: what every recogniser here listens to

# Which channels of a recording are heard: their mean, each by itself, or the one of this number, from 1 on.
Channels: TypeAlias = Literal["mix", "each"] | int

Result = TypeVar("Result")

_RATES: Final = (1_000, 1_000_000)  # Hz; what a damaged header says outside would blow up memory when resampled
_WINDOW: Final = 1 << 10  # samples; over each it is decided whether channels cancel
_NOTICEABLE: Final = 0.5  # s of channels that cancel, of which the user is told
_CANCELLED: Final = 0.03  # of the power that the mean of independent channels would have
_SILENT: Final = 1e-8  # power, of full scale 1
_INTEGER_SCALE: Final = 2.0**15
_LOUDEST: Final = 64.0  # floating-point samples beyond it are not at full scale 1
_WIDEST: Final = 1.5 * _INTEGER_SCALE  # what they reach at the scale of 16-bit integers, filtered or resampled


ending = threading.Event()  # of the process: what is being decoded is given up


class LateScale(Exception):
    """Samples turn out to be at the scale of integers after some were taken to be at full scale 1."""


def check_rate(rate: float, name: str) -> None:
    """AudioError for a rate (Hz) that no recording has."""
    low, high = _RATES
    if not low <= rate <= high:
        raise AudioError(f"{name}: a sample rate of {rate:g} Hz is outside {low} to {high} Hz; check it or the header")


def checked_channels(channels: Channels) -> Channels:
    """The same; AudioError for what is neither "mix" nor "each" nor a number from 1 on."""
    number = isinstance(channels, int) and not isinstance(channels, bool) and channels >= 1
    if channels not in ("mix", "each") and not number:
        raise AudioError(f"channels must be 'mix', 'each' or a number from 1 on, not {channels!r}")
    return channels


class Mixer:
    """Blocks of one recording (n, C) to what is heard of each: a list of arrays (n,), one but for "each" channel.

    The mean of channels that cancel, such as a microphone wired the wrong way round, would be silence: where the mean
    keeps almost nothing of their power the loudest channel is taken, and `remarks` says so. Samples that are stored as
    `floating`-point numbers at the scale of 16-bit integers are divided by 32768, which `remarks` says too; `scaled`:
    they are known to be.
    Raises AudioError for NaN, infinity and samples at no scale, and LateScale.
    """

    def __init__(self, name: str, channels: Channels = "mix", *, floating: bool = True, scaled: bool = False) -> None:
        self._name, self._channels = name, checked_channels(channels)
        self._floating, self._scaled = floating, scaled
        self._begun = False
        self._loudest: int | None = None
        self._cancelled = 0

    def __call__(self, block: np.ndarray) -> list[np.ndarray]:
        block = self._checked(block)
        if self._scaled:
            block = block / np.float32(_INTEGER_SCALE)
        count = block.shape[1]
        if self._channels == "each":
            return [np.ascontiguousarray(channel) for channel in block.T]
        if self._channels != "mix":
            if self._channels > count:
                there = "one channel" if count == 1 else f"{count} channels"
                raise AudioError(f"{self._name}: has {there} and no channel {self._channels}")
            return [np.ascontiguousarray(block[:, self._channels - 1])]
        mono = np.asarray(sum(block.T) / np.float32(count))  # thirty times as fast as mean(axis=1)
        if count > 1 and len(block):
            self._keep_loudest(block, mono)
        return [mono]

    def looked_through(self, blocks: Iterable[np.ndarray]) -> Mixer:
        """One for the recording of all these blocks that raises no LateScale; nothing has been mixed yet."""
        if not self._floating or self._scaled:
            return self
        probe = Mixer(self._name, self._channels, floating=self._floating)
        try:
            for block in blocks:
                probe._checked(block)
        except LateScale:
            return self.scaling()
        return self.scaling() if probe._scaled else self

    def scaling(self) -> Mixer:
        """A new one for the same recording, whose samples are known to be at the scale of integers."""
        return Mixer(self._name, self._channels, scaled=True)

    def remarks(self, rate: float) -> list[str]:
        """Lines for the user about what was done, at the end of a recording of this rate (Hz)."""
        lines = []
        if self._scaled:
            lines.append(f"{self._name}: its samples were at the scale of 16-bit integers: they were divided by 32768")
        if self._cancelled > _NOTICEABLE * rate:
            lines.append(
                f"{self._name}: its channels cancel each other for {self._cancelled / rate:.1f} s: the loudest one was "
                "heard there instead of their mean"
            )
        return lines

    def _checked(self, block: np.ndarray) -> np.ndarray:
        if not len(block):
            return block
        with np.errstate(invalid="ignore"):
            peak = max(float(block.max()), -float(block.min()))
        if not np.isfinite(peak):
            raise AudioError(f"{self._name}: holds NaN, infinite or absurdly large samples; repair or record it again")
        if peak > _LOUDEST and not self._floating:
            clipped: np.ndarray = np.clip(block, -1, 1)  # what a decoder makes of damage
            return clipped
        if peak > _WIDEST:
            raise AudioError(
                f"{self._name}: its samples reach {peak:.4g}, absurdly large; divide them by their full scale, so that "
                "they lie in -1..1"
            )
        if peak > _LOUDEST and not self._scaled:
            if self._begun:
                raise LateScale
            self._scaled = True
        self._begun = True
        return block

    def _keep_loudest(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Overwrite the mean, where channels cancel, by the loudest channel."""
        starts = np.arange(0, len(block), _WINDOW)
        powers = np.add.reduceat(np.square(block), starts)  # (windows, C), and not yet divided by the samples
        kept = np.add.reduceat(np.square(mono), starts)
        total = powers.sum(axis=1)
        cancelled = (total > _SILENT * _WINDOW) & (kept < _CANCELLED * total / block.shape[1] ** 2)
        for window in np.flatnonzero(cancelled).tolist():
            if self._loudest is None or powers[window, self._loudest] < 0.5 * powers[window].max():
                self._loudest = int(powers[window].argmax())
            place = slice(starts[window], starts[window] + _WINDOW)
            mono[place] = block[place, self._loudest]
            self._cancelled += len(mono[place])


def mixed(
    work: Callable[[Mixer], Result], name: str, channels: Channels = "mix", *, floating: bool = True
) -> tuple[Result, Mixer]:
    """What `work` makes of a recording by a mixer, and the mixer; anew where samples turn out late to be integers."""
    mixer = Mixer(name, channels, floating=floating)
    try:
        return work(mixer), mixer
    except LateScale:
        mixer = mixer.scaling()
        return work(mixer), mixer


class Resampler:
    """One channel in blocks (n,) at `rate` Hz to blocks (m,) at 16 kHz, float32."""

    def __init__(self, rate: float) -> None:
        import soxr

        self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate > SAMPLE_RATE else None
        self._upsampler = _Upsampler(rate) if rate < SAMPLE_RATE else None

    def push(self, block: np.ndarray) -> np.ndarray:
        """The next block: what can be said after it."""
        if self._upsampler is not None:
            return self._upsampler.push(block)
        return block if self._stream is None else self._stream.resample_chunk(block)

    def finish(self) -> np.ndarray:
        """The rest."""
        if self._upsampler is not None:
            return self._upsampler.finish()
        rest = np.zeros(0, np.float32)
        return rest if self._stream is None else self._stream.resample_chunk(rest, last=True)


def gather(blocks: Iterable[np.ndarray], rate: float, mixer: Mixer, name: str) -> list[np.ndarray]:
    """Blocks (n, C) float32 at `rate` Hz to arrays (samples,) at 16 kHz, one for each channel that is heard."""
    gathered: list[bytearray] = []  # grow in place: lists of blocks would need twice the memory when joined
    for channels in resampled(blocks, rate, mixer, name):
        gathered += [bytearray() for _ in channels[len(gathered) :]]
        for whole, block in zip(gathered, channels, strict=True):
            whole += block.tobytes()
    return _taken(gathered)


def resampled(
    blocks: Iterable[np.ndarray], rate: float, mixer: Mixer, name: str
) -> Generator[list[np.ndarray], None, None]:
    """Blocks (n, C) float32 at `rate` Hz to blocks (m,) at 16 kHz, one for each channel that is heard; never none."""
    check_rate(rate, name)
    heard: list[Resampler] = []
    for block in blocks:
        if ending.is_set():
            raise AudioError(f"{name}: the process ends")
        channels = mixer(block)
        heard = heard or [Resampler(rate) for _ in channels]
        yield [resampler.push(channel) for resampler, channel in zip(heard, channels, strict=True)]
    yield [resampler.finish() for resampler in heard or [Resampler(rate)]]


def pieces(
    blocks: Callable[[], Iterable[np.ndarray]], rate: float, mixer: Mixer, name: str, size: int
) -> Generator[list[np.ndarray], None, Mixer]:
    """The sound of `resampled` in pieces of `size` samples, the last one shorter; at last the mixer that was taken.

    `blocks`: begins to decode; it is called again where samples turn out to be at the scale of integers before the
    first piece is whole. Of a longer recording that must be known (`looked_through`): LateScale.
    """
    gathered: list[bytearray] = []  # grow in place: lists of blocks would need twice the memory when joined
    length, given = 0, False
    try:
        for channels in resampled(blocks(), rate, mixer, name):
            gathered = gathered or [bytearray() for _ in channels]
            start, stop = 0, len(channels[0])
            while start < stop:
                taken = min(size - length, stop - start)
                for whole, block in zip(gathered, channels, strict=True):
                    whole += block[start : start + taken].tobytes()
                start, length = start + taken, length + taken
                if length == size:
                    given, length = True, 0
                    yield _taken(gathered)
    except LateScale:
        if given:
            raise
        return (yield from pieces(blocks, rate, mixer.scaling(), name, size))
    yield _taken(gathered)
    return mixer


def _taken(gathered: list[bytearray]) -> list[np.ndarray]:
    """The samples of each channel; empty ones stand in the list instead."""
    arrays = [np.frombuffer(whole, np.float32) for whole in gathered]
    gathered[:] = [bytearray() for _ in gathered]
    return arrays


def native(blocks: Iterable[np.ndarray], mixer: Mixer) -> Generator[np.ndarray, None, None]:
    """Blocks (n, C) to blocks (n,) of the one channel that is heard, at the rate that they have."""
    for block in blocks:
        (mono,) = mixer(block)
        yield mono


class _Upsampler:
    """From below 16 kHz, through a short filter that lets some of the mirror image above the old band pass.

    A steep filter leaves that band empty, which no recording at 16 kHz in a training corpus is: on spoken digits at
    8 kHz the published Zipformer makes 79 % word errors after soxr's HQ filter and 45 % after this one
    (docs/decisions.md). Blocks (n,) to blocks (m,), as if they were one.
    """

    def __init__(self, rate: float) -> None:
        ratio = Fraction(SAMPLE_RATE / rate).limit_denominator(1000)
        self._up, self._down = ratio.numerator, ratio.denominator
        # Scipy's filter spans ten samples of the lower rate on either side; blocks begin where the rates meet.
        self._context = -(-(10 * max(self._up, self._down) // self._up + 1) // self._down) * self._down
        self._held = np.zeros(0, np.float32)
        self._before = 0  # of what is held, samples that have been raised

    def push(self, block: np.ndarray) -> np.ndarray:
        """The next block: what later samples do not change."""
        self._held = np.concatenate([self._held, block])
        count = (len(self._held) - self._before - self._context) // self._down * self._down
        if count <= 0:
            return np.zeros(0, np.float32)
        stop = self._before + count
        raised = self._raised(self._held[: stop + self._context])[: stop * self._up // self._down]
        raised = raised[self._before * self._up // self._down :]
        self._before = min(stop, self._context)
        self._held = self._held[stop - self._before :].copy()
        return raised

    def finish(self) -> np.ndarray:
        """The rest."""
        return self._raised(self._held)[self._before * self._up // self._down :] if self._held.size else self._held

    def _raised(self, samples: np.ndarray) -> np.ndarray:
        from scipy import signal

        raised: np.ndarray = signal.resample_poly(samples, self._up, self._down)
        return raised.astype(np.float32, copy=False)
