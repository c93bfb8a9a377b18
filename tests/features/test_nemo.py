"""NeMo's mel front end against a float64 one written from its formulas, and against its own promises about padding."""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.configuration import from_mapping
from jaxasr.convert.formats.torch.pickles import read_open_torch
from jaxasr.errors import ConfigError
from jaxasr.features.nemo import NemoMel, design_filterbank, design_window
from jaxasr.features.nemo_config import NemoMelConfig

PLAIN = NemoMelConfig(bins=40, dither=0.0)
OPTIONS = {
    "3.0": PLAIN,
    "2.4": dataclasses.replace(PLAIN, framing="reflected"),
    "all features": dataclasses.replace(PLAIN, normalize="all_features"),
    "none": dataclasses.replace(PLAIN, normalize="none", pad_value=-3.0),
    "clamp": dataclasses.replace(PLAIN, log_guard="clamp", log_guard_value=1e-3),
    "no logarithm": dataclasses.replace(PLAIN, log=False, mag_power=1.0, normalize="none"),
    "no preemphasis": dataclasses.replace(PLAIN, preemphasis=0.0, window="hamming", window_length=320),
    "an export's own": dataclasses.replace(
        PLAIN, framing="zeros_all", subtract_mean=True, normalize="none", log_guard_value=1e-7, periodic=True
    ),
    "HTK's triangles": dataclasses.replace(PLAIN, mel_scale="htk", mel_norm="none", preemphasis=0.0),
    "odd window": dataclasses.replace(PLAIN, window="none", window_length=401, framing="reflected"),
}


def reference(config: NemoMelConfig, samples: np.ndarray) -> np.ndarray:
    """Frames (T, bins) of one clip in float64: the whole Fourier transform's length is framed, as torch.stft does."""
    x = samples.astype(np.float64)
    x -= x.mean() if config.subtract_mean else 0.0
    x = np.concatenate([x[:1], x[1:] - config.preemphasis * x[:-1]])
    half = config.fft_length // 2
    padded = np.pad(x, half, mode="reflect") if config.framing == "reflected" else np.pad(x, half)
    count = len(x) // config.hop_length + (config.framing != "zeros")
    window = np.zeros(config.fft_length)
    left = (config.fft_length - config.window_length) // 2
    window[left : left + config.window_length] = design_window(config)
    starts = np.arange(count) * config.hop_length
    frames = np.stack([padded[start : start + config.fft_length] for start in starts]) * window
    energies = np.abs(np.fft.rfft(frames)) ** config.mag_power @ design_filterbank(config).astype(np.float64)
    if config.log:
        guard = config.log_guard_value
        energies = np.log(energies + guard if config.log_guard == "add" else np.maximum(energies, guard))
    if config.normalize == "none":
        return energies
    axis = 0 if config.normalize == "per_feature" else None
    return (energies - energies.mean(axis)) / (energies.std(axis, ddof=1) + 1e-5)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal(size) * 0.1).astype(np.float32) for size in (8000, 4001, 1599)]


