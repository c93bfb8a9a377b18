"""Channels: their mean unless they cancel, one of them, or each; and samples at the scale of integers."""

from __future__ import annotations

import numpy as np
import pytest

from jaxasr import audio
from jaxasr.errors import AudioError
from sound_files import encoded, loudest, muxed, syllables, tone


def test_channels_that_cancel_are_not_mixed(logged: list[str]) -> None:
    left = syllables(3)
    for right in (-left, -0.9 * left):
        samples = audio.load(encoded(np.stack([left, right], 1), subtype="FLOAT"))
        np.testing.assert_array_equal(samples, left)
    line = "its channels cancel each other for 3.0 s: the loudest one was heard there instead of their mean"
    assert logged == [f"audio bytes: {line}"] * 2
    quieter = audio.load(np.stack([0.8 * left, -left], 1))
    np.testing.assert_array_equal(quieter, -left)


def test_only_the_stretch_that_cancels_is_taken_from_one_channel(logged: list[str]) -> None:
    left, right = syllables(6), syllables(6)
    right[:32000] = 0.25 * left[:32000]
    right[32000:64000] = -left[32000:64000]
    samples = audio.load(np.stack([left, right], 1))
    # But for the two windows in which it begins and ends.
    assert np.count_nonzero(np.abs(samples).reshape(-1, 1000).max(axis=1) < 0.2) <= 4
    np.testing.assert_allclose(samples[:16000], 0.625 * left[:16000], atol=1e-6)
    np.testing.assert_allclose(samples[81000:], left[81000:], atol=1e-6)
    assert len(logged) == 1


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_other_channels_are_mixed(logged: list[str], count: int) -> None:
    generator = np.random.default_rng(count)
    independent = generator.normal(0, 0.1, (40000, count)).astype(np.float32)
    one = np.zeros_like(independent)
    one[:, 0] = tone(2.5, 16000)
    for block in (independent, one, np.zeros_like(independent), np.repeat(independent[:, :1], count, axis=1)):
        np.testing.assert_allclose(audio.load(block), block.mean(axis=1), atol=1e-6)
    assert logged == []


def test_a_channel_by_its_number_and_each() -> None:
    planes = [tone(1.0, 48000, 300.0), tone(1.0, 48000, 500.0)]
    for content in (encoded(np.stack(planes, 1), 48000), muxed(np.stack(planes), 48000, "matroska", "flac")):
        each = audio.load_channels(content)
        assert [loudest(channel, 0) for channel in each] == [300.0, 500.0]
        for number, channel in enumerate(each, start=1):
            np.testing.assert_array_equal(audio.load(content, channels=number), channel)
        with pytest.raises(AudioError, match="has 2 channels and no channel 3"):
            audio.load(content, channels=3)
    (single,) = audio.load_channels(planes[0], 48000)
    np.testing.assert_array_equal(single, audio.load(planes[0], 48000))
    (empty,) = audio.load_channels(np.zeros((0, 2)))
    assert empty.shape == (0,)
    for wrong in (0, -1, True, "left"):
        with pytest.raises(AudioError, match="channels must be"):
            audio.load(planes[0], channels=wrong)  # type: ignore[arg-type]


def test_samples_at_the_scale_of_integers(logged: list[str]) -> None:
    speech = syllables(2)
    for source in (
        np.round(speech * 32768).astype(np.float64),
        (speech * 32768).astype(np.float32)[:, None],
        encoded(speech * 32768, subtype="FLOAT"),
        encoded(speech * 32768, subtype="DOUBLE"),
    ):
        np.testing.assert_allclose(audio.load(source), speech, atol=2**-15)
    assert {line.partition(": ")[2] for line in logged} == {
        "its samples were at the scale of 16-bit integers: they were divided by 32768"
    }
    assert len(logged) == 4
    logged.clear()
    # Loud, as of a file that was normalised by its power, and no integers.
    np.testing.assert_allclose(audio.load(speech * 40), speech * 40, rtol=1e-6)
    assert logged == []
    with pytest.raises(AudioError, match=r"reach 4.194e\+06, absurdly large; divide them by their full scale"):
        audio.load(speech * 2.0**23)


def test_the_scale_may_show_late(logged: list[str]) -> None:
    speech = np.concatenate([np.zeros(2_000_000, np.float32), syllables(1) * 32768])
    for source in (speech, encoded(speech, subtype="FLOAT")):
        np.testing.assert_allclose(audio.load(source)[-16000:], syllables(1), atol=2**-15)
    assert len(logged) == 2
