"""The configuration that describes a whole detector of speech. It needs no Flax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Literal

from jaxasr.arrays import ceil_div
from jaxasr.audio import SAMPLE_RATE
from jaxasr.encoders import ENCODERS, EncoderConfig, LocalEncoderConfig
from jaxasr.features import FEATURES, FeaturesConfig, require_fit
from jaxasr.heads.configs import ClassifierConfig
from jaxasr.longform.configs import SEGMENTERS, HysteresisConfig, SegmentsConfig

# Seconds around a frame that a front end hears: half a Fourier window, or neighbours that are put together.
FRONT_END_CONTEXT = 0.1


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """How a classifier of whole windows is used: one of `seconds` every `step` seconds, heard by itself.

    A window stands in the middle of its time, so that the first and the last ones reach beyond the recording, where
    they hear zeros. `pooling`: its frames become one by their mean or their maxima. `trailing_frames`: frames of zeros
    after those of the front end, pooled with them.
    """

    seconds: float = 0.63
    step: float = 0.1
    pooling: Literal["mean", "max"] = "mean"
    trailing_frames: int = 0

    def __post_init__(self) -> None:
        for name in ("seconds", "step"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) * SAMPLE_RATE >= 1):
                raise ValueError(f"window.{name} must be a number of seconds, not {getattr(self, name)}")
        if self.trailing_frames < 0:
            raise ValueError(f"window.trailing_frames must not be negative, not {self.trailing_frames}")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a detector hears at once: samples `start` to `stop` of a recording, zeros where there are none.

    Its probabilities from number `skip` on are `count` ones of the recording's.
    """

    start: int
    stop: int
    skip: int
    count: int


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """A whole detector, as config.yaml of its directory writes it; its key `classifier` tells it from a recogniser's.

    Without a `window` every encoded frame is classified. Recordings of up to `longest` seconds are then heard whole,
    longer ones in pieces that overlap by what the encoder hears around a frame: no frame depends on the pieces, but for
    statistics that a front end or an encoder takes of a whole input, which are those of a piece. `segments`: how
    probabilities become segments, by their `kind`. Raises ValueError where two parts do not agree.
    """

    name: str
    encoder: Annotated[EncoderConfig, ENCODERS]
    features: Annotated[FeaturesConfig, FEATURES]
    classifier: ClassifierConfig
    window: WindowConfig | None = None
    longest: float = 30.0
    segments: Annotated[SegmentsConfig, SEGMENTERS] = HysteresisConfig()

    def __post_init__(self) -> None:
        require_fit(self.features, self.encoder.input_dim, SAMPLE_RATE)
        if self.window is None:
            if not isinstance(self.encoder, LocalEncoderConfig):
                raise ValueError(
                    f"a {self.encoder.kind} hears all of a recording: frames need an encoder with a context"
                )
            if not (math.isfinite(self.longest) and self.row_samples > 2 * self._context):
                least = 2 * self._context / SAMPLE_RATE
                raise ValueError(f"longest must be more than {least:g} s, what the encoder hears, not {self.longest}")

    @property
    def frame_seconds(self) -> float:
        """Seconds from one probability to the next."""
        return self.step / SAMPLE_RATE

    @property
    def row_samples(self) -> int:
        """Samples of the longest row."""
        if self.window is not None:
            return round(self.window.seconds * SAMPLE_RATE)
        return round(self.longest * SAMPLE_RATE) // self.step * self.step

    def row_frames(self, samples: int) -> int:
        """Probabilities that a row of so many samples gives."""
        if self.window is not None:
            return 1
        return self.encoder.encoded_length(self.features.frame_count(samples))

    def rows(self, samples: int, done: int = 0, *, ended: bool = True) -> Iterator[Row]:
        """The rows of a recording of so many samples; their probabilities one after another are the recording's.

        `done`: how many of its first rows are left out. Of a recording that goes on after these samples, and has not
        `ended`, those rows alone that no further sample changes.
        """
        length = self.row_samples
        if samples == 0:
            return
        if self.window is not None:
            beyond = length // 2 if ended else length
            for start in range(self.row_start(done), samples + 1 - beyond, self.step):
                yield Row(start, start + length, 0, 1)
        elif samples <= length:
            if ended and not done:
                yield Row(0, samples, 0, self.row_frames(samples))
        else:
            context, inner = self._context, self._inner
            total = self.row_frames(samples)
            for first in range(done * inner, total * self.step, inner):
                if not ended and first + inner + context > samples:
                    return
                start, stop = max(0, first - context), min(samples, first + inner + context)
                before, skip = first // self.step, (first - start) // self.step
                yield Row(start, stop, skip, min(inner // self.step, total - before))

    def row_start(self, number: int) -> int:
        """The first sample that row `number` of a long recording hears; before the recording's own for a window."""
        if self.window is not None:
            return number * self.step - self.row_samples // 2
        return max(0, number * self._inner - self._context)

    @property
    def step(self) -> int:
        """Samples from one probability to the next."""
        if self.window is not None:
            return round(self.window.step * SAMPLE_RATE)
        return round(self.features.frame_seconds * SAMPLE_RATE) * self.encoder.subsampling

    @property
    def _inner(self) -> int:
        """Samples from one piece of a long recording to the next."""
        return self.row_samples - 2 * self._context

    @property
    def _context(self) -> int:
        """Samples on either side of a piece that its frames depend on, in whole steps."""
        assert isinstance(self.encoder, LocalEncoderConfig)
        seconds = self.encoder.context * self.features.frame_seconds + FRONT_END_CONTEXT
        return ceil_div(math.ceil(seconds * SAMPLE_RATE), self.step) * self.step
