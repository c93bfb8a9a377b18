"""A model's encoder over recordings: what it makes of them, and what its weights are multiplied by meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr import audio
from jaxasr.audio import SAMPLE_RATE
from jaxasr.caches import programs_kept
from jaxasr.devices import usual_settings
from jaxasr.errors import AudioError, ConfigError, listing
from jaxasr.manifests import Utterance, duration, read_audio
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.watched import Listener, WatchedArray
from jaxasr.store import flatten, unflatten

WINDOW_SECONDS, ROWS = 8.0, 4  # of one batch, at most
# A layer that hears every eighth frame of 20 ms has 3,000 in it, ten for each of some hundred inputs.
MOST_SECONDS = 480.0


@dataclasses.dataclass(frozen=True)
class Windows:
    """Recordings one after another, cut to windows of one length: no frame is padding, and one program hears all.

    `waveforms`: (N, S) float32 at 16 kHz, N a multiple of `rows`, which run at once. `files`: what each window was
    read from.
    """

    waveforms: np.ndarray
    files: tuple[tuple[str, ...], ...]
    rows: int

    @property
    def seconds(self) -> float:
        """Seconds of sound."""
        return self.waveforms.size / SAMPLE_RATE

    @property
    def batch_seconds(self) -> float:
        """Those of a batch."""
        return float(self.rows * self.waveforms.shape[1] / SAMPLE_RATE)


def read_windows(utterances: Sequence[Utterance], most_seconds: float = MOST_SECONDS) -> Windows:
    """About `most_seconds` of recordings, evenly spread over them, as windows; the last goes on with the first ones.

    Raises AudioError for a recording that cannot be read or holds NaN, ConfigError where there is no sound.
    """
    step = max(1.0, sum(map(duration, utterances)) / most_seconds)
    chosen = [utterances[int(number * step)] for number in range(max(int(len(utterances) / step), 1))]
    clips = [audio.load(*read_audio(utterance)) for utterance in chosen]
    samples = np.concatenate(clips)
    if not samples.size:
        raise ConfigError(f"{utterances[0].manifest}: the recordings hold no sound")
    size = int(WINDOW_SECONDS * SAMPLE_RATE)
    rows = min(max(round(min(samples.size / size, most_seconds / WINDOW_SECONDS)), 1), ROWS)
    batches = max(round(samples.size / (size * rows)), 1)
    waveforms = np.resize(samples, (batches * rows, size))
    # Of every sample the number of the recording that it is from.
    source = np.resize(np.repeat(np.arange(len(clips), dtype=np.int32), list(map(len, clips))), waveforms.shape)
    names = [str(utterance.pieces[0].path) for utterance in chosen]
    files = (tuple(dict.fromkeys(names[number] for number in np.unique(row))) for row in source)
    return Windows(waveforms, tuple(files), rows)


class Hearing:
    """An encoder over windows of recordings: one compiled program, whose weights may change from call to call."""

    def __init__(self, config: ModelConfig, windows: Windows, watched: Collection[str] = ()) -> None:
        """`config`: of a model without quantized weights. `watched`: paths of weights whose inputs are asked for."""
        self.seconds = windows.seconds
        self._windows, self._watched = windows, frozenset(watched)
        self._heard: Listener = _unheard
        with usual_settings():
            self._model = AbstractModel(config)
            self._encode = jax.jit(self._encode_batch)

    def encode(self, params: Parameters) -> np.ndarray:
        """What the encoder makes of all windows, (N, T, D) float32."""
        return np.concatenate(list(self.batches(params, _unheard)))

    def batches(self, params: Parameters, heard: Listener) -> Iterator[np.ndarray]:
        """What the encoder makes of each batch, (rows, T, D). AudioError names the files of what is not finite.

        `heard` is called with the paths of watched weights and rows (M, in) of what each is multiplied by.
        """
        leaves = flatten(params)
        watched = {path: WatchedArray(leaves[path], path, self._listen) for path in self._watched}
        params = unflatten({**leaves, **watched})
        rows = self._windows.rows
        for start in range(0, len(self._windows.waveforms), rows):
            self._heard = heard
            with programs_kept(), usual_settings():
                encoded = np.asarray(self._encode(params, self._windows.waveforms[start : start + rows]))
                jax.effects_barrier()
            for row in np.flatnonzero(~np.isfinite(encoded).all((1, 2))):
                files = self._windows.files[start + int(row)]
                raise AudioError(f"{listing(files)}: the encoder makes NaN or infinity of it: leave it out")
            yield encoded

    def _encode_batch(self, params: Parameters, waveforms: jax.Array) -> jax.Array:
        lengths = jnp.full(waveforms.shape[:1], waveforms.shape[1], jnp.int32)
        return self._model.fill(params).encode(waveforms, lengths)[0].astype(jnp.float32)

    def _listen(self, path: str, rows: np.ndarray) -> None:
        self._heard(path, rows)


def _unheard(path: str, rows: np.ndarray) -> None:
    """Who asks for no inputs."""
