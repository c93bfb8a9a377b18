"""Stretches of files at their own rates, and lengths that are true."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasr import audio
from jaxasr.audio import recording, stretches
from jaxasr.errors import AudioError
from sound_files import encoded, muxed, syllables


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Where decoding began, call by call, with empty memories and a cache folder of its own."""
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stretches, "_lengths", {})
    monkeypatch.setattr(stretches, "_decoded", stretches._Decoded())
    begun: list[int] = []
    blocks = recording.Recording.blocks

    def counting(self: recording.Recording, start: int = 0) -> object:
        begun.append(start)
        return blocks(self, start)

    monkeypatch.setattr(recording.Recording, "blocks", counting)
    return begun


FILES = {
    "wav": lambda: encoded(syllables(4)),
    "flac": lambda: encoded(syllables(4), form="FLAC"),
    "mp3": lambda: encoded(syllables(4), form="MP3", subtype="MPEG_LAYER_III"),
    "opus": lambda: encoded(syllables(4), form="OGG", subtype="OPUS"),
    "m4a": lambda: muxed(syllables(4), 16000, "ipod", "aac"),
}


@pytest.mark.parametrize("kind", FILES)
def test_rows_of_one_file(tmp_path: Path, decoded: list[int], kind: str) -> None:
    path = tmp_path / f"speech.{kind}"
    path.write_bytes(FILES[kind]())
    whole = audio.load(path)
    decoded.clear()
    length = stretches.length(path)
    assert (length.samples, length.rate, length.lost) == (len(whole), 16000, 0.0)
    for start, count in ((16000, 8000), (0, 100), (48000, None), (40000, 8000)):
        stretch = stretches.read(path, start, count)
        assert stretch.rate == 16000
        end = None if count is None else start + count
        # FLAC and WAV are exact; of the others libsndfile's decoders begin anew with the same samples.
        np.testing.assert_array_equal(stretch.samples, whole[start:end])
    # Decoding begins at each row of a file that allows it; another one is decoded once for its length, once for rows.
    assert decoded == ([16000, 0, 48000, 40000] if kind in ("wav", "flac") else [0, 0])


def test_lengths_of_decoded_files_are_kept(tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(FILES["mp3"]())
    first = stretches.length(path)
    monkeypatch.setattr(stretches, "_lengths", {})  # another process
    assert stretches.length(path) == first
    assert len(decoded) == 1
    path.write_bytes(encoded(syllables(2), form="MP3", subtype="MPEG_LAYER_III"))
    assert stretches.length(path).samples == 32000
    assert len(decoded) == 2
    os.utime(path, ns=(1, 1))
    assert stretches.length(path).samples == 32000
    assert len(decoded) == 3
    # A table that is none is no reason to fail.
    (tmp_path / "cache" / "lengths.sqlite").write_bytes(b"no table" * 1000)
    monkeypatch.setattr(stretches, "_lengths", {})
    assert stretches.length(path).samples == 32000
    monkeypatch.setenv("JAXASR_CACHE", str(path))  # no folder
    monkeypatch.setattr(stretches, "_lengths", {})
    assert stretches.length(path).samples == 32000


def test_headers_that_are_not_true(tmp_path: Path, decoded: list[int]) -> None:
    path = tmp_path / "speech"
    flac = bytearray(encoded(syllables(4) + 0.01 * np.random.default_rng(1).normal(size=64000), form="FLAC"))
    unknown = bytearray(flac)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    mp3 = FILES["mp3"]()
    for content, samples, lost in (
        (bytes(unknown), 64000, 0.0),
        (bytes(flac[: len(flac) // 2]), 32000, 2.0),
        (encoded(syllables(4))[:64044], 32000, 2.0),
        (mp3 + mp3, 128000, 0.0),
    ):
        path.write_bytes(content)
        length = stretches.length(path)
        assert abs(length.samples - samples) < 5000
        assert abs(length.lost - lost) < 0.6
        assert length.samples == len(audio.load(path))
    with pytest.raises(AudioError, match="no such file"):
        stretches.length(tmp_path / "missing")


def test_memory_for_decoded_files_is_bounded(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "_KEPT_BYTES", 300_000)
    for name in "abc":
        (tmp_path / name).write_bytes(encoded(syllables(2), form="MP3", subtype="MPEG_LAYER_III"))
    for name in "abcc":
        stretches.read(tmp_path / name, 5, 10)
    assert len(decoded) == 3
    stretches.read(tmp_path / "a", 5, 10)
    assert len(decoded) == 4


def test_a_stretch_of_stereo_at_its_own_rate(tmp_path: Path) -> None:
    planes = np.random.default_rng(1).uniform(-0.5, 0.5, (44100, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", planes, 44100, subtype="FLOAT")
    stretch = stretches.read(tmp_path / "a.wav", 100, 1000)
    assert stretch.rate == 44100
    np.testing.assert_allclose(stretch.samples, planes[100:1100].mean(axis=1), atol=1e-7)
