"""Kaldi filterbanks against kaldi-native-fbank, against float64, and against their own promises about padding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import librosa
import numpy as np
import pytest
import soundfile

from golden_models import quick_jit
from jaxasr.configuration import from_mapping
from jaxasr.errors import ConfigError
from jaxasr.features.kaldi import KaldiFbank, window
from jaxasr.features.kaldi_config import KaldiConfig, mel_banks

ICEFALL = KaldiConfig()
FUNASR = KaldiConfig(window="hamming", high_freq=0.0, snip_edges=True, sample_scale=32768.0)
FLOOR = np.float32(np.log(np.float32(ICEFALL.energy_floor)))
OPTIONS = {
    "icefall": ICEFALL,
    "funasr": FUNASR,
    "snipped": KaldiConfig(snip_edges=True),
    "mirrored, scaled": dataclasses.replace(FUNASR, snip_edges=False),
    "hann": KaldiConfig(window="hann"),
    "without preemphasis": KaldiConfig(preemphasis=0.0),
    "with offset": KaldiConfig(remove_dc_offset=False),
    "40 bins": KaldiConfig(bins=40, low_freq=64.0, high_freq=7000.0),
    "8 kHz": KaldiConfig(sample_rate=8000, high_freq=-200.0, bins=40),
    "22.05 kHz": KaldiConfig(sample_rate=22050, snip_edges=True),
    "long frames": KaldiConfig(frame_length_ms=32.0, frame_shift_ms=12.5),
    "floor": KaldiConfig(energy_floor=1e-3),
}


def kaldi_options(config: KaldiConfig) -> kaldi_native_fbank.FbankOptions:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_length_ms
    options.frame_opts.frame_shift_ms = config.frame_shift_ms
    options.frame_opts.dither = config.dither
    options.frame_opts.preemph_coeff = config.preemphasis
    options.frame_opts.remove_dc_offset = config.remove_dc_offset
    options.frame_opts.window_type = config.window
    options.frame_opts.snip_edges = config.snip_edges
    options.mel_opts.num_bins = config.bins
    options.mel_opts.low_freq = config.low_freq
    options.mel_opts.high_freq = config.high_freq
    options.eps = config.energy_floor
    return options


def kaldi(config: KaldiConfig, samples: np.ndarray) -> np.ndarray:
    computer = kaldi_native_fbank.OnlineFbank(kaldi_options(config))
    computer.accept_waveform(config.sample_rate, (samples * np.float32(config.sample_scale)).tolist())
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.array(frames, np.float32).reshape(-1, config.bins)


@functools.cache
def program(config: KaldiConfig) -> Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]:
    return jax.jit(KaldiFbank(config).__call__)


def ours(config: KaldiConfig, samples: np.ndarray) -> np.ndarray:
    frames, lengths = program(config)(samples[None], np.array([len(samples)], np.int32))
    assert frames.shape[1] == int(lengths[0])
    assert frames.dtype == jnp.float32
    return np.asarray(frames[0])


def exact(config: KaldiConfig, samples: np.ndarray) -> np.ndarray:
    """The definition in float64, frame by frame, with Kaldi's own float32 window and triangles."""
    length, shift = config.frame_length, config.frame_shift
    scaled = samples.astype(np.float64) * config.sample_scale
    rows = []
    for frame in range(config.frame_count(len(samples))):
        start = frame * shift if config.snip_edges else frame * shift + shift // 2 - length // 2
        position = np.arange(start, start + length) % (2 * len(samples))
        piece = scaled[np.minimum(position, 2 * len(samples) - 1 - position)]
        if config.remove_dc_offset:
            piece = piece - piece.mean()
        piece = piece - config.preemphasis * np.concatenate([piece[:1], piece[:-1]])
        power = np.abs(np.fft.rfft(piece * window(config).astype(np.float64), config.fft_length)) ** 2
        rows.append(np.log(np.maximum(power @ mel_banks(config).astype(np.float64), config.energy_floor)))
    return np.array(rows).reshape(-1, config.bins)


