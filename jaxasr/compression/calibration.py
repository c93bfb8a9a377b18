"""What the encoder's products are multiplied by while it hears recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxasr import audio
from jaxasr.audio import SAMPLE_RATE
from jaxasr.caches import programs_kept
from jaxasr.devices import usual_settings
from jaxasr.errors import AudioError, ConfigError, printable
from jaxasr.manifests import Utterance, duration, read_audio
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.rules import layer_of
from jaxasr.quant.watched import WatchedArray
from jaxasr.store import flatten, unflatten

WINDOW_SECONDS, ROWS = 8.0, 4  # of one batch
# Sound beyond this adds little: a matrix of 2,000 inputs sees 12,000 frames of 40 ms in it.
MOST_SECONDS = 480.0


@dataclasses.dataclass(frozen=True)
class Windows:
    """Recordings one after another, cut to windows of one length: no frame is padding, and one program hears all.

    `waveforms`: (N, S) float32 at 16 kHz, N a multiple of ROWS. `files`: what each window was read from.
    """

    waveforms: np.ndarray
    files: tuple[tuple[str, ...], ...]


def windows_of(utterances: Sequence[Utterance], most_seconds: float = MOST_SECONDS) -> Windows:
    """So much of the recordings, evenly spread over them, as windows; the last begins again with the first.

    Raises AudioError for a recording that cannot be read, or that holds NaN.
    """
    known = sum(duration(utterance) for utterance in utterances)
    step = max(1.0, known / most_seconds)
    taken = [utterances[int(index * step)] for index in range(int(len(utterances) / step) or 1)]
    clips = [(str(each.pieces[0].path), audio.load(*read_audio(each))) for each in taken]
    samples = np.concatenate([clip for _, clip in clips])
    if not samples.size:
        raise ConfigError(f"{utterances[0].manifest}: the recordings hold no sound")
    size = int(WINDOW_SECONDS * SAMPLE_RATE)
    count = -(-len(samples) // (size * ROWS)) * ROWS
    ends = np.cumsum([len(clip) for _, clip in clips])
    files = []
    for number in range(count):
        # The numbers of the clips that the window's first and last sample are of, those of the second round included.
        first, last = (int(np.searchsorted(ends, place % len(samples), "right")) for place in
                       (number * size, min((number + 1) * size, number * size + len(samples)) - 1))
        span = range(first, last + 1) if first <= last else (*range(first, len(clips)), *range(last + 1))
        files.append(tuple(dict.fromkeys(clips[clip][0] for clip in span)))
    return Windows(np.resize(samples, (count, size)), tuple(files))


class Calibration:
    """An encoder over windows of recordings, with weights that may change from one hearing to the next.

    `paths`: the weights of matrices and convolutions of the encoder, in the order in which it multiplies with them.
    """

    def __init__(self, config: ModelConfig, windows: Windows) -> None:
        self._windows = windows
        self._heard: Callable[[str, np.ndarray], None] = _ignore
        with usual_settings():
            self._model = AbstractModel(config)
            self._encode = jax.jit(self._encode_windows)
        shapes = {path: leaf.shape for path, leaf in flatten(self._model.floats).items()}
        self._watched = {
            path
            for path, shape in shapes.items()
            if path.startswith("encoder.") and layer_of(path, shape) in ("dense", "convolution")
        }

    def encode(self, params: Parameters) -> np.ndarray:
        """What the encoder makes of all windows, (N, T, D) float32. AudioError names what gives NaN."""
        return np.concatenate([encoded for encoded in self._batches(params)])

    def order(self, params: Parameters) -> list[str]:
        """The paths of the weights of matrices and convolutions, as the encoder multiplies with them."""
        seen: dict[str, None] = {}
        self._heard = lambda path, _: seen.setdefault(path)
        next(iter(self._batches(params)))
        return list(seen)

    def _batches(self, params: Parameters) -> Any:
        watched = unflatten(
            {
                path: WatchedArray(leaf, path, self._listen) if path in self._watched else leaf
                for path, leaf in flatten(params).items()
            }
        )
        with programs_kept(), usual_settings():
            for start in range(0, len(self._windows.waveforms), ROWS):
                encoded = np.asarray(self._encode(watched, self._windows.waveforms[start : start + ROWS]))
                jax.effects_barrier()
                yield encoded

    def _encode_windows(self, params: Parameters, waveforms: jax.Array) -> jax.Array:
        lengths = jax.numpy.full(waveforms.shape[0], waveforms.shape[1], "int32")
        return self._model.fill(params).encode(waveforms, lengths)[0]

    def _listen(self, path: str, rows: np.ndarray) -> None:
        self._heard(path, rows)


def _ignore(path: str, rows: np.ndarray) -> None:
    pass
