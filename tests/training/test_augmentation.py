"""What augmentation promises in numbers: ratios, lengths, bands, shares, and the same result for the same draw."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.errors import ConfigError
from jaxasr.training.augmentation import (
    AugmentationConfig,
    add_noise,
    augment,
    babble,
    change_speed,
    change_volume,
    coloured_noise,
    reverberate,
    spec_augment,
    telephone,
)

RATE = 16000
ALWAYS = AugmentationConfig(noise_probability=1.0, reverberation_probability=1.0, telephone_probability=1.0)
NEVER = AugmentationConfig(
    speed=(1.0, 1.0),
    volume_db=(0.0, 0.0),
    noise_probability=0.0,
    reverberation_probability=0.0,
    telephone_probability=0.0,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(frequency: float, seconds: float = 1.0, amplitude: float = 0.3) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def voice(seed: int = 0, size: int = RATE) -> np.ndarray:
    return (0.1 * generator(seed).standard_normal(size)).astype(np.float32)


def decibels(samples: np.ndarray) -> float:
    return 10 * math.log10(np.mean(np.square(samples, dtype=np.float64)))


def loudest(samples: np.ndarray) -> float:
    """Frequency in Hz of the spectrum's highest line."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


# --- the configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speed", (0.0, 1.0)),
        ("speed", (1.1, 0.9)),
        ("volume_db", (3.0, math.inf)),
        ("noise_probability", 1.5),
        ("noise_snr_db", (30.0, 0.0)),
        ("reverberation_probability", -0.1),
        ("reverberation_seconds", (0.0, 0.4)),
        ("telephone_probability", math.nan),
        ("frequency_masks", -1),
        ("frequency_mask_bins", -1),
        ("time_masks", -1),
        ("time_mask_frames", -1),
        ("time_mask_fraction", 1.01),
    ],
)
def test_an_impossible_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} must"):
        AugmentationConfig(**{field: value})  # type: ignore[arg-type]


def test_one_number_is_no_span() -> None:
    with pytest.raises(ConfigError, match="speed: expected 2 values, got 1"):
        from_mapping(AugmentationConfig, {"speed": [1.0]}, "recipe")


def test_every_setting_comes_from_yaml_and_goes_back() -> None:
    mapping = to_mapping(ALWAYS)
    assert mapping["speed"] == [0.9, 1.1]
    assert from_mapping(AugmentationConfig, mapping, "train.yaml") == ALWAYS
    assert from_mapping(AugmentationConfig, {"volume_db": [-15, 6]}, "train.yaml") == AugmentationConfig()
    with pytest.raises(ConfigError, match="train.yaml: noise_probability must lie in 0..1"):
        from_mapping(AugmentationConfig, {"noise_probability": 2}, "train.yaml")


# --- its parts


@pytest.mark.parametrize("factor", [0.9, 0.9731, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    played = change_speed(tone(1000.0, seconds=2.0), factor)
    assert played.dtype == np.float32
    assert abs(len(played) - 2 * RATE / factor) <= 1
    assert loudest(played) == pytest.approx(1000.0 * factor, abs=0.5)
    assert decibels(played) == pytest.approx(decibels(tone(1000.0)), abs=0.05)


def test_speed_one_changes_nothing() -> None:
    np.testing.assert_array_equal(change_speed(voice(), 1.0), voice())


@pytest.mark.parametrize("gain", [-15.0, 0.0, 6.0])
def test_volume_is_in_decibels(gain: float) -> None:
    assert decibels(change_volume(voice(), gain)) - decibels(voice()) == pytest.approx(gain, abs=1e-3)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5, 30.0])
