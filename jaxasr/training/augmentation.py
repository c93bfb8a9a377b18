"""Augmentation: random changes of an utterance, so that a recogniser learns speech and not one recording of it.

Waveforms are changed on the host (`augment`), features on the device (`spec_augment`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr.arrays import length_mask

_TELEPHONE_RATE = 8000  # Hz
_TELEPHONE_BAND = (300.0, 3400.0)  # Hz
_MU = 255.0  # of the mu-law, ITU-T G.711
_NOISE_SLOPES = (0.0, 2.0)  # power falls as 1 / f ** slope: 0 is white, 1 pink, 2 brown
_NOISE_CORNER = 50.0  # Hz; noise is white below
_BABBLE_VOICES = (3, 8)
_ROOM_VOLUME = 60.0  # m³, a living room or a small office
_ROOM_DISTANCES = (0.3, 2.0)  # m from mouth to microphone


@dataclass(frozen=True)
class AugmentationConfig:
    """How much an utterance is changed, and how often. ValueError names bad fields.

    Ranges are (lowest, highest), drawn evenly.

    The masks are those of lhotse's SpecAugment as icefall's recipes call it, without time warping and for every
    utterance (lhotse leaves one in ten alone). Each frequency mask hides less than `frequency_mask_bins` bins. With a
    budget of `time_mask_fraction` * T frames in an utterance of T frames there are as many time masks as are needed to
    spend it in masks of `time_mask_frames`, but at most `time_masks`; each hides less than `time_mask_frames` and less
    than its equal share of the budget. The defaults give 10 s (T = 1000) two masks of up to 74 frames, and ten masks
    only from a minute on. All time masks together never hide more than the budget; they may overlap.
    """

    speed: tuple[float, float] = (0.9, 1.1)  # factor; pitch moves along, as with sox's speed
    volume_db: tuple[float, float] = (-15.0, 6.0)
    noise_probability: float = 0.5
    noise_snr_db: tuple[float, float] = (0.0, 30.0)  # over the whole clip, pauses included
    babble_share: float = 0.5  # of the noises; the others are coloured noise
    reverberation_probability: float = 0.2
    reverberation_seconds: tuple[float, float] = (0.05, 0.4)  # T60: until the room's answer has fallen by 60 dB
    telephone_probability: float = 0.2
    frequency_masks: int = 2
    frequency_mask_bins: int = 27
    time_masks: int = 10
    time_mask_frames: int = 100
    time_mask_fraction: float = 0.15

    def __post_init__(self) -> None:
        for name in ("speed", "volume_db", "noise_snr_db", "reverberation_seconds"):
            values = getattr(self, name)
            if not all(map(math.isfinite, values)) or values[0] > values[1]:
                raise ValueError(f"{name} must be two finite numbers, the lower one first, got {list(values)}")
            if name in ("speed", "reverberation_seconds") and values[0] <= 0:
                raise ValueError(f"{name} must be positive, got {list(values)}")
        for name in (
            field.name for field in fields(self) if field.name.endswith(("_probability", "_fraction", "_share"))
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        for name in ("frequency_masks", "frequency_mask_bins", "time_masks", "time_mask_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def augment(
    samples: np.ndarray,
    config: AugmentationConfig,
    generator: np.random.Generator,
    sample_rate: int = 16000,
    *,
    others: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Speed, room, noise, volume and telephone, in the order in which sound meets them.

    samples (S,) float32 mono in -1..1 -> (S',) float32, clipped to -1..1, with S' = S / speed. `babble_share` of the
    noises are babble where `others`, clips (any,) at the same rate, are given. The generator decides what is drawn.
    """
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise ValueError(f"samples must be mono, of shape (S,), got {samples.shape}")
    # Draw every random decision first, so that changing one probability does not change the other draws.
    noisy, reverberant, telephoned, chattering = generator.random(4) < (
        config.noise_probability,
        config.reverberation_probability,
        config.telephone_probability,
        config.babble_share,
    )
    speed, volume_db = generator.uniform(*config.speed), generator.uniform(*config.volume_db)
    snr_db, slope = generator.uniform(*config.noise_snr_db), generator.uniform(*_NOISE_SLOPES)
    seconds, distance = generator.uniform(*config.reverberation_seconds), generator.uniform(*_ROOM_DISTANCES)

    samples = change_speed(samples, speed)
    if reverberant:
        samples = reverberate(samples, seconds, distance, generator, sample_rate)
    if noisy:
        if chattering and others:
            noise = babble(len(samples), others, generator)
        else:
            noise = coloured_noise(len(samples), slope, generator, sample_rate)
        samples = add_noise(samples, noise, snr_db)
    samples = change_volume(samples, volume_db)
    if telephoned:
        samples = telephone(samples, sample_rate)
    clipped: np.ndarray = np.clip(samples, -1.0, 1.0)
    return clipped


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play samples (S,) float32 `factor` times as fast at the same sample rate: (S / factor,), all pitches * factor."""
    import soxr

    if factor == 1.0 or not samples.size:
        return samples
    faster: np.ndarray = soxr.resample(samples, factor, 1.0)  # from `factor` times its rate to its rate
    return faster


def change_volume(samples: np.ndarray, gain_db: float) -> np.ndarray:
    """Multiply samples (S,) float32 by the gain; the result is not clipped."""
    changed: np.ndarray = samples * np.float32(10.0 ** (gain_db / 20.0))
    return changed


def add_noise(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise (S,) to samples (S,), both float32, at this ratio of their powers over the whole clip; not clipped.

    Where one of the two is silent there is no such ratio, and the samples come back as they are.
    """
    level = _root_mean_square(noise)
    if level == 0.0:
        return samples
    gain = _root_mean_square(samples) / level * 10.0 ** (-snr_db / 20.0)
    return samples + np.float32(gain) * noise


