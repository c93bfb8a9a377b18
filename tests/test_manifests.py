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


def test_a_path_with_a_comma_is_a_path_where_there_is_such_a_file(sounds: Path) -> None:
    (sounds / "a.flac").rename(sounds / "well, hello.flac")
    path = manifest(sounds, "path\ttext\nwell, hello.flac\tHELLO\nb.flac,c.flac\tTWO\n")
    first, second = read_manifest(path)
    assert first.pieces == (Piece(sounds / "well, hello.flac"),)
    assert [piece.path.name for piece in second.pieces] == ["b.flac", "c.flac"]
    assert len(read_audio(first)[0]) == 4000


def test_json_lines_of_nemo(sounds: Path) -> None:
    path = manifest(
        sounds,
        '{"audio_filepath": "a.flac", "text": "WHOLE", "duration": 0.5, "lang": "en"}\n\n'
        '{"audio_filepath": "a.flac", "text": "PART", "offset": 0.1, "duration": 0.25, "speaker": 7}\n'
        f'{{"audio_filepath": "{sounds}/c.flac", "text": "REST", "offset": 0.2, "duration": 0.0501}}\n',
    )
    whole, part, rest = read_manifest(path)
    samples, _ = soundfile.read(sounds / "a.flac", dtype="float32")
    other, _ = soundfile.read(sounds / "c.flac", dtype="float32")
    np.testing.assert_array_equal(read_audio(whole)[0], samples)
    np.testing.assert_array_equal(read_audio(part)[0], samples[800:2800])
    # A duration is a rounded number: what it has too much is forgiven.
    np.testing.assert_array_equal(read_audio(rest)[0], other[3200:])
    assert [duration(each) for each in (whole, part, rest)] == [0.5, 0.25, 0.05]
    assert (part.text, part.columns["path"], part.columns["speaker"]) == ("PART", "a.flac", "7")
    with pytest.raises(ConfigError, match="line 3 has no 'lang', only audio_filepath, text"):
        read_manifest(path, {"lang": ["en"]})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"audio_filepath": "a"', "line 1 is not JSON"),
        ('{"audio_filepath": "a"}', "line 1 has no 'text', only audio_filepath"),
        ('{"audio_filepath": 5, "text": "A"}', "line 1: audio_filepath must be text, not 5"),
        ('{"audio_filepath": "a", "text": null}', "line 1: text must be text, not null"),
        ('{"audio_filepath": "a", "text": "A", "offset": -1}', "line 1: offset and duration must be seconds"),
        ('{"audio_filepath": "a", "text": "A", "offset": "x", "duration": 1}', "line 1: offset and duration"),
        ('{"audio_filepath": "a", "text": "A", "offset": 0, "duration": [1]}', "line 1: offset and duration"),
        ('{"audio_filepath": "a", "text": "A"}\n[1]', "line 2 is no JSON object"),
    ],
)
def test_broken_json_lines(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_manifest(manifest(tmp_path, line))
    assert "\n" not in str(caught.value)


def test_a_duration_beyond_the_end(sounds: Path) -> None:
    path = manifest(sounds, '{"audio_filepath": "a.flac", "text": "A", "offset": 0.3, "duration": 0.4}\n')
    with pytest.raises(AudioError, match="holds 4000 samples, not the 3200 from 2400 on"):
        read_audio(read_manifest(path)[0])


def test_sound_that_is_damaged_is_refused_where_it_must_be_intact(sounds: Path, logged: list[str]) -> None:
    content = bytearray((sounds / "a.flac").read_bytes())
    content[len(content) // 2 :] = b""
    (sounds / "a.flac").write_bytes(content)
    damaged = utterance(Piece(sounds / "a.flac"))
    read_audio(damaged)
    assert len(logged) == 1 and "damaged or missing" in logged[0]
    for refuse in (read_audio, duration):
        with pytest.raises(AudioError, match="so that the text that m.tsv has may not fit"):
            refuse(damaged, intact=True)  # type: ignore[operator]


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
