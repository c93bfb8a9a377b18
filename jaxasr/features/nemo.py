"""NeMo's log-mel front end in JAX: windowed magnitudes, mel triangles, a logarithm, and normalization per clip.

Source: NeMo 3.0.0, collections/asr/parts/preprocessing/features.py, FilterbankFeatures, in evaluation; the frames of
NeMo 1.0 to 2.4 are those of `framing="reflected"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.features.framing import overlapping_frames
from jaxasr.features.nemo_config import NemoMelConfig, lengthened

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Added to the standard deviation, so that a constant feature is not divided by zero.
DEVIATION_GUARD = 1e-5


class NemoMel(nnx.Module):
    """Log-mel energies of padded waveforms, normalized over each clip's own frames.

    Holds the filterbank (fft_length / 2 + 1, bins) and the window (window_length,) of the checkpoint, which are not
    trained. New ones are designed.
    """

    def __init__(self, config: NemoMelConfig, *, rngs: nnx.Rngs | None = None) -> None:
        self.config = config
        # A callback runs where numbers are wanted, not where shapes suffice: librosa takes seconds to import.
        shape = jax.ShapeDtypeStruct((config.lines, config.bins), jnp.float32)
        self.filterbank = nnx.Variable(jax.pure_callback(lambda: design_filterbank(config), shape))
        self.window = None if config.window == "none" else nnx.Variable(jnp.asarray(design_window(config)))

    def __call__(
        self, waveforms: Float[Array, "B S"], lengths: Int[Array, " B"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "B T bins"], Int[Array, " B"]]:
        """waveforms (B, S) float32 in -1..1, lengths (B,) int32 in samples -> frames (B, T, bins), lengths (B,).

        Only the first `lengths` samples of a row count: what stands after them, NaN included, is never used. T is
        `config.frame_count(S)`; frames are float32, and `pad_value` after the end of a row. `key` turns dither on.
        """
        config = self.config
        lengths = jnp.asarray(lengths, jnp.int32)
        signal = zero_beyond(waveforms, lengths)
        if config.subtract_mean:
            mean = signal.sum(1) / jnp.maximum(lengths, 1)
            signal = zero_beyond(signal - mean[:, None], lengths)
        if config.shortest:
            signal, lengths = _centre_short_ones(config, signal, lengths)
        total, counts = config.frame_count(signal.shape[1]), config.frame_count(lengths)
        if total == 0:
            return jnp.zeros((len(signal), 0, config.bins), jnp.float32), counts

        if config.dither and key is not None:
            signal = signal + config.dither * jax.random.normal(key, signal.shape, signal.dtype)
        signal = _preemphasized(config, signal)
        left, right = config.left, config.window_length - config.left
        if config.framing == "reflected":
            signal = _reflected(signal, lengths, left, right)
        else:
            signal = jnp.pad(zero_beyond(signal, lengths), ((0, 0), (left, right)))
        energies = self._energies(signal, total)
        valid = length_mask(counts, total)
        normalized = _normalize(config, energies, valid, counts)
        return jnp.where(valid[..., None], normalized, jnp.float32(config.pad_value)), counts

    def piece(
        self, samples: Float[Array, "B W"], begin: Int[Array, " B"], end: Int[Array, " B"]
    ) -> Float[Array, "B _ bins"]:
        """Some frames of streams: samples (B, W), of which begin:end (B,) belong to the stream -> frames (B, T, bins).

        W is reach[0] + (T - 1) * hop_length + reach[1] of the configuration. As `StreamingFeatures` says.
        """
        config = self.config
        if config.reach is None:
            raise ValueError("features that are normalized over a recording have no form in pieces")
        before = config.reach[0] - config.left
        total = (samples.shape[1] - before - config.window_length) // config.hop_length + 1
        places = jnp.arange(samples.shape[1])
        inside = (places >= begin[:, None]) & (places < end[:, None])
        signal = _preemphasized(config, jnp.where(inside, samples, 0))
        if config.framing == "reflected":
            last = jnp.maximum(end - begin - 1, 0)[:, None]
            period = jnp.maximum(2 * last, 1)
            folded = (places - begin[:, None]) % period
            source = jnp.minimum(folded, period - folded) + begin[:, None]
            signal = jnp.take_along_axis(signal, source, axis=1, mode="clip")
        else:
            signal = jnp.where(inside, signal, 0)
        return self._energies(signal[:, before:], total)

    def _energies(self, signal: Float[Array, "B S"], total: int) -> Float[Array, "B {total} bins"]:
        """The first `total` frames of signal (B, S), which begins with the first one's first sample."""
        config = self.config
        frames = overlapping_frames(signal, total, config.window_length, config.hop_length)
        if self.window is not None:
            frames = frames * jax.lax.stop_gradient(self.window[...])
        spectrum = jnp.fft.rfft(frames, config.fft_length)  # (B, T, lines)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        if config.mag_power != 2:
            power = power ** (config.mag_power / 2)
        filterbank = jax.lax.stop_gradient(self.filterbank[...])
        energies = jnp.matmul(power, filterbank, precision=jax.lax.Precision.HIGHEST)
        if config.log:
            add = config.log_guard == "add"
            guard = jnp.float32(config.log_guard_value)
            energies = jnp.log(energies + guard if add else jnp.maximum(energies, guard))
        return energies