@pytest.mark.parametrize("kind", ["white", "brown", "babble"])
def test_the_noise_ratio_is_reached(snr: float, kind: str) -> None:
    clean = tone(440.0, amplitude=0.2)
    if kind == "babble":
        noise = babble(len(clean), [tone(300.0), voice(1, 5000)], generator())
    else:
        noise = coloured_noise(len(clean), {"white": 0.0, "brown": 2.0}[kind], generator())
    added = add_noise(clean, noise, snr) - clean
    assert decibels(clean) - decibels(added) == pytest.approx(snr, abs=0.2)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_falls_with_frequency_by_its_slope(slope: float) -> None:
    power = np.abs(np.fft.rfft(coloured_noise(20 * RATE, slope, generator()).astype(np.float64))) ** 2
    frequency = np.arange(len(power)) / 20

    def density(low: float, high: float) -> float:
        return float(10 * np.log10(power[(frequency >= low) & (frequency < high)].mean()))

    # Ten times the frequency: 10 dB less for each unit of slope.
    assert density(280, 320) - density(2800, 3200) == pytest.approx(10 * slope, abs=1.0)
    assert density(5, 15) - density(35, 45) == pytest.approx(0.0, abs=1.5)  # white below the corner


def test_babble_holds_all_clips_equally_loud_and_as_long_as_asked() -> None:
    clips = [tone(500.0, amplitude=0.01), tone(1500.0, 0.5, amplitude=0.9), np.zeros(100, np.float32)]
    spectra = []
    for seed in range(50):
        mixed = babble(RATE, clips, generator(seed))
        assert mixed.shape == (RATE,) and mixed.dtype == np.float32 and np.isfinite(mixed).all()
        spectra.append(np.abs(np.fft.rfft(mixed))[[500, 1500]])
    quiet, loud = np.mean(spectra, axis=0)
    assert quiet / loud == pytest.approx(1.0, abs=0.4)


def test_babble_of_silence_is_silence() -> None:
    clips = [np.zeros(10, np.float32), np.zeros(0, np.float32)]
    np.testing.assert_array_equal(babble(50, clips, generator()), 0.0)


@pytest.mark.parametrize("seconds", [0.05, 0.4])
def test_a_room_keeps_the_direct_sound_where_it_was(seconds: float) -> None:
    click = np.zeros(RATE, np.float32)
    click[4000] = 0.5
    heard = reverberate(click, seconds, 0.5, generator())
    assert heard.shape == click.shape and heard.dtype == np.float32
    assert np.abs(heard).argmax() == 4000
    assert np.abs(heard[:4000]).max() < 1e-6
    assert decibels(heard) == pytest.approx(decibels(click), abs=0.01)


@pytest.mark.parametrize("seconds", [0.1, 0.4])
def test_a_room_answers_for_its_time(seconds: float) -> None:
    click = np.zeros(RATE, np.float32)
    click[0] = 1.0
    energies = []
    for seed in range(40):
        heard = reverberate(click, seconds, 1.0, generator(seed))
        energies.append(np.square(heard[1 : round(seconds * RATE) + 1], dtype=np.float64))
        assert np.abs(heard[math.ceil(seconds * RATE) + 1 :]).max() < 1e-6
    early, late = (part.mean() for part in np.array_split(np.mean(energies, axis=0), 2))
    assert 10 * math.log10(early / late) == pytest.approx(30.0, abs=0.5)  # half of T60 apart


def test_the_room_grows_with_distance() -> None:
    click = np.zeros(RATE, np.float32)
    click[0] = 1.0
    near, far = (reverberate(click, 0.3, distance, generator()) for distance in (0.5, 1.0))
    ratios = [decibels(heard[1:]) - 20 * math.log10(heard[0]) for heard in (near, far)]
    assert ratios[1] - ratios[0] == pytest.approx(20 * math.log10(2), abs=0.01)
    # At the critical distance both are equally strong.
    critical = reverberate(click, 0.3, 0.057 * math.sqrt(60.0 / 0.3), generator())
    assert np.square(critical[1:]).sum() == pytest.approx(float(critical[0]) ** 2, rel=1e-3)


