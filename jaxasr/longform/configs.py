"""How a detector's probabilities become segments of speech: the rules by their `kind`, and what each is made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Protocol

import numpy as np

from jaxasr.configuration import Table, deferred

Span = tuple[int, int]  # from a first frame or sample to the one after the last


class Segmenter(Protocol):
    """Rules at work on one recording, whose frames come piece by piece; made as (config, frame_seconds)."""

    @property
    def hears_levels(self) -> bool:
        """Whether `feed` needs the frames' levels."""
        ...

    @property
    def pending(self) -> Span:
        """The first frame that a later segment may begin with, and up to where one that is open surely lasts.

        The two are equal where none is open.
        """
        ...

    def feed(self, speech: np.ndarray, levels: np.ndarray | None, samples: int) -> list[Span]:
        """The next frames' probabilities of speech (n,), and levels (n,) in dB: segments in frames that end here.

        `samples`: of the recording that have been heard so far, at 16 kHz.
        """
        ...

    def finish(self) -> list[Span]:
        """The segments that end with the recording. A stop may lie beyond the last frame."""
        ...


class SegmentsConfig(Protocol):
    """The configuration of such rules."""

    @property
    def kind(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class HysteresisConfig:
    """Two thresholds and least durations, in seconds.

    Speech begins with a probability of at least `onset` and lasts while none is below `offset`. Silence shorter than
    `min_silence` belongs to the speech around it; then speech shorter than `min_speech` is dropped, and the rest begins
    and ends `padding` earlier and later.
    """

    kind: Literal["hysteresis"] = "hysteresis"
    onset: float = 0.5
    offset: float = 0.35
    min_speech: float = 0.1
    min_silence: float = 0.5
    padding: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= self.onset <= 1:
            raise ValueError(
                f"offset and onset must satisfy 0 <= offset <= onset <= 1, not {self.offset}, {self.onset}"
            )
        for name in ("min_speech", "min_silence", "padding"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a number of seconds, not {getattr(self, name)}")
        if 2 * self.padding > self.min_silence:
            raise ValueError(f"padding must be at most half of min_silence, not {self.padding} of {self.min_silence}")


# Rows of `EndpointConfig.schedule` as FunASR 1.4 has them where a call does not give a silence of its own.
DYNAMIC_SCHEDULE = (
    (0, 2000), (10000, 1000), (20000, 800), (30000, 600), (40000, 400), (50000, 200), (60000, 100),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A window that decisions are summed over, and silence that ends a segment; times in milliseconds, levels in dB.

    A frame is speech where its probability p is at least (1 - p) ** `noise_power` + `threshold`, its level at least
    `least_level`, and by `least_ratio` above the noise's: a mean that follows frames without speech with a weight of
    1 / `noise_frames`. Gates of -100 dB are open.

    Speech begins where of the last `window_ms` at least `to_speech_ms` are, silence where at most `to_silence_ms` are.
    A segment begins `window_ms` before that, and `before_ms` more with `extends`. It ends where `silence_ms` less
    `to_silence_ms` are silent, with `extends` `after_ms` into them; after `longest_ms`; or with the recording.

    `schedule`: the longer a segment lasts, the less silence ends it: rows of (lasted more than so many ms, silence_ms),
    the first for all shorter ones; with rows `scheduled_threshold` stands for the threshold. How long it has lasted is
    counted in whole pieces of `call_ms` of the recording; with pieces shorter than 15 s from the piece after that in
    which it begins. `held_frames`: frames at the end of a piece that come with the next one, since the front end waits
    for what follows them.
    """

    kind: Literal["endpoints"] = "endpoints"
    threshold: float = 0.6
    noise_power: float = 1.0
    least_level: float = -100.0
    least_ratio: float = -100.0
    noise_frames: int = 100
    window_ms: int = 200
    to_speech_ms: int = 150
    to_silence_ms: int = 150
    before_ms: int = 200
    after_ms: int = 100
    extends: bool = True
    silence_ms: int = 800
    longest_ms: int = 60000
    schedule: tuple[tuple[int, int], ...] = ()
    scheduled_threshold: float = 0.5
    call_ms: int = 60000
    held_frames: int = 4

    def __post_init__(self) -> None:
        for name in ("window_ms", "longest_ms", "call_ms", "noise_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("to_speech_ms", "to_silence_ms", "before_ms", "after_ms", "silence_ms", "held_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("threshold", "noise_power", "least_level", "least_ratio", "scheduled_threshold"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a number, not {getattr(self, name)}")
        if list(self.schedule) != sorted(self.schedule):
            raise ValueError("the rows of schedule must ascend")


# Every kind of rules: made as (config, frame_seconds).
SEGMENTERS: Table[Segmenter] = Table(
    {
        "endpoints": (EndpointConfig, deferred("jaxasr.longform.endpoints", "Endpoints")),
        "hysteresis": (HysteresisConfig, deferred("jaxasr.longform.hysteresis", "Hysteresis")),
    }
)