def _preemphasized(config: NemoMelConfig, signal: Float[Array, "B S"]) -> Float[Array, "B S"]:
    """Each sample less a share of the one before it; before the first one there is silence."""
    if not config.preemphasis:
        return signal
    return signal - config.preemphasis * jnp.pad(signal[:, :-1], ((0, 0), (1, 0)))


def _centre_short_ones(
    config: NemoMelConfig, signal: Float[Array, "B S"], lengths: Int[Array, " B"]
) -> tuple[Float[Array, "B longer"], Int[Array, " B"]]:
    """Zeros on both sides of rows below the shortest length, half of them before the row, rounded down."""
    wanted = lengthened(lengths, config.shortest)
    signal = jnp.pad(signal, ((0, 0), (0, max(0, config.shortest - signal.shape[1]))))
    return jax.vmap(jnp.roll)(signal, (wanted - lengths) // 2), wanted


def _reflected(
    signal: Float[Array, "B S"], lengths: Int[Array, " B"], left: int, right: int
) -> Float[Array, "B extended"]:
    """signal (B, S) -> (B, left + S + right) with each row's ends mirrored, their last samples not repeated."""
    positions = jnp.arange(-left, signal.shape[1] + right)
    last = jnp.maximum(lengths - 1, 0)[:, None]
    period = jnp.maximum(2 * last, 1)
    folded = positions % period
    return jnp.take_along_axis(signal, jnp.minimum(folded, period - folded), axis=1, mode="clip")


def _normalize(
    config: NemoMelConfig, energies: Float[Array, "B T bins"], valid: Bool[Array, "B T"], counts: Int[Array, " B"]
) -> Float[Array, "B T bins"]:
    """Mean 0 and standard deviation 1 of each feature or of all, over the valid frames alone."""
    if config.normalize == "none":
        return energies
    axes: tuple[int, ...] = (1,)
    number = counts[:, None, None].astype(jnp.float32)
    if config.normalize == "all_features":
        axes, number = (1, 2), number * config.bins
    mask = valid[..., None]
    # Differences to the first frame make a constant feature exactly 0, as digital silence is; the rounding of its mean
    # would be divided by the guard alone.
    energies = energies - (energies[:, :1] if config.normalize == "per_feature" else energies[:, :1, :1])
    mean = jnp.where(mask, energies, 0).sum(axes, keepdims=True) / jnp.maximum(number, 1)
    centred = jnp.where(mask, energies - mean, 0)
    # The divisor lacks one, as a sample's; of a single frame the deviation counts as 0.
    variance = jnp.square(centred).sum(axes, keepdims=True) / jnp.maximum(number - 1, 1)
    return centred / (jnp.sqrt(variance) + DEVIATION_GUARD)


def design_window(config: NemoMelConfig) -> np.ndarray:
    """The window (window_length,) float32; torch's ones."""
    length = config.window_length + config.periodic
    match config.window:
        case "hann":
            values = np.hanning(length)
        case "hamming":
            values = np.hamming(length)
        case "blackman":
            values = np.blackman(length)
        case "bartlett":
            values = np.bartlett(length)
        case "none":
            values = np.ones(length)
    return values[: config.window_length].astype(np.float32)


def design_filterbank(config: NemoMelConfig) -> np.ndarray:
    """The triangles (fft_length / 2 + 1, bins) float32 on one of librosa's mel scales."""
    import librosa.filters

    triangles = librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.fft_length,
        n_mels=config.bins,
        fmin=config.low_freq,
        fmax=config.high_freq,
        htk=config.mel_scale == "htk",
        norm=None if config.mel_norm == "none" else config.mel_norm,
    )
    return np.ascontiguousarray(triangles.T, np.float32)
