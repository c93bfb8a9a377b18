"""Segments by a window of decisions and a silence that ends them: the rules of FunASR's detector, frame by frame.

Source: FunASR 1.4.16, models/fsmn_vad_streaming/model.py (GetFrameState, WindowDetector, DetectOneFrame, inference).
Frames count from 0; a segment that begins with frame s and ends with frame e is the span (s, e + 1).
"""

from __future__ import annotations

import collections

import numpy as np

from jaxasr.audio import SAMPLE_RATE
from jaxasr.longform.configs import EndpointConfig, Span

OPEN = -100.0  # dB; no frame's level or ratio is below it
STREAMED_MS = 15000  # pieces from this length on are no stream's: they report whole segments alone
_NO_NOISE = -99.9  # dB; the noise's level is below it before any noise was heard


class Endpoints:
    """A Segmenter: one recording's segments, its frames given piece by piece."""

    def __init__(self, config: EndpointConfig, frame_seconds: float) -> None:
        self._config = config
        self._frame_ms = frame_ms = round(1000 * frame_seconds)
        self._latency = config.window_ms // frame_ms + (config.before_ms // frame_ms if config.extends else 0)
        self._after = config.after_ms // frame_ms
        self._threshold = config.threshold
        self._silence_ms = config.silence_ms - config.to_silence_ms  # what ends a segment, after silence has begun
        self._waiting: list[tuple[np.ndarray, np.ndarray | None]] = []  # frames that no piece has taken yet
        self._calls = 0  # pieces done
        self._lasted, self._lasts = 0, False  # how long the segment has lasted by the pieces (ms), and whether one does
        self._noise = OPEN
        self._frame = 0  # the next one's number
        self._free = 0  # the first frame that is in no segment yet
        self._begun: int | None = None  # the open segment's first frame
        self._last = -1  # its last one so far
        self._silent = 0  # frames of silence since the last change
        self._sliding = self._new_sum()

    @property
    def hears_levels(self) -> bool:
        """As Segmenter says: levels matter to gates that are not open."""
        return self._config.least_level > OPEN or self._config.least_ratio > OPEN

    @property
    def pending(self) -> Span:
        """As Segmenter says."""
        if self._begun is None:
            first = max(self._free, self._frame - self._latency)
            return first, first
        return self._begun, self._last + 1

    def feed(self, speech: np.ndarray, levels: np.ndarray | None, samples: int) -> list[Span]:
        """The segments that end in frames of these probabilities (n,) and levels (n,), as far as a piece is whole."""
        self._waiting.append((speech, levels))
        ended: list[Span] = []
        while True:
            whole = (self._calls + 1) * self._config.call_ms
            count = whole // self._frame_ms - self._config.held_frames - self._frame
            if samples * 1000 < whole * SAMPLE_RATE or sum(len(each) for each, _ in self._waiting) < count:
                return ended
            ended += self._call(max(count, 0))

    def finish(self) -> list[Span]:
        """The segments of the last piece; one that begins with the last frame ends there too."""
        ended = self._call(None)
        return ended if self._begun is None else [*ended, (self._begun, self._last + 1)]

    def _call(self, count: int | None) -> list[Span]:
        """A piece of so many of the waiting frames, of all for the last one: its segments."""
        self._follow_schedule()
        speech = np.concatenate([np.zeros(0, np.float32), *(each for each, _ in self._waiting)]).astype(np.float64)
        known = [levels for _, levels in self._waiting if levels is not None]
        levels = np.concatenate(known) if known else None
        end = len(speech) if count is None else count
        self._waiting = [(speech[end:], None if levels is None else levels[end:])]
        decisions = self._decisions(speech[:end], None if levels is None else levels[:end])
        begun = self._begun
        ended: list[Span] = []
        for place, speaks in enumerate(decisions):
            ended += self._hear(speaks, final=count is None and place == end - 1)
        self._calls += 1
        starts = self._config.call_ms < STREAMED_MS and self._begun not in (None, begun)
        if ended or starts:
            self._lasted, self._lasts = 0, False
        return ended

    def _follow_schedule(self) -> None:
        rows = self._config.schedule
        if not rows:
            return
        if self._begun is not None or self._lasts:
            self._lasted, self._lasts = self._lasted + self._config.call_ms, True
        silence = next((silence for more, silence in reversed(rows) if self._lasted > more), rows[0][1])
        self._silence_ms = max(silence - self._config.to_silence_ms, 0)
        self._threshold = self._config.scheduled_threshold

    def _decisions(self, speech: np.ndarray, levels: np.ndarray | None) -> list[bool]:
        """Which frames are speech, by their probabilities (n,) and levels (n,)."""
        noise = np.maximum(1 - speech, 0) ** self._config.noise_power
        found: list[bool] = (speech >= noise + self._threshold).tolist()
        if not self.hears_levels or levels is None:
            return found
        least = self._config.least_level
        for place, level in enumerate(levels.tolist()):
            if level < least:
                found[place] = False
            elif found[place]:
                found[place] = level - self._noise >= self._config.least_ratio
            elif self._noise < _NO_NOISE:
                self._noise = level
            else:
                self._noise = (level + self._noise * (self._config.noise_frames - 1)) / self._config.noise_frames
        return found

    def _hear(self, speaks: bool, final: bool) -> list[Span]:
        """The next frame; `final`: the recording's last one."""
        frame, before = self._frame, self._sliding.speech
        self._frame += 1
        speech = self._sliding.hear(speaks)
        self._silent = self._silent + 1 if not (before or speech) else 0

        if self._begun is None:
            if speech and not before:
                self._begun = self._free = max(self._free, frame - self._latency)
                self._last = self._begun - 1
                self._take_until(frame + 1)
            elif self._silent and frame >= self._latency:
                self._free = max(self._free, frame - self._latency)
            return []
        if speech and not before:
            self._take_until(frame)
        if self._silent and self._silent * self._frame_ms >= self._silence_ms:
            back = int(self._silence_ms / self._frame_ms) - (self._after + 1 if self._config.extends else 0)
            return self._end(frame - max(back, 0))
        if (frame - self._begun + 1) * self._frame_ms > self._config.longest_ms or final:
            return self._end(frame)
        if not self._silent or (self._config.extends and self._silent <= self._after):
            self._take(frame)
        return []

    def _take(self, frame: int) -> None:
        """The frame belongs to the segment. One that was taken before counts again, as in the original."""
        self._free = max(self._free, frame) + 1
        self._last = frame

    def _take_until(self, stop: int) -> None:
        """All frames that follow the last one taken, up to `stop`."""
        for frame in range(self._last + 1, stop):
            self._take(frame)

    def _end(self, frame: int) -> list[Span]:
        """The segment ends with this frame; all begins anew."""
        assert self._begun is not None
        self._take_until(frame)
        self._take(frame)
        span = (self._begun, frame + 1)
        self._begun, self._last, self._silent = None, -1, 0
        self._sliding = self._new_sum()
        return [span]

    def _new_sum(self) -> _SlidingSum:
        config, frame_ms = self._config, self._frame_ms
        sizes = (each // frame_ms for each in (config.window_ms, config.to_speech_ms, config.to_silence_ms))
        return _SlidingSum(*sizes)


class _SlidingSum:
    """Decisions of `size` frames, summed: `speech` from a sum of `to_speech` on, until one of at most `to_silence`."""

    def __init__(self, size: int, to_speech: int, to_silence: int) -> None:
        self._to_speech, self._to_silence = to_speech, to_silence
        self._decisions = collections.deque([False] * max(size, 1))
        self._sum = 0
        self.speech = False

    def hear(self, speaks: bool) -> bool:
        """The next frame's decision: whether it counts as speech after all."""
        self._decisions.append(speaks)
        self._sum += speaks - self._decisions.popleft()
        self.speech = self._sum > self._to_silence if self.speech else self._sum >= self._to_speech
        return self.speech
