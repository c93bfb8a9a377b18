"""A detector of speech, ready to hear recordings of any length in bounded batches, and as they are decoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxasr import audio
from jaxasr.caches import programs_kept
from jaxasr.detector_config import DetectorConfig, Row
from jaxasr.devices import check_process, usual_settings
from jaxasr.inputs import AudioInput, named_source
from jaxasr.longform.configs import SEGMENTERS, SegmentsConfig, Span
from jaxasr.model import AbstractDetector
from jaxasr.model_config import Parameters

# Sound in one batch, in seconds. On a CPU larger batches are slower, since activations leave its caches.
CPU_BATCH_SECONDS, BATCH_SECONDS = 20.0, 1200.0
LEVEL_SECONDS = 0.025  # of sound whose level is a frame's


class Detector:
    """How probable speech is, step by step through a recording, and where its segments are. Threads may share it.

    `config` describes it, `params` are its arrays on the device. `frame_seconds`: seconds from one probability to the
    next; number `t` is about the time around `t * frame_seconds`. `load_detector` makes one from a folder.
    """

    def __init__(self, config: DetectorConfig, params: Parameters) -> None:
        """`params`: nested arrays, as a model directory stores them."""
        check_process()
        self.config = config
        seconds = CPU_BATCH_SECONDS if jax.default_backend() == "cpu" else BATCH_SECONDS
        # All batches have one shape, so that there is one program.
        self._rows = max(1, int(seconds * audio.SAMPLE_RATE) // config.row_samples)
        with programs_kept(), usual_settings():
            abstract = AbstractDetector(config)
            self.params = jax.device_put(params, jax.local_devices()[0])
            self._run = jax.jit(lambda params, waveforms, lengths: abstract.fill(params)(waveforms, lengths))

    def __reduce__(self) -> tuple[type[Detector], tuple[Any, ...]]:
        """It pickles: its arrays go along, and its program is made anew."""
        return type(self), (self.config, jax.device_get(self.params))

    @property
    def frame_seconds(self) -> float:
        """Seconds from one probability to the next."""
        return self.config.frame_seconds

    def __call__(self, source: AudioInput, sample_rate: float | None = None) -> np.ndarray:
        """The probabilities of speech in one recording: (frames,) float32, none for a recording without samples.

        `source`: a file, bytes, an array or a mapping, as `Recognizer.transcribe` takes it; channels are mixed.
        `sample_rate`: of an array, in Hz; 16,000 by default. Raises AudioError.
        """
        listener = _Listener(self)
        samples = _load(source, sample_rate)
        return np.concatenate([listener.push(samples), listener.finish()])

    def segments(
        self, source: AudioInput, sample_rate: float | None = None, rules: SegmentsConfig | None = None
    ) -> list[tuple[float, float]]:
        """Where in one recording somebody speaks: begin and end of each segment, in seconds. Raises AudioError.

        `source`, `sample_rate`: as a call takes them. `rules`: instead of the detector's own, `config.segments`.
        """
        finder = self.finder(rules)
        spans = [*finder.push(_load(source, sample_rate)), *finder.finish()]
        return [(start / audio.SAMPLE_RATE, stop / audio.SAMPLE_RATE) for start, stop in spans]

    def finder(self, rules: SegmentsConfig | None = None) -> Finder:
        """What finds the segments of one recording while it is decoded. `rules`: instead of `config.segments`."""
        return Finder(self, rules or self.config.segments)

    def hear(self, samples: np.ndarray, offset: int, rows: Iterable[Row]) -> np.ndarray:
        """The probabilities of rows one after another: (frames,) float32.

        `samples`: of the recording from number `offset` on, with all that the rows hear.
        """
        parts = [np.zeros(0, np.float32)]
        left = iter(rows)
        while batch := list(itertools.islice(left, self._rows)):
            waveforms = np.zeros((self._rows, self.config.row_samples), np.float32)
            lengths = np.zeros(self._rows, np.int32)
            for number, row in enumerate(batch):
                inside = samples[max(row.start, 0) - offset : row.stop - offset]
                before = max(-row.start, 0)
                waveforms[number, before : before + len(inside)] = inside
                lengths[number] = row.stop - row.start
            check_process()
            with programs_kept(), usual_settings():
                probabilities = np.asarray(self._run(self.params, waveforms, lengths))
            parts += [probabilities[number, row.skip : row.skip + row.count] for number, row in enumerate(batch)]
        return np.concatenate(parts)


class Finder:
    """The segments of speech in one recording, in samples at 16 kHz; its samples come bit by bit."""

    def __init__(self, detector: Detector, rules: SegmentsConfig) -> None:
        self._listener, self._step = _Listener(detector), detector.config.step
        self._segmenter = SEGMENTERS.make(rules, detector.frame_seconds)
        self._levels = _Levels(self._step) if self._segmenter.hears_levels else None
        self._heard = 0

    @property
    def pending(self) -> Span:
        """The first sample that a later segment may hold, and up to where one that is open surely lasts."""
        first, sure = self._segmenter.pending
        return first * self._step, sure * self._step

    def push(self, samples: np.ndarray) -> list[Span]:
        """The segments that are known to end after these samples (n,) float32."""
        self._heard += len(samples)
        return self._found(samples, self._listener.push(samples))

    def finish(self) -> list[Span]:
        """The segments that end with the recording."""
        spans = self._found(np.zeros(0, np.float32), self._listener.finish())
        spans += self._in_samples(self._segmenter.finish())
        return [(start, min(stop, self._heard)) for start, stop in spans if start < self._heard]

    def _found(self, samples: np.ndarray, speech: np.ndarray) -> list[Span]:
        levels = self._levels.push(samples, len(speech)) if self._levels is not None else None
        return self._in_samples(self._segmenter.feed(speech, levels, self._heard))

    def _in_samples(self, spans: list[Span]) -> list[Span]:
        return [(start * self._step, stop * self._step) for start, stop in spans]


class _Listener:
    """The probabilities of one recording, whose samples come bit by bit."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._kept = np.zeros(0, np.float32)  # from sample `_offset` on
        self._offset = self._done = 0  # and rows that are done

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Probabilities (frames,) that no further samples change."""
        return self._hear(samples, ended=False)

    def finish(self) -> np.ndarray:
        """The last probabilities (frames,)."""
        return self._hear(np.zeros(0, np.float32), ended=True)

    def _hear(self, samples: np.ndarray, ended: bool) -> np.ndarray:
        self._kept = np.concatenate([self._kept, samples]) if len(self._kept) else samples
        config = self._detector.config
        rows = list(config.rows(self._offset + len(self._kept), self._done, ended=ended))
        probabilities = self._detector.hear(self._kept, self._offset, rows)
        self._done += len(rows)
        start = max(config.row_start(self._done), self._offset) if rows else self._offset
        self._kept, self._offset = self._kept[start - self._offset :].copy(), start
        return probabilities


class _Levels:
    """The levels of one recording's frames: 10 log10 of the energy of LEVEL_SECONDS from each frame's begin on."""

    def __init__(self, step: int) -> None:
        self._step, self._length = step, int(LEVEL_SECONDS * audio.SAMPLE_RATE)
        self._kept = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray, frames: int) -> np.ndarray:
        """Samples are kept, and the levels of the next so many frames given: (frames,) float32, in dB."""
        self._kept = np.concatenate([self._kept, samples])
        needed = (frames - 1) * self._step + self._length if frames else 0
        sound = np.pad(self._kept[:needed], (0, max(needed - len(self._kept), 0)))
        places = range(0, frames * self._step, self._step)
        energies = [np.sum(np.square(sound[place : place + self._length])) for place in places]
        self._kept = self._kept[frames * self._step :]
        # The guard is the original's: FunASR, fsmn_vad_streaming/model.py, ComputeDecibel.
        levels: np.ndarray = np.float32(10) * np.log10(np.array(energies, np.float32) + np.float32(1e-6))
        return levels


def _load(source: AudioInput, sample_rate: float | None) -> np.ndarray:
    check_process()
    heard = named_source(source, sample_rate)
    return audio.load(heard.source, heard.sample_rate)
