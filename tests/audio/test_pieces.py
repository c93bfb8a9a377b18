"""Sound in pieces, while it is decoded, is the sound of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from jaxasr import audio
from jaxasr.audio import Channels
from jaxasr.errors import AudioError
from sound_files import encoded, syllables

SIZES = (1600, 7777, 10**9)


def joined(source: object, size: int, rate: float | None = None, channels: Channels = "mix") -> list[np.ndarray]:
    """The channels of all pieces, which are `size` samples long but for the last one."""
    pieces = list(audio.load_pieces(source, rate, channels, size))  # type: ignore[arg-type]
    assert all(len(each) == size for piece in pieces[:-1] for each in piece)
    assert all(len(each) < size for each in pieces[-1])
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_pieces_of_any_rate_are_the_whole(rate: int, size: int) -> None:
    sound = np.stack([syllables(3, rate), 0.5 * syllables(3, rate)[::-1]], 1)
    for source, given in ((encoded(sound, rate), None), (sound, rate)):
        for channels in ("mix", "each", 2):
            expected = audio.load_channels(source, given, channels)
            for ours, theirs in zip(joined(source, size, given, channels), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_one_piece_of_nothing() -> None:
    assert [len(each) for each in joined(np.zeros(0, np.float32), 100)] == [0]


@pytest.mark.parametrize("rate", [8000, 11025])
def test_blocks_of_a_lower_rate_are_raised_as_one(rate: int) -> None:
    """Blocks shorter than the filter, and such that end where the rates do not meet."""
    from scipy import signal

    from jaxasr.audio.mono import Resampler

    sound = syllables(2, rate)[: 2 * rate - 3]
    up, down = (2, 1) if rate == 8000 else (640, 441)
    whole = signal.resample_poly(sound, up, down)
    for size in (7, 1000, 4410):
        resampler = Resampler(rate)
        blocks = [resampler.push(sound[at : at + size]) for at in range(0, len(sound), size)]
        np.testing.assert_array_equal(np.concatenate([*blocks, resampler.finish()]), whole.astype(np.float32))


def test_a_scale_that_shows_late_is_known_before_the_first_piece(logged: list[str]) -> None:
    late = np.concatenate([np.zeros(48000, np.float32), 20000 * syllables(2)])
    for source in (late, encoded(late, subtype="FLOAT")):
        expected = audio.load(source)
        (found,) = joined(source, 8000)
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found).max() < 1
    assert len(logged) == 4 and all("divided by 32768" in line for line in logged)


def test_what_is_wrong_late_is_raised_late() -> None:
    broken = syllables(4)
    broken[50000] = np.nan
    pieces = audio.load_pieces(encoded(broken, subtype="FLOAT"), None, "mix", 8000)
    with pytest.raises(AudioError, match="NaN"):
        list(pieces)