def voice(samples: int, seed: int = 0) -> np.ndarray:
    """Something like speech: harmonics of a moving pitch, gliding loudness, breath noise, on the grid of 16 bits."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.3 * time)) / 16000
    tone = sum(np.sin(k * phase) / k**1.2 for k in range(1, 40))
    loudness = 0.02 + 0.2 * np.sin(2 * np.pi * 2.1 * time) ** 2
    return (np.round(loudness * (tone + 0.1 * rng.standard_normal(samples)) * 32768 / 4) / 32768).astype(np.float32)


def square(samples: int) -> np.ndarray:
    return np.where(np.arange(samples) // 37 % 2 == 0, 1.0, -1.0).astype(np.float32)


SIGNALS = {
    "voice": voice(9000),
    "silence": np.zeros(4000, np.float32),
    "two steps of noise": (np.random.default_rng(1).integers(-2, 3, 4000) / 32768).astype(np.float32),
    "clipped": np.clip(20 * voice(5000, 2), -1.0, 1.0),
    "square wave": square(4000),
    "constant": np.full(4000, 12345 / 32768, np.float32),
    "voice on an offset": voice(4000, 3) + np.float32(0.25),
    "impulse": np.eye(1, 3000, 1234, dtype=np.float32)[0],
    "one frame": voice(400, 4),
    "almost one frame": voice(399, 5),
    "half a shift": voice(80, 6),
    "less than half a shift": voice(79, 7),
    "one sample": np.array([0.5], np.float32),
    "very short": voice(95, 8),
    "a window and a half": voice(611, 9),
}


def assert_close(result: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert result.shape == expected.shape, what
    if expected.size:
        difference = np.abs(result - expected)
        assert difference.max() <= 2e-3, what
        assert np.median(difference) <= 1e-4, what
        assert difference.mean() <= 1e-4, what


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_kaldi(options: str) -> None:
    config = OPTIONS[options]
    lengths = np.array([len(samples) for samples in SIGNALS.values()], np.int32)
    waveforms = np.full((len(lengths), max(lengths)), np.nan, np.float32)
    for row, samples in zip(waveforms, SIGNALS.values(), strict=True):
        row[: len(samples)] = samples
    frames, counts = program(config)(waveforms, lengths)
    for row, (name, samples) in enumerate(SIGNALS.items()):
        expected = kaldi(config, samples)
        assert int(counts[row]) == len(expected), name
        assert_close(np.asarray(frames[row, : len(expected)]), expected, name)


@pytest.mark.parametrize("name", ["digits_a", "digits_b", "espeak_sentence", "noise", "near_silence", "short"])
def test_golden_clips(shared: Path, name: str) -> None:
    expected = np.load(shared / "golden/audio/fbank80.npz")[name]
    samples, rate = soundfile.read(shared / f"golden/audio/{name}.wav", dtype="float32")
    assert rate == ICEFALL.sample_rate
    assert_close(ours(ICEFALL, samples), expected, "golden")
    assert_close(ours(FUNASR, samples), kaldi(FUNASR, samples), "funasr")


@pytest.mark.parametrize("snip_edges", [False, True])
def test_random_lengths_in_one_batch(snip_edges: bool) -> None:
    config = KaldiConfig(snip_edges=snip_edges)
    rng = np.random.default_rng(10)
    lengths = np.concatenate([rng.integers(1, 900, 24), rng.integers(900, 6000, 16), [0, 6000]]).astype(np.int32)
    waveforms = np.full((len(lengths), 6000), np.nan, np.float32)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = voice(6000, row)[:length]
    frames, counts = program(config)(waveforms, lengths)
    for row, length in enumerate(lengths):
        expected = kaldi(config, waveforms[row, :length])
        assert int(counts[row]) == len(expected)
        assert_close(np.asarray(frames[row, : len(expected)]), expected, f"{length} samples")


@pytest.mark.parametrize("config", [ICEFALL, FUNASR])
@pytest.mark.parametrize("filling", [np.nan, np.inf, 1e30, -0.7])
def test_padding_is_never_read(config: KaldiConfig, filling: float) -> None:
    lengths = np.array([5000, 3333, 401, 120, 0], np.int32)
    clean = np.zeros((5, 5000), np.float32)
    for row, length in enumerate(lengths):
        clean[row, :length] = voice(length, row)
    dirty = np.where(np.arange(5000) < lengths[:, None], clean, np.float32(filling))
    expected, counts = program(config)(clean, lengths)
    frames, _ = program(config)(dirty, lengths)
    np.testing.assert_array_equal(frames, expected)
    for row, count in enumerate(np.asarray(counts)):
        assert not np.asarray(frames[row, count:]).any()


def test_a_row_does_not_depend_on_its_companions() -> None:
    samples = voice(3210)
    alone = ours(ICEFALL, samples)
    for size, companions in ((3210, 1), (4000, 3), (9999, 6)):
        waveforms = np.random.default_rng(size).standard_normal((companions, size)).astype(np.float32)
        waveforms[-1, :3210] = samples
        lengths = np.full(companions, size, np.int32)
        lengths[-1] = 3210
        frames, counts = program(ICEFALL)(waveforms, lengths)
        assert int(counts[-1]) == len(alone)
        np.testing.assert_allclose(frames[-1, : len(alone)], alone, atol=2e-5)


@pytest.mark.parametrize("snip_edges", [False, True])
def test_frame_count(snip_edges: bool) -> None:
    config = KaldiConfig(snip_edges=snip_edges)
    lengths = [0, 1, 79, 80, 81, 239, 240, 399, 400, 401, 559, 560, 561, 16000]
    counts = [config.frame_count(length) for length in lengths]
    assert counts == [len(kaldi(config, np.zeros(length, np.float32))) for length in lengths]
    assert all(type(count) is int for count in counts)
    traced = jax.jit(config.frame_count)(jnp.array(lengths))
    assert traced.tolist() == counts


def test_batch_too_short_for_a_frame() -> None:
    frames, counts = KaldiFbank(FUNASR)(jnp.ones((2, 399)), jnp.array([399, 3]))
    assert frames.shape == (2, 0, 80)
    assert counts.tolist() == [0, 0]


def test_silence_sits_on_the_floor() -> None:
    np.testing.assert_array_equal(ours(ICEFALL, np.zeros(1600, np.float32)), FLOOR)
    raised = dataclasses.replace(ICEFALL, energy_floor=1e-2)
    np.testing.assert_allclose(ours(raised, np.zeros(1600, np.float32)), np.log(1e-2), rtol=1e-6)


def test_every_constant_of_16_bits_is_silent() -> None:
    # At scale 32768 one unit of rounding in a mean would stand ten above the floor.
    steps = np.arange(-32768, 32768, 37)
    waveforms = np.repeat(steps[:, None] / 32768, 400, axis=1).astype(np.float32)
    frames, _ = program(FUNASR)(waveforms, np.full(len(steps), 400, np.int32))
    np.testing.assert_array_equal(frames, FLOOR)


@pytest.mark.parametrize("name", ["icefall", "funasr", "without preemphasis", "hann"])
def test_as_near_to_float64_as_kaldi(name: str) -> None:
    # A pure tone is the hardest case: its valleys lie so deep that Kaldi's own transform errs by 2e-3 in places.
    tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 16000).astype(np.float32)
    config = OPTIONS[name]
    for samples in (tone, voice(4000)):
        truth = exact(config, samples)
        error = np.abs(ours(config, samples) - truth)
        kaldis_error = np.abs(kaldi(config, samples) - truth)
        assert error.max() <= 2e-3
        assert np.median(error) <= 2e-5
        assert error.mean() <= 1.5 * kaldis_error.mean()


@pytest.mark.parametrize("options", OPTIONS)
def test_mel_banks_and_window_are_kaldis(options: str) -> None:
    config = OPTIONS[options]
    expected = kaldi_options(config)
    banks = mel_banks(config)
    assert banks.shape == (config.fft_length // 2 + 1, config.bins)
    assert banks.dtype == np.float32
    matrix = kaldi_native_fbank.MelBanks(expected.mel_opts, expected.frame_opts).get_matrix()
    matrix = np.asarray(matrix).reshape(config.bins, -1)
    # One unit in the last place of a mel frequency (2e-4 of 2840) against triangles of 30 or more.
    np.testing.assert_allclose(banks[: matrix.shape[1]].T, matrix, atol=2e-6)
    assert not banks[matrix.shape[1] :].any()
    weights = kaldi_native_fbank.FeatureWindowFunction(expected.frame_opts).window
    np.testing.assert_allclose(window(config), weights, rtol=1e-6, atol=1e-9)


def test_mel_banks_against_librosa() -> None:
    # librosa's triangles are straight in Hz, Kaldi's in mel: edges and peaks agree, slopes bend by a few per cent.
    config = ICEFALL
    theirs = librosa.filters.mel(sr=16000, n_fft=512, n_mels=80, fmin=20, fmax=7600, htk=True, norm=None).T
    banks = mel_banks(config)
    np.testing.assert_array_equal(banks > 0, theirs > 0)
    assert np.abs(banks - theirs).max() < 0.02
    centers = librosa.mel_frequencies(82, fmin=20, fmax=7600, htk=True)[1:-1]
    width = 16000 / 512
    assert np.all(np.abs(banks[:, 20:].argmax(axis=0) * width - centers[20:]) <= width)


def test_dither_needs_a_key_and_follows_it() -> None:
    config = dataclasses.replace(FUNASR, dither=1.0)
    samples, lengths = jnp.zeros((1, 16000)), jnp.array([16000])
    without, _ = KaldiFbank(config)(samples, lengths)
    np.testing.assert_array_equal(without, FLOOR)
    first, again, other = (KaldiFbank(config)(samples, lengths, key=jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1
    undithered, _ = KaldiFbank(FUNASR)(samples, lengths, key=jax.random.key(1))
    np.testing.assert_array_equal(undithered, FLOOR)


def test_dither_has_kaldis_statistics() -> None:
    config = dataclasses.replace(FUNASR, dither=1.0)
    samples = np.zeros(160000, np.float32)
    frames, _ = KaldiFbank(config)(samples[None], jnp.array([len(samples)]), key=jax.random.key(3))
    expected = kaldi(config, samples)
    # About 1000 frames of deviation 0.5 to 1.3 on each side: six standard errors.
    np.testing.assert_allclose(frames[0].mean(axis=0), expected.mean(axis=0), atol=0.35)
    np.testing.assert_allclose(frames[0].std(axis=0), expected.std(axis=0), rtol=0.35)
    assert abs(float(frames.mean()) - expected.mean()) < 0.03


def test_an_unknown_window_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'triangle' is none of povey, hamming, hann"):
        from_mapping(KaldiConfig, {"window": "triangle"}, "features")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_rate": 0}, "sample_rate must be positive"),
        ({"frame_shift_ms": 0.0}, "at least one sample"),
        ({"frame_length_ms": 5.0}, "at least one shift"),
        ({"preemphasis": 1.5}, "preemphasis must lie in 0..1"),
        ({"dither": -1.0}, "dither must not be negative"),
        ({"energy_floor": 0.0}, "energy_floor must be positive"),
        ({"sample_scale": -1.0}, "sample_scale must be positive"),
        ({"high_freq": 8001.0}, "low < high <= 8000 Hz"),
        ({"high_freq": -8000.0}, "low < high <= 8000 Hz"),
        ({"low_freq": -1.0}, "0 <= low"),
        ({"low_freq": float("nan")}, "0 <= low"),
        ({"bins": 2}, "at least 3"),
        ({"bins": 300}, "holds no line of the spectrum"),
    ],
)
def test_impossible_options(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KaldiConfig(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["icefall", "funasr", "long frames"])
def test_pieces_of_a_stream_are_the_frames_of_the_whole(name: str) -> None:
    """Windows anywhere, before the beginning and beyond the end too, of streams of one sample and more."""
    config = OPTIONS[name]
    fbank = KaldiFbank(config)
    before, after = config.reach
    frames, shift = 5, config.frame_shift
    width = before + (frames - 1) * shift + after
    lengths = [1, 2, 100, before + 1, 600, 3000]
    clips = np.random.default_rng(2).standard_normal((len(lengths), 3000)).astype(np.float32)
    whole, counts = fbank(clips, jnp.array(lengths))
    piece = quick_jit(fbank.piece)
    for first in range(0, 21, 3):
        start = first * shift - before
        samples = np.zeros((len(lengths), width), np.float32)
        for row, length in enumerate(lengths):
            for place in range(max(start, 0), min(start + width, length)):
                samples[row, place - start] = clips[row, place]
        begin = np.full(len(lengths), max(-start, -width), np.int32)
        end = np.minimum(np.array(lengths) - start, width).astype(np.int32)
        found = piece(samples, begin, end)
        assert found.shape == (len(lengths), frames, config.bins)
        for row, count in enumerate(np.asarray(counts)):
            there = max(min(count - first, frames), 0)
            # One program sums over a frame in another order than the other.
            np.testing.assert_allclose(found[row, :there], whole[row, first : first + there], atol=2e-4)
