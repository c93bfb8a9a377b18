"""What each step of a stream takes: which samples, which of its frames exist, and when it may run. Needs no device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxasr.encoders import StreamingEncoderConfig
from jaxasr.errors import ConfigError
from jaxasr.features import StreamingFeaturesConfig
from jaxasr.model_config import ModelConfig


class StreamPiece(NamedTuple):
    """The input of one step of many streams, a row for each.

    samples (B, W) float32: those around the frames of the step's window. begin, end (B,) int32: the stream is
    samples[begin:end] of the row, as `StreamingFeatures.piece` takes them. first, stop (B,) int32: the frames
    first:stop of the window exist in the stream, the others are zeros. counted (B,) int32: encoded frames for the
    search. final (B,) bool: the stream ends with this step.
    """

    samples: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    counted: np.ndarray
    final: np.ndarray


class StreamPlan:
    """How the streams of a model are cut into steps.

    `samples`: W, that a step takes. `encoded`: encoded frames that it gives at most.
    """

    def __init__(self, config: ModelConfig) -> None:
        """ConfigError where the model cannot take a stream."""
        encoder, features = config.encoder, config.features
        reach = features.reach if isinstance(features, StreamingFeaturesConfig) else None
        chunked = isinstance(encoder, StreamingEncoderConfig) and encoder.streamable
        if reach is None or not (isinstance(encoder, StreamingEncoderConfig) and chunked):
            hears = "features are" if chunked else "encoder is"
            raise ConfigError(
                f"{config.name} cannot stream, since its {hears} computed over whole recordings: take a model whose "
                "encoder works in chunks, such as librispeech-zipformer-medium-streaming"
            )
        self._encoder, self._features = encoder, features
        self._before, self._after = reach
        self._hop = round(features.frame_seconds * features.sample_rate)
        self.samples = self._before + (encoder.frames_per_step - 1) * self._hop + self._after
        self.encoded = encoder.encoded_per_step

    def start(self, step: int) -> int:
        """The sample of the stream at which a step's samples begin; below 0 where zeros stand before the stream."""
        return self._first(step) * self._hop - self._before

    def ready(self, samples: int) -> int:
        """Steps that may run when so many samples have come and more may follow."""
        return self._encoder.ready_steps(self._known(samples))

    def total(self, samples: int) -> int:
        """Steps of a stream of so many samples in all."""
        return self._ending(samples)[0]

    def empty(self, rows: int) -> StreamPiece:
        """A piece of so many streams, none of which has anything in it."""
        samples, final = np.zeros((rows, self.samples), np.float32), np.zeros((rows,), bool)
        begin, end, first, stop, counted = np.zeros((5, rows), np.int32)
        return StreamPiece(samples, begin, end, first, stop, counted, final)

    def fill(self, piece: StreamPiece, row: int, step: int, samples: np.ndarray, known: int, ended: bool) -> None:
        """Put a stream's step into a row.

        `samples`: the stream's from `start(step)` on, or from 0 on where that is below 0; further ones are ignored.
        `known`: samples that have come in all; no more will where the stream has `ended`.
        """
        start, size = self.start(step), self._encoder.frames_per_step
        skipped = max(-start, 0)
        samples = samples[: self.samples - skipped]
        piece.samples[row, :] = 0
        piece.samples[row, skipped : skipped + len(samples)] = samples
        total, frames = self._ending(known) if ended else (0, self._known(known))
        piece.begin[row] = max(-start, -self.samples)
        piece.end[row] = min(known - start, self.samples)
        piece.first[row] = max(-self._first(step), 0)
        piece.stop[row] = min(frames - self._first(step), size)
        piece.counted[row] = self._encoder.counted(step, frames)
        piece.final[row] = step + 1 == total

    def _first(self, step: int) -> int:
        """The frame with which a step's window begins."""
        return self._encoder.first_frame + step * self._encoder.shift_per_step

    def _ending(self, samples: int) -> tuple[int, int]:
        """Steps of a stream of so many samples in all, and the frames that they read."""
        return self._encoder.ending(self._features.frame_count(samples), self._known(samples))

    def _known(self, samples: int) -> int:
        """Frames that no further sample changes."""
        return max((samples - self._after) // self._hop + 1, 0)
