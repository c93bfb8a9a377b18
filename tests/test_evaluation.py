"""Error rates: counts equal to kaldialign's; manifests and their audio read strictly; order kept around failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from jaxasr import audio
from jaxasr.errors import AudioError, ConfigError
from jaxasr.evaluation import (
    Errors,
    Piece,
    Utterance,
    count_errors,
    evaluate,
    read_audio,
    read_manifest,
    units,
)

# Counting


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("", "", Errors(0, 0, 0, 0)),
        ("a b c", "", Errors(0, 3, 0, 3)),
        ("", "a b", Errors(0, 0, 2, 0)),
        ("a b c", "a b c", Errors(0, 0, 0, 3)),
        ("a b c", "a x c", Errors(1, 0, 0, 3)),
        ("a b c d", "b c d e", Errors(0, 1, 1, 4)),
        ("the cat sat on the mat", "cat sat upon the the mat", Errors(1, 1, 1, 6)),
    ],
)
def test_counts_by_hand(reference: str, hypothesis: str, errors: Errors) -> None:
    assert count_errors(reference.split(), hypothesis.split()) == errors


def test_counts_are_kaldialigns() -> None:
    kaldialign = pytest.importorskip("kaldialign")
    rng = random.Random(9)
    for _ in range(2000):
        alphabet = "abcdefgh"[: rng.randint(1, 8)]
        reference = [rng.choice(alphabet) for _ in range(rng.randint(0, 14))]
        hypothesis = [rng.choice(alphabet) for _ in range(rng.randint(0, 14))]
        expected = kaldialign.edit_distance(reference, hypothesis)
        errors = count_errors(reference, hypothesis)
        assert (errors.substitutions, errors.deletions, errors.insertions, errors.total) == (
            expected["sub"], expected["del"], expected["ins"], expected["total"],
        ), (reference, hypothesis)  # fmt: skip
    long = [[rng.choice("abcde") for _ in range(3000)] for _ in range(2)]
    expected = kaldialign.edit_distance(*long)
    assert count_errors(*long) == Errors(expected["sub"], expected["del"], expected["ins"], 3000)


def test_rates_and_sums() -> None:
    assert Errors(1, 2, 3, 12).rate == 0.5 and Errors(1, 2, 3, 12).total == 6
    assert Errors().rate == 0.0 and Errors(insertions=1).rate == float("inf")
    assert Errors(1, 2, 3, 4) + Errors(10, 20, 30, 40) == Errors(11, 22, 33, 44)


def test_units() -> None:
    assert units(" HELLO  THE\tWORLD ", "wer") == ["HELLO", "THE", "WORLD"]
    assert units("今日 は\u3000雨", "cer") == ["今", "日", "は", "雨"]


# Manifests


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


# Audio


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for name, rate in {"a.flac": 8000, "b.flac": 8000, "c.flac": 16000}.items():
        soundfile.write(tmp_path / name, rng.integers(-20000, 20000, 4000).astype(np.int16), rate)
    return tmp_path


def utterance(*pieces: Piece, text: str = "") -> Utterance:
    return Utterance("m.tsv", pieces, text)


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


def test_audio_that_is_not_what_the_manifest_says(sounds: Path) -> None:
    (sounds / "bad.flac").write_bytes(b"fLaC nothing")
    for pieces, says in {
        (Piece(sounds / "a.flac", 3000, 1001),): "holds 4000 samples, not the 1001 from 3000 on",
        (Piece(sounds / "a.flac", 5000),): "holds 4000 samples",
        (
            Piece(sounds / "a.flac", 0, 9),
            Piece(sounds / "c.flac", 0, 9),
        ): "16000 Hz where the pieces before it have 8000",
        (Piece(sounds / "bad.flac"),): "bad.flac: cannot be read as audio",
        (Piece(sounds / "absent.flac"),): "absent.flac: cannot be read as audio",
    }.items():
        with pytest.raises(AudioError, match=says) as caught:
            read_audio(utterance(*pieces))
        assert "\n" not in str(caught.value)


# The whole


class Echo:
    """A recogniser that answers from a list, reading ahead as the real one does."""

    def __init__(self, *answers: str | AudioError) -> None:
        self.answers, self.heard = answers, []

    def transcribe(self, sources: Any, *, sample_rate: int, on_error: str, progress: Any) -> Iterator[Any]:
        assert (sample_rate, on_error) == (16000, "yield")
        self.heard = list(sources)
        for answer, samples in zip(self.answers, self.heard, strict=True):
            if isinstance(answer, AudioError):
                yield SimpleNamespace(audio="", error=answer)
            else:
                yield SimpleNamespace(text=answer, duration=len(samples) / 16000)


def test_failures_keep_their_place(sounds: Path) -> None:
    good, absent = Piece(sounds / "a.flac"), Piece(sounds / "absent.flac")
    rows = [
        utterance(absent, text="x"),
        utterance(good, text="A B"),
        utterance(absent, text="y"),
        utterance(good, text="C"),
        utterance(good, text="D"),
        utterance(absent, text="z"),
    ]
    refused = AudioError("holds NaN")
    scored = list(evaluate(Echo("A X", refused, "D D"), rows))
    assert [item.utterance for item in scored] == rows
    assert [item.error is None for item in scored] == [False, True, False, False, True, False]
    assert scored[3].error is refused and "absent.flac" in str(scored[0].error)
    assert (scored[1].hypothesis, scored[1].errors) == ("A X", Errors(1, 0, 0, 2))
    assert scored[4].errors == Errors(0, 0, 1, 1) and scored[4].duration == 0.5


def test_audio_is_raised_to_16_khz_after_it_is_joined(sounds: Path) -> None:
    joined = utterance(Piece(sounds / "a.flac", 0, 1000), Piece(sounds / "b.flac", 0, 1000), text="O NE")
    recognizer = Echo("ONE")
    (scored,) = evaluate(recognizer, [joined], "cer")
    np.testing.assert_array_equal(recognizer.heard[0], audio.load(*read_audio(joined)))
    assert len(recognizer.heard[0]) == 2 * (2000 + 2 * 800)
    assert scored.errors == Errors(0, 0, 0, 3)


def test_the_recordings_beside_the_project_are_whole(shared: Path) -> None:
    for name, count in {"an4": 130, "librispeech": 32, "clips": 23}.items():
        utterances = read_manifest(shared / "speech" / name / "manifest.tsv", {"split": ["test"]})
        assert len(utterances) == count
        samples, rate = read_audio(utterances[-1])
        assert len(samples) == int(utterances[-1].columns["samples"])
        assert rate == int(utterances[-1].columns["sample_rate"])
