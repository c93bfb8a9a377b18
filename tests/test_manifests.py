"""Manifests: rows and their audio are read strictly, and what is wrong is one line that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasr.errors import AudioError, ConfigError
from jaxasr.manifests import Piece, Utterance, duration, read_audio, read_manifest


def manifest(folder: Path, text: str) -> Path:
    path = folder / "manifest.tsv"
    path.write_text(text, encoding="utf-8")
    return path


HEADER = "path\tstart\tsamples\tspeaker\ttext\n"


def test_rows_become_utterances(tmp_path: Path) -> None:
    path = manifest(tmp_path, HEADER + 'a.flac\t10\t20\tx\tTHE "CAT\nsub/b.flac,b.flac\t0,5\t7,8\ty\tTWO PIECES\n')
    first, second = read_manifest(path)
    # No quoting: a quotation mark is a character.
    assert first == Utterance(str(path), (Piece(tmp_path / "a.flac", 10, 20),), 'THE "CAT', first.columns)
    assert first.columns["speaker"] == "x"
    assert second.pieces == (Piece(tmp_path / "sub/b.flac", 0, 7), Piece(tmp_path / "b.flac", 5, 8))


def test_start_and_samples_are_optional(tmp_path: Path) -> None:
    (utterance,) = read_manifest(manifest(tmp_path, "\ufefftext\tpath\r\nHI\ta.wav\r\n"))
    assert (utterance.pieces, utterance.text) == ((Piece(tmp_path / "a.wav", 0, None),), "HI")


def test_where_keeps_rows(tmp_path: Path) -> None:
    rows = "".join(f"{i}.wav\t0\t1\t{speaker}\tT{i}\n" for i, speaker in enumerate("abcab"))
    path = manifest(tmp_path, HEADER + rows)
    assert [u.text for u in read_manifest(path, {"speaker": ["a"]})] == ["T0", "T3"]
    assert [u.text for u in read_manifest(path, {"speaker": ["a", "c"]})] == ["T0", "T2", "T3"]
    assert [u.text for u in read_manifest(path, {"speaker": ["a"], "text": ["T3", "T4"]})] == ["T3"]
    with pytest.raises(ConfigError, match="no utterance has speaker=z"):
        read_manifest(path, {"speaker": ["z"]})
    with pytest.raises(ConfigError, match="no column 'split' among path, start"):
        read_manifest(path, {"split": ["test"]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no utterances"),
        (b"path\ttext\n", "holds no utterances"),
        (b"file\ttext\na\tb\n", "no column 'path'"),
        (b"path\tstart\na\t0\n", "no column 'text'"),
        (b"path\ttext\nonly-one\n", "line 2 does not have 2 columns"),
        (b"path\ttext\na\tb\tc\n", "line 2 does not have 2 columns"),
        (b"path\tstart\ttext\na\tx\tb\n", "line 2: start and samples must be whole numbers"),
        (b"path\tstart\ttext\na\t-1\tb\n", "line 2: start and samples must be whole numbers"),
        (b"path\tstart\ttext\na,a\t0\tb\n", "line 2: path, start and samples list different numbers"),
        (b"RIFF\xff\xfe\x80", "not a manifest"),
    ],
)
def test_broken_manifests_are_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "manifest.tsv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.tsv", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read as a manifest"):
            read_manifest(path)


def utterance(*pieces: Piece) -> Utterance:
    return Utterance("m.tsv", pieces, "")


def test_a_stretch_of_a_file(sounds: Path) -> None:
    samples, rate = read_audio(utterance(Piece(sounds / "a.flac", 100, 50)))
    whole, _ = soundfile.read(sounds / "a.flac", dtype="float32")
    assert rate == 8000 and samples.dtype == np.float32
    np.testing.assert_array_equal(samples, whole[100:150])
    np.testing.assert_array_equal(read_audio(utterance(Piece(sounds / "a.flac", 3990)))[0], whole[3990:])


def test_pieces_are_joined_with_a_tenth_of_a_second_after_each(sounds: Path) -> None:
    samples, rate = read_audio(utterance(Piece(sounds / "a.flac", 10, 30), Piece(sounds / "b.flac", 0, 20)))
    a, b = (soundfile.read(sounds / name, dtype="float32")[0] for name in ("a.flac", "b.flac"))
    gap = np.zeros(800, np.float32)
    assert rate == 8000
    np.testing.assert_array_equal(samples, np.concatenate([a[10:40], gap, b[:20], gap]))


def test_the_duration_is_that_of_the_audio(sounds: Path) -> None:
    for pieces in [
        (Piece(sounds / "a.flac", 100, 50),),
        (Piece(sounds / "c.flac", 3990),),
        (Piece(sounds / "a.flac"), Piece(sounds / "b.flac", 0, 20)),
    ]:
        samples, rate = read_audio(utterance(*pieces))
        assert duration(utterance(*pieces)) == pytest.approx(len(samples) / rate)


def test_audio_that_is_not_what_the_manifest_says(sounds: Path) -> None:
    (sounds / "bad.flac").write_bytes(b"fLaC nothing")
    for pieces, says in {
        (Piece(sounds / "a.flac", 3000, 1001),): "holds 4000 samples, not the 1001 from 3000 on",
        (Piece(sounds / "a.flac", 5000),): "holds 4000 samples",
        (
            Piece(sounds / "a.flac", 0, 9),
            Piece(sounds / "c.flac", 0, 9),
        ): "16000 Hz where the pieces before it have 8000",
        (Piece(sounds / "bad.flac"),): "bad.flac: damaged, or of a kind",
        (Piece(sounds / "absent.flac"),): "absent.flac: no such file",
    }.items():
        with pytest.raises(AudioError, match=says) as caught:
            read_audio(utterance(*pieces))
        assert "\n" not in str(caught.value)
    with pytest.raises(AudioError, match="holds 4000 samples, not the 1001 from 3000 on"):
        duration(utterance(Piece(sounds / "a.flac", 3000, 1001)))


def test_the_recordings_beside_the_project_are_whole(shared: Path) -> None:
    for name, count in {"an4": 130, "librispeech": 32, "clips": 23}.items():
        utterances = read_manifest(shared / "speech" / name / "manifest.tsv", {"split": ["test"]})
        assert len(utterances) == count
        samples, rate = read_audio(utterances[-1])
        assert len(samples) == int(utterances[-1].columns["samples"])
        assert rate == int(utterances[-1].columns["sample_rate"])
