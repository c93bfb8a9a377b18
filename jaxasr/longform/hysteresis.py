"""Segments by two thresholds and least durations, as pyannote and NeMo (vad_utils.py) binarize probabilities."""

from __future__ import annotations

import numpy as np

from jaxasr.longform.configs import HysteresisConfig, Span


class Hysteresis:
    """A Segmenter: one recording's segments, its frames given piece by piece."""

    hears_levels = False

    def __init__(self, config: HysteresisConfig, frame_seconds: float) -> None:
        self._config = config
        durations = (config.min_speech, config.min_silence, config.padding)
        self._min_speech, self._min_silence, self._padding = (round(each / frame_seconds) for each in durations)
        self._frame = 0  # the next one's number
        self._speaks = False
        self._begun: int | None = None  # the first frame of speech that may last
        self._last = 0  # the frame after its last one so far

    @property
    def pending(self) -> Span:
        """As Segmenter says."""
        if self._begun is None:
            first = max(self._frame - self._padding, 0)
            return first, first
        first = max(self._begun - self._padding, 0)
        return first, self._last if self._lasts else first

    def feed(self, speech: np.ndarray, levels: np.ndarray | None, samples: int) -> list[Span]:
        """The segments that end in frames of these probabilities (n,)."""
        ended: list[Span] = []
        for probability in speech.tolist():
            self._speaks = probability >= (self._config.offset if self._speaks else self._config.onset)
            if self._speaks:
                self._begun = self._frame if self._begun is None else self._begun
                self._last = self._frame + 1
            elif self._begun is not None and self._frame + 1 - self._last >= max(self._min_silence, 1):
                ended += self.finish()
            self._frame += 1
        return ended

    def finish(self) -> list[Span]:
        """The segment that is open, if it is long enough."""
        begun, self._begun = self._begun, None
        if begun is None or self._last - begun < self._min_speech:
            return []
        return [(max(begun - self._padding, 0), self._last + self._padding)]

    @property
    def _lasts(self) -> bool:
        return self._begun is not None and self._last - self._begun >= self._min_speech