def batched(clips: list[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    batch = np.full((len(clips), max(map(len, clips)) + 77), np.nan, np.float32)
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = clip
    return jnp.asarray(batch), jnp.asarray([len(clip) for clip in clips])


@pytest.mark.parametrize("option", OPTIONS)
def test_a_batch_gives_what_the_formulas_give_for_each_clip(clips: list[np.ndarray], option: str) -> None:
    config = OPTIONS[option]
    waveforms, lengths = batched(clips)
    frames, counts = jax.jit(NemoMel(config))(waveforms, lengths)
    assert frames.shape == (len(clips), config.frame_count(waveforms.shape[1]), config.bins)
    for row, clip in enumerate(clips):
        expected = reference(config, clip)
        assert counts[row] == config.frame_count(len(clip)) == len(expected)
        # float32 against float64; normalization divides by deviations near 1.
        np.testing.assert_allclose(frames[row, : len(expected)], expected, atol=2e-4, rtol=1e-5)
        np.testing.assert_array_equal(frames[row, len(expected) :], config.pad_value)


def test_frames_are_counted_by_both_conventions() -> None:
    old = dataclasses.replace(PLAIN, framing="reflected")
    for samples, zeros, reflected in ((0, 0, 0), (1, 0, 1), (159, 0, 1), (160, 1, 2), (16000, 100, 101)):
        assert (PLAIN.frame_count(samples), old.frame_count(samples)) == (zeros, reflected)
        assert PLAIN.frame_count(jnp.asarray([samples])).tolist() == [zeros]
        assert old.frame_count(jnp.asarray([samples])).tolist() == [reflected]


def test_what_is_too_short_for_statistics_is_finite() -> None:
    """A clip of one frame has no deviation, which counts as 0; one of a few samples is mirrored again and again."""
    for config in (PLAIN, dataclasses.replace(PLAIN, framing="reflected")):
        frames, counts = NemoMel(config)(jnp.ones((3, 200)), jnp.asarray([200, 3, 0]))
        assert np.isfinite(frames).all()
        assert counts.tolist() == [config.frame_count(samples) for samples in (200, 3, 0)]
    assert not np.asarray(frames[2]).any()


def test_short_clips_are_put_in_the_middle_of_zeros_where_that_is_asked_for(clips: list[np.ndarray]) -> None:
    config = dataclasses.replace(PLAIN, shortest=4801)
    waveforms, lengths = batched(clips)
    frames, counts = NemoMel(config)(waveforms, lengths)
    assert [config.frame_count(len(clip)) for clip in clips] == counts.tolist() == [50, 30, 30]
    for row, clip in enumerate(clips):
        lack = max(0, 4801 - len(clip))
        padded = np.pad(clip, (lack // 2, lack - lack // 2))
        np.testing.assert_allclose(frames[row, : counts[row]], reference(PLAIN, padded), atol=2e-4)
    alone, _ = NemoMel(config)(jnp.asarray(clips[2][None]), jnp.asarray([1599]))
    np.testing.assert_allclose(alone[0], frames[2, :30], atol=1e-5)


def test_dither_is_added_where_a_key_is_given(clips: list[np.ndarray]) -> None:
    features = NemoMel(dataclasses.replace(PLAIN, dither=1e-2))
    waveforms, lengths = batched(clips)
    still, _ = features(waveforms, lengths)
    noisy, _ = features(waveforms, lengths, key=jax.random.key(1))
    assert float(np.abs(still - noisy).max()) > 1e-2
    np.testing.assert_array_equal(features(waveforms, lengths)[0], still)


def test_its_arrays_are_not_trained(clips: list[np.ndarray]) -> None:
    from flax import nnx

    waveforms, lengths = batched(clips)
    module = NemoMel(PLAIN)
    assert not nnx.state(module, nnx.Param)
    all_variables = nnx.DiffState(0, nnx.Variable)
    gradient = nnx.grad(lambda features: features(waveforms, lengths)[0].sum(), argnums=all_variables)(module)
    leaves = jax.tree.leaves(nnx.to_pure_dict(gradient))
    assert len(leaves) == 2 and not any(np.asarray(leaf).any() for leaf in leaves)


def test_an_abstract_one_designs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its filterbank needs librosa, which takes seconds to import."""
    from flax import nnx

    monkeypatch.setattr("jaxasr.features.nemo.design_filterbank", lambda config: pytest.fail("designed"))
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: NemoMel(PLAIN))))
    assert {name: leaf.shape for name, leaf in shapes.items()} == {"filterbank": (257, 40), "window": (400,)}


@pytest.mark.parametrize(("name", "bins"), [("conformer-ctc-tiny", 80), ("fastconformer-tdt-tiny", 128)])
def test_the_design_is_what_checkpoints_hold(shared: Path, name: str, bins: int) -> None:
    path = shared / "golden" / name / "model.nemo"
    with tarfile.open(path) as archive, open(path, "rb") as file:
        member = archive.getmember("./model_weights.ckpt")
        state = read_open_torch(file, member.offset_data, member.size, str(path))
    config = NemoMelConfig(bins=bins)
    # Both by librosa, of versions that may round otherwise; the window by torch there.
    np.testing.assert_allclose(design_filterbank(config), state["preprocessor.featurizer.fb"][0].T, atol=1e-8)
    np.testing.assert_allclose(design_window(config), state["preprocessor.featurizer.window"], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window_length": 600}, "window_length"),
        ({"hop_length": 0}, "hop_length"),
        ({"high_freq": 9000.0}, "high_freq"),
        ({"log_guard_value": 0.0}, "log_guard_value"),
        ({"preemphasis": -0.5}, "preemphasis"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"window": "povey"}, "window"),
    ],
)
def test_impossible_options_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_mapping(NemoMelConfig, {"kind": "nemo_mel", **changes}, "config.yaml")


def test_a_constant_offset_is_subtracted_where_that_is_asked_for(clips: list[np.ndarray]) -> None:
    config = dataclasses.replace(PLAIN, subtract_mean=True, normalize="none")
    waveforms, lengths = batched(clips)
    run = jax.jit(NemoMel(config))
    np.testing.assert_allclose(run(waveforms + 0.5, lengths)[0], run(waveforms, lengths)[0], atol=1e-4)


@pytest.mark.parametrize("framing", ["zeros", "reflected", "zeros_all"])
def test_pieces_of_a_stream_are_the_frames_of_the_whole(framing: Any) -> None:
    """Windows anywhere, before the beginning and beyond the end too, of streams of one sample and more."""
    config = dataclasses.replace(PLAIN, normalize="none", framing=framing)
    assert config.reach is not None and PLAIN.reach is None
    module = NemoMel(config)
    before, after = config.reach
    frames, shift = 5, config.hop_length
    width = before + (frames - 1) * shift + after
    lengths = [1, 2, 100, 600, 3000]
    clips = np.random.default_rng(2).standard_normal((len(lengths), 3000)).astype(np.float32)
    whole, counts = jax.device_get(module(clips, jnp.array(lengths)))
    piece = jax.jit(module.piece)
    for first in range(0, 21, 3):
        start = first * shift - before
        samples = np.zeros((len(lengths), width), np.float32)
        for row, length in enumerate(lengths):
            for place in range(max(start, 0), min(start + width, length)):
                samples[row, place - start] = clips[row, place]
        begin = np.full(len(lengths), max(-start, -width), np.int32)
        end = np.minimum(np.array(lengths) - start, width).astype(np.int32)
        found = np.asarray(piece(samples, begin, end))
        assert found.shape == (len(lengths), frames, config.bins)
        for row, count in enumerate(counts):
            there = max(min(count - first, frames), 0)
            # One program sums over a frame in another order than the other.
            np.testing.assert_allclose(found[row, :there], whole[row, first : first + there], atol=2e-4)
    with pytest.raises(ValueError, match="normalized over a recording"):
        NemoMel(PLAIN).piece(samples, begin, end)
