"""A detector of speech, ready to hear recordings of any length in bounded batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxasr import audio
from jaxasr.caches import programs_kept
from jaxasr.detector_config import DetectorConfig, Row
from jaxasr.devices import check_process, usual_settings
from jaxasr.inputs import AudioInput, recording
from jaxasr.model import AbstractDetector
from jaxasr.model_config import Parameters

# Sound in one batch, in seconds. On a CPU larger batches are slower, since activations leave its caches.
CPU_BATCH_SECONDS, BATCH_SECONDS = 20.0, 1200.0


class Detector:
    """How probable speech is, step by step through a recording. Threads may share it.

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

    @property
    def frame_seconds(self) -> float:
        """Seconds from one probability to the next."""
        return self.config.frame_seconds

    def __call__(self, source: AudioInput, sample_rate: float | None = None) -> np.ndarray:
        """The probabilities of speech in one recording: (frames,) float32, none for a recording without samples.

        `source`: a file, bytes, an array or a mapping, as `Recognizer.transcribe` takes it; channels are mixed.
        `sample_rate`: of an array, in Hz; 16,000 by default. Raises AudioError.
        """
        check_process()
        heard = recording(source, sample_rate)
        samples = audio.load(heard.source, heard.sample_rate)
        rows = self.config.rows(len(samples))
        parts = [np.zeros(0, np.float32)]
        while batch := list(itertools.islice(rows, self._rows)):
            parts += self._hear(samples, batch)
        return np.concatenate(parts)

    def _hear(self, samples: np.ndarray, rows: Sequence[Row]) -> Iterator[np.ndarray]:
        """The probabilities of each of a batch's rows, of which there are at most as many as its program takes."""
        waveforms = np.zeros((self._rows, self.config.row_samples), np.float32)
        lengths = np.zeros(self._rows, np.int32)
        for number, row in enumerate(rows):
            inside = samples[max(row.start, 0) : row.stop]
            before = max(-row.start, 0)
            waveforms[number, before : before + len(inside)] = inside
            lengths[number] = row.stop - row.start
        with programs_kept(), usual_settings():
            probabilities = np.asarray(self._run(self.params, waveforms, lengths))
        for number, row in enumerate(rows):
            yield probabilities[number, row.skip : row.skip + row.count]
