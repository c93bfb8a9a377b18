"""Kaldi's log-mel filterbank in JAX: the front end of icefall's and FunASR's models.

The order of work, the rounding of sizes and the mel triangles are Kaldi's (src/feat/feature-window.cc,
mel-computations.cc, feature-fbank.cc), as kaldi-native-fbank, and with it sherpa-onnx, runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.arrays import zero_beyond
from jaxasr.features.framing import overlapping_frames
from jaxasr.features.kaldi_config import KaldiConfig, mel_banks

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class KaldiFbank(nnx.Module):
    """Log-mel energies of padded waveforms. Without parameters, and pure."""

    def __init__(self, config: KaldiConfig, *, rngs: nnx.Rngs | None = None) -> None:
        self.config = config

    def __call__(
        self, waveforms: Float[Array, "B S"], lengths: Int[Array, " B"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "B T bins"], Int[Array, " B"]]:
        """waveforms (B, S) float32 in -1..1, lengths (B,) int32 in samples -> frames (B, T, bins), lengths (B,).

        Only the first `lengths` samples of a row count: what stands after them, NaN included, is never used. T is
        `config.frame_count(S)`; frames are float32 and zero after the end of a row. `key` turns dither on.
        """
        config = self.config
        batch, samples = waveforms.shape
        total = config.frame_count(samples)
        counts = config.frame_count(jnp.asarray(lengths, jnp.int32))
        if total == 0:
            return jnp.zeros((batch, 0, config.bins), jnp.float32), counts

        signal = zero_beyond(waveforms, lengths)
        if not config.snip_edges:
            signal = _mirror_ends(config, signal, lengths)
        return zero_beyond(self._log_energies(signal, total, key), counts), counts

    def piece(
        self, samples: Float[Array, "B W"], begin: Int[Array, " B"], end: Int[Array, " B"]
    ) -> Float[Array, "B _ bins"]:
        """Some frames of streams: samples (B, W), of which begin:end (B,) belong to the stream -> frames (B, T, bins).

        W is reach[0] + (T - 1) * frame_shift + reach[1] of the configuration. As `StreamingFeatures` says.
        """
        config = self.config
        total = (samples.shape[1] - config.frame_length) // config.frame_shift + 1
        if not config.snip_edges:
            samples = _mirrored_beyond(samples, begin, end)
        return self._log_energies(samples, total, None)

    def _log_energies(
        self, signal: Float[Array, "B S"], total: int, key: jax.Array | None
    ) -> Float[Array, "B {total} bins"]:
        """The first `total` frames of signal (B, S), which begins with the first one's first sample."""
        config = self.config
        frames = overlapping_frames(signal * config.sample_scale, total, config.frame_length, config.frame_shift)

        if config.dither and key is not None:
            frames = frames + config.dither * jax.random.normal(key, frames.shape, frames.dtype)
        if config.remove_dc_offset:
            # XLA divides by a constant through its rounded reciprocal. Differences to the first sample make a constant
            # frame exactly zero, as Kaldi's division does; else it would rise above the floor at scale 32768.
            frames = frames - frames[..., :1]
            frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
        if config.preemphasis:
            # The sample before the first one is the first one itself.
            before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
            frames = frames - config.preemphasis * before
        spectrum = jnp.fft.rfft(frames * window(config), config.fft_length)  # (B, T, fft_length / 2 + 1)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        energies = jnp.matmul(power, mel_banks(config), precision=jax.lax.Precision.HIGHEST)
        return jnp.log(jnp.maximum(energies, config.energy_floor))


def _mirrored_beyond(
    samples: Float[Array, "B W"], begin: Int[Array, " B"], end: Int[Array, " B"]
) -> Float[Array, "B W"]:
    """samples (B, W) with those before begin (B,) and from end (B,) on replaced as `_mirror_ends` does."""
    places = jnp.arange(samples.shape[1]) - begin[:, None]
    period = 2 * jnp.maximum(end - begin, 1)[:, None]
    folded = places % period
    source = jnp.minimum(folded, period - 1 - folded) + begin[:, None]
    return jnp.take_along_axis(samples, source, axis=1, mode="clip")


def _mirror_ends(
    config: KaldiConfig, signal: Float[Array, "B S"], lengths: Int[Array, " B"]
) -> Float[Array, "B extended"]:
    """Put mirrored samples before the first and after the last sample of each row, so that frames are centred.

    signal (B, S), lengths (B,) -> (B, S + frame_length - frame_shift // 2) with the old sample 0 at
    frame_length // 2 - frame_shift // 2. Samples -1, -2 are 0, 1 and n, n + 1 are n - 1, n - 2, again and again where a
    row is shorter than the mirrored part.
    """
    left = config.frame_length // 2 - config.frame_shift // 2
    right = config.frame_length - config.frame_length // 2  # more is never read by a frame that counts
    edge = jnp.arange(-left, right)
    edge = jnp.where(edge < 0, edge, lengths[:, None] + edge)  # (B, left + right)
    period = 2 * jnp.maximum(lengths, 1)[:, None]
    folded = edge % period
    folded = jnp.minimum(folded, period - 1 - folded)
    mirrored = jnp.take_along_axis(signal, folded, axis=1, mode="clip")
    extended = jnp.concatenate([mirrored[:, :left], jnp.pad(signal, ((0, 0), (0, right)))], axis=1)
    # Rows end at different places, but only `right` samples of each are written.

    def write(row: jax.Array, end: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, end, (start,))

    return jax.vmap(write)(extended, mirrored[:, left:], left + lengths)


def window(config: KaldiConfig) -> np.ndarray:
    """The window (frame_length,) float32, computed in float64 as Kaldi does."""
    length = config.frame_length
    cosine = np.cos(2 * np.pi * np.arange(length) / (length if config.window == "hann" else length - 1))
    match config.window:
        case "povey":
            values = (0.5 - 0.5 * cosine) ** 0.85
        case "hamming":
            values = 0.54 - 0.46 * cosine
        case "hann":
            values = 0.5 - 0.5 * cosine
    return values.astype(np.float32)