def coloured_noise(size: int, slope: float, generator: np.random.Generator, sample_rate: int = 16000) -> np.ndarray:
    """Gaussian noise (size,) float32 whose power falls as 1 / f ** slope (0 white, 1 pink, 2 brown), at any level.

    Below 50 Hz it is white. Otherwise most power of brown noise would lie at frequencies that no front end passes, and
    the signal-to-noise ratio would say nothing about what the recogniser hears.
    """
    from scipy import fft

    if not size:
        return np.zeros(0, np.float32)
    period = fft.next_fast_len(size, real=True)
    frequencies = np.fft.rfftfreq(period, 1.0 / sample_rate).astype(np.float32)
    amplitudes = np.maximum(frequencies, np.float32(_NOISE_CORNER)) ** np.float32(-slope / 2.0)
    spectrum = generator.standard_normal((len(frequencies), 2), np.float32).view(np.complex64)[:, 0]
    noise: np.ndarray = fft.irfft(spectrum * (amplitudes / amplitudes[0]), period, norm="ortho")
    return noise[:size]


def babble(size: int, others: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Three to eight voices at once, equally loud: (size,) float32, each a clip (any,) repeated from a random start.

    Voices are drawn from the clips with replacement; silent ones add nothing.
    """
    mixed = np.zeros(size, np.float32)
    for _ in range(generator.integers(*_BABBLE_VOICES, endpoint=True)):
        clip = np.asarray(others[int(generator.integers(len(others)))], np.float32)
        start = generator.integers(max(len(clip), 1))
        level = _root_mean_square(clip)
        if level > 0.0:
            mixed += np.resize(np.roll(clip, -start), size) / np.float32(level)
    return mixed


def reverberate(
    samples: np.ndarray,
    seconds: float,
    distance: float,
    generator: np.random.Generator,
    sample_rate: int = 16000,
) -> np.ndarray:
    """Samples (S,) float32 as heard in a room: (S,) float32, equally loud, the direct sound where it was.

    The room's answer is Gaussian noise that decays by 60 dB in `seconds` (T60; Polack's model) after a direct path of
    one sample. Its energy against that of the direct path is (distance / critical distance)², `distance` in metres from
    mouth to microphone, the critical distance 0.057 * sqrt(volume / T60) (Kuttruff, Room Acoustics) for 60 m³.
    """
    from scipy import signal

    level = _root_mean_square(samples)
    if level == 0.0:
        return samples
    tail = math.ceil(seconds * sample_rate)
    decay = 10.0 ** (-3.0 / (seconds * sample_rate) * np.arange(1, tail + 1, dtype=np.float32))
    echoes = generator.standard_normal(tail, np.float32) * decay.astype(np.float32)
    critical = 0.057 * math.sqrt(_ROOM_VOLUME / seconds)
    echoes *= np.float32(distance / critical / np.linalg.norm(echoes))
    heard: np.ndarray = signal.fftconvolve(samples, np.append(np.float32(1.0), echoes))[: len(samples)]
    return heard * np.float32(level / _root_mean_square(heard))


def telephone(samples: np.ndarray, sample_rate: int = 16000) -> np.ndarray:
    """Samples (S,) float32 through a telephone line, 300 to 3400 Hz in 8 bits of mu-law at 8 kHz: (S,) float32.

    They return to `sample_rate` through the short filter by which jaxasr.audio upsamples recordings at 8 kHz. Training
    therefore hears what a recogniser will hear: a faint mirror image above 4 kHz instead of an empty band.
    """
    import soxr
    from scipy import signal

    if not samples.size:
        return samples
    narrow = soxr.resample(samples, sample_rate, _TELEPHONE_RATE)
    narrow = signal.sosfilt(_telephone_filter(), narrow).astype(np.float32)
    ratio = Fraction(sample_rate, _TELEPHONE_RATE)
    wide = signal.resample_poly(_mu_law(narrow), ratio.numerator, ratio.denominator)[: len(samples)]
    return np.pad(wide, (0, len(samples) - len(wide)))


@functools.cache
def _telephone_filter() -> np.ndarray:
    from scipy import signal

    sections: np.ndarray = signal.butter(4, _TELEPHONE_BAND, "bandpass", fs=_TELEPHONE_RATE, output="sos")
    return sections


def _mu_law(samples: np.ndarray) -> np.ndarray:
    """Samples (S,) float32 rounded to the 255 levels of mu-law, which clips at -1..1; zero stays zero."""
    steps = np.float32(127.0)
    bits = np.rint(steps * np.log1p(np.float32(_MU) * np.minimum(np.abs(samples), 1.0)) / np.float32(math.log1p(_MU)))
    levels = np.expm1(np.arange(128) / 127.0 * math.log1p(_MU)) / _MU
    rounded: np.ndarray = np.copysign(levels.astype(np.float32)[bits.astype(np.uint8)], samples)
    return rounded


def _root_mean_square(samples: np.ndarray) -> float:
    # By numpy's mean, which sums pairwise: a dot product of float32 loses digits on minutes of audio.
    return math.sqrt(float(np.mean(np.square(samples)))) if samples.size else 0.0


def spec_augment(
    config: AugmentationConfig,
    frames: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    strength: jax.Array | float = 1.0,
) -> jax.Array:
    """Replace bands of frequency and spans of time of each utterance by its own mean.

    frames (B, T, F) float32 log-mel, lengths (B,) int32 of the rows -> (B, T, F). Frames beyond a row's end are neither
    changed nor counted in its mean. A row's masks depend only on the key, the row's index in the batch and its length.
    `AugmentationConfig` says how many masks there are and how wide; `strength` in 0..1 makes all of them narrower.
    Pure, for jax.jit.
    """
    batch, total, bins = frames.shape
    valid = length_mask(lengths, total)[..., None]  # (B, T, 1)
    cells = jnp.maximum(lengths, 1) * bins
    mean = jnp.sum(jnp.where(valid, frames, 0.0), axis=(1, 2)) / cells  # (B,)

    counts, widths = (jnp.asarray(values)[lengths] for values in _time_masks(config, total))  # (B,) each
    widest = min(config.frequency_mask_bins, bins)

    def row(key: jax.Array, count: jax.Array, width: jax.Array, length: jax.Array) -> jax.Array:  # (T, F) bool
        band_key, span_key = jax.random.split(key)
        bands = _hidden(band_key, config.frequency_masks, bins, config.frequency_masks, widest, bins, strength)
        spans = _hidden(span_key, config.time_masks, total, count, width, length, strength)
        return bands[None, :] | spans[:, None]

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    hidden = jax.vmap(row)(keys, counts, widths, lengths)
    return jnp.where(hidden & valid, mean[:, None, None], frames)


def _hidden(
    key: jax.Array,
    masks: int,
    size: int,
    count: int | jax.Array,
    width: int | jax.Array,
    length: int | jax.Array,
    strength: jax.Array | float,
) -> jax.Array:
    """Which of (size,) positions lie under the first `count` of `masks`, each narrower than `width`, in 0..length."""
    width_key, start_key = jax.random.split(key)
    width = jnp.ceil(width * strength).astype(jnp.int32)
    widths = jax.random.randint(width_key, (masks,), 0, jnp.maximum(width, 1))
    # Starts are drawn below length - width, as in the paper and in lhotse: the last bin or frame is never hidden.
    starts = jax.random.randint(start_key, (masks,), 0, jnp.maximum(length - widths, 1))
    ends = jnp.where(jnp.arange(masks) < count, starts + widths, starts)
    position = jnp.arange(size)[:, None]
    return jnp.any((position >= starts) & (position < ends), axis=1)


def _time_masks(config: AugmentationConfig, total: int) -> tuple[np.ndarray, np.ndarray]:
    """For utterances of 0..total frames the number of time masks and what each is narrower than, (total + 1,) int32.

    Tables made on the host, because lhotse computes in float64, which a device may lack.
    """
    budget = config.time_mask_fraction * np.arange(total + 1)
    if not config.time_masks or not config.time_mask_frames:
        return np.zeros(total + 1, np.int32), np.zeros(total + 1, np.int32)
    counts = np.minimum(config.time_masks, np.ceil(budget / config.time_mask_frames))
    widths = np.minimum(config.time_mask_frames, budget // np.maximum(counts, 1))
    return counts.astype(np.int32), widths.astype(np.int32)