def test_a_telephone_keeps_1_khz_and_removes_5_khz_and_60_hz() -> None:
    kept = telephone(tone(1000.0))
    assert kept.dtype == np.float32 and kept.shape == (RATE,)
    assert loudest(kept) == pytest.approx(1000.0, abs=1.0)
    assert decibels(kept) == pytest.approx(decibels(tone(1000.0)), abs=0.5)
    for frequency in (5000.0, 60.0):
        assert decibels(telephone(tone(frequency)) + np.float32(1e-9)) < decibels(tone(frequency)) - 40


@pytest.mark.parametrize(("amplitude", "lowest", "highest"), [(0.5, 35.0, 41.0), (0.02, 30.0, 38.0)])
def test_a_telephone_has_the_noise_of_8_bits(amplitude: float, lowest: float, highest: float) -> None:
    # Mu-law keeps its rounding noise about 38 dB below a tone over a wide range of levels: at 0.02, 8 even bits would
    # leave 14 dB. The tone's mirror image at 8000 - 1037 Hz belongs to the way back to 16 kHz, not to the rounding.
    line = telephone(tone(1037.0, 2.0, amplitude)).astype(np.float64)[RATE // 2 : -RATE // 2]
    time = np.arange(len(line)) / RATE
    parts = [np.exp(2j * np.pi * frequency * time) for frequency in (1037.0, 8000.0 - 1037.0)]
    clean, mirror = (2 * np.real(np.mean(line * part.conj()) * part) for part in parts)
    assert lowest < decibels(clean) - decibels(line - clean - mirror) < highest


def test_a_telephone_swallows_what_is_below_its_smallest_step() -> None:
    np.testing.assert_array_equal(telephone(tone(1000.0, amplitude=5e-5)), 0.0)


@pytest.mark.parametrize(("rate", "size"), [(8000, 801), (16000, 1601), (22050, 2206), (48000, 4801)])
def test_a_telephone_keeps_the_length_at_any_rate(rate: int, size: int) -> None:
    assert telephone(voice(size=size), rate).shape == (size,)


# --- all together


def test_the_same_generator_gives_the_same_clip_and_another_seed_another() -> None:
    clip, others = voice(), [voice(1), tone(200.0)]
    first, again, other = (augment(clip, ALWAYS, generator(seed), others=others) for seed in (3, 3, 4))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or np.abs(first - other).max() > 0.01


def test_one_generator_goes_on_and_the_clip_is_left_alone() -> None:
    clip, source = voice(), generator()
    before = clip.copy()
    lengths = {len(augment(clip, AugmentationConfig(), source)) for _ in range(20)}
    assert len(lengths) > 15
    assert min(lengths) >= RATE / 1.1 - 1 and max(lengths) <= RATE / 0.9 + 1
    np.testing.assert_array_equal(clip, before)


def test_without_any_change_the_clip_comes_back() -> None:
    np.testing.assert_array_equal(augment(voice(), NEVER, generator()), voice())


@pytest.mark.parametrize("part", ["noise", "reverberation", "telephone"])
def test_each_part_happens_as_often_as_said(part: str) -> None:
    config = dataclasses.replace(NEVER, **{f"{part}_probability": 0.3})
    clip, source = voice(size=800), generator(5)
    changed = sum(not np.array_equal(augment(clip, config, source), clip) for _ in range(400))
    assert changed / 400 == pytest.approx(0.3, abs=0.08)  # 3.5 deviations


def test_half_of_the_noises_are_babble_where_there_are_others() -> None:
    config = dataclasses.replace(NEVER, noise_probability=1.0, noise_snr_db=(0.0, 0.0))
    clip, source, others = tone(3000.0, amplitude=0.1), generator(7), [tone(500.0)]
    babbled = 0
    for _ in range(100):
        noise = augment(clip, config, source, others=others) - clip
        power = np.abs(np.fft.rfft(noise)) ** 2
        babbled += power[500] > 0.9 * power.sum()
    assert 30 <= babbled <= 70


def test_a_changed_probability_leaves_the_speed_alone() -> None:
    lengths = [len(augment(voice(), config, generator(2))) for config in (AugmentationConfig(), ALWAYS)]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("size", [0, 1, 37, RATE])
def test_silence_and_scraps_stay_finite(size: int) -> None:
    others = [np.zeros(5, np.float32), np.zeros(0, np.float32)]
    for seed in range(5):
        silent = augment(np.zeros(size, np.float32), ALWAYS, generator(seed), others=others)
        np.testing.assert_array_equal(silent, 0.0)
        assert np.isfinite(augment(voice(size=size), ALWAYS, generator(seed), others=others)).all()


def test_loud_clips_are_clipped_at_one() -> None:
    loud = augment(tone(300.0, amplitude=1.0), dataclasses.replace(NEVER, volume_db=(6.0, 6.0)), generator())
    assert np.abs(loud).max() == 1.0
    assert np.mean(np.abs(loud) == 1.0) == pytest.approx(2 / 3, abs=0.05)  # |sin| exceeds one half for two thirds


def test_stereo_is_refused() -> None:
    with pytest.raises(ValueError, match="mono"):
        augment(np.zeros((2, 100), np.float32), NEVER, generator())


# --- masks


@functools.cache
def program(config: AugmentationConfig):
    return jax.jit(functools.partial(spec_augment, config))


def logmel(batch: int, total: int, bins: int = 80) -> np.ndarray:
    """Frames (B, T, F) float32 in which no value comes near the mean, so that a hidden one is always a changed one."""
    source = generator(9)
    away = source.uniform(1.0, 5.0, (batch, total, bins)) * source.choice([-1.0, 1.0], (batch, total, bins))
    return (away - 8.0).astype(np.float32)


def hidden(config: AugmentationConfig, total: int, lengths: list[int], seed: int, bins: int = 80) -> np.ndarray:
    """Which cells (B, T, F) are changed."""
    frames = logmel(len(lengths), total, bins)
    masked = program(config)(frames, jnp.array(lengths, jnp.int32), jax.random.key(seed))
    assert masked.dtype == jnp.float32 and masked.shape == frames.shape
    return np.asarray(masked) != frames


def test_strength_makes_masks_narrower() -> None:
    frames, lengths = logmel(64, 1000), jnp.full((64,), 1000, jnp.int32)

    def share(strength: float) -> float:
        masked = program(AugmentationConfig())(frames, lengths, jax.random.key(3), strength)
        return float(np.mean(np.asarray(masked) != frames))

    whole, half = share(1.0), share(0.5)
    assert share(0.0) == 0.0 and whole > 0.3
    assert half == pytest.approx(whole / 2, rel=0.2)


TIME_ONLY = AugmentationConfig(frequency_masks=0)
BANDS_ONLY = AugmentationConfig(time_masks=0)


def lhotse_time_masks(config: AugmentationConfig, length: int) -> tuple[int, int]:
    """How many masks, and below what width, by lhotse's formula in plain Python."""
    budget = config.time_mask_fraction * length
    count = min(config.time_masks, math.ceil(budget / config.time_mask_frames))
    return count, int(min(config.time_mask_frames, budget // count))


def runs(row: np.ndarray) -> list[int]:
    """Lengths of the stretches of True in row (N,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return list(edges[1::2] - edges[::2])


@pytest.mark.parametrize("length", [1000, 300, 37, 7])
def test_time_masks_spend_the_budget_of_lhotse(length: int) -> None:
    count, width = lhotse_time_masks(TIME_ONLY, length)
    cells = np.concatenate([hidden(TIME_ONLY, 1000, [length] * 100, seed) for seed in range(3)])
    spans = cells.any(axis=2)
    assert (cells.all(axis=2) == spans).all()  # whole frames
    totals = spans.sum(axis=1)
    assert totals.max() <= 0.15 * length
    assert totals.max() <= count * (width - 1)
    assert max(len(runs(row)) for row in spans) <= count
    if width > 1:
        # Widths are drawn evenly from 0..width - 1; what overlaps shortens the sum a little.
        assert totals.mean() == pytest.approx(count * (width - 1) / 2, rel=0.15)
        places = spans[:, :length].mean(axis=0)
        assert places[length // 2] > 0 and places[: length // 2].sum() == pytest.approx(places.sum() / 2, rel=0.25)


def test_a_long_utterance_has_all_ten_masks() -> None:
    assert lhotse_time_masks(TIME_ONLY, 8000) == (10, 100)
    spans = hidden(TIME_ONLY, 8000, [8000] * 20, 0, bins=2).any(axis=2)
    assert max(max(runs(row)) for row in spans) > 80
    assert max(len(runs(row)) for row in spans) in (9, 10)


def test_a_short_utterance_keeps_every_frame() -> None:
    # Below 14 frames the budget is one frame at most, and masks are narrower than their share.
    assert not hidden(TIME_ONLY, 13, [13, 5, 1, 0], 0).any()


def test_frequency_masks_hide_whole_bands() -> None:
    cells = np.concatenate([hidden(BANDS_ONLY, 50, [50] * 100, seed) for seed in range(3)])
    bands = cells.any(axis=1)
    assert (cells.all(axis=1) == bands).all()  # in every frame
    assert max(len(runs(row)) for row in bands) == 2
    assert bands.sum(axis=1).max() <= 2 * 26
    assert bands.sum(axis=1).mean() == pytest.approx(26, rel=0.2)
    assert bands.any(axis=0)[:-1].all()


def test_wide_masks_fit_few_bins() -> None:
    assert hidden(BANDS_ONLY, 10, [10] * 50, 0, bins=8).any(axis=1).sum(axis=1).max() <= 8


def test_padding_is_left_alone_and_changes_nothing() -> None:
    config, lengths = AugmentationConfig(), jnp.array([200, 120, 60, 0], jnp.int32)
    frames = logmel(4, 200)
    frames[1, 120:] = np.nan
    frames[2, 60:] = 1e6
    masked = np.asarray(program(config)(frames, lengths, jax.random.key(1)))
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(masked[row, length:], frames[row, length:])
        assert np.isfinite(masked[row, :length]).all()
        assert np.abs(masked[row, :length]).max(initial=0.0) < 100


def test_what_is_hidden_holds_the_mean_of_the_utterance() -> None:
    frames, lengths = logmel(3, 300), [300, 150, 80]
    masked = np.asarray(program(AugmentationConfig())(frames, jnp.array(lengths), jax.random.key(0)))
    for row, length in enumerate(lengths):
        changed = masked[row] != frames[row]
        assert changed.any()
        mean = frames[row, :length].astype(np.float64).mean()
        np.testing.assert_allclose(masked[row][changed], mean, rtol=1e-5)


def test_rows_draw_for_themselves_whatever_stands_beside_them() -> None:
    config = AugmentationConfig()
    cells = hidden(config, 300, [300, 300, 200], 4)
    assert (cells[0] != cells[1]).any()
    np.testing.assert_array_equal(hidden(config, 300, [300, 150], 4)[0], cells[0])
    longer = hidden(config, 400, [300, 300, 200, 400], 4)
    np.testing.assert_array_equal(longer[:3, :300], cells)
    assert not longer[:3, 300:].any()


def test_keys_decide_and_jit_changes_nothing() -> None:
    config, frames, lengths = AugmentationConfig(), logmel(2, 100), jnp.array([100, 90])
    plain = spec_augment(config, jnp.asarray(frames), lengths, jax.random.key(0))
    jitted, other = (program(config)(frames, lengths, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_allclose(plain, jitted, rtol=1e-6)
    assert (np.asarray(jitted) != np.asarray(other)).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"frequency_masks": 0, "time_masks": 0},
        {"frequency_mask_bins": 0, "time_mask_frames": 0},
        {"frequency_masks": 0, "time_mask_fraction": 0.0},
    ],
)
def test_no_masks_change_nothing(changes: dict[str, float]) -> None:
    config = dataclasses.replace(AugmentationConfig(), **changes)  # type: ignore[arg-type]
    assert not hidden(config, 200, [200, 100], 0).any()
