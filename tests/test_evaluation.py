"""Error rates: counts equal to kaldialign's; order kept around failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxasr import audio, inputs
from jaxasr.errors import AudioError
from jaxasr.evaluation import Errors, count_errors, evaluate, plain, units
from jaxasr.manifests import Piece, Utterance, read_audio
from jaxasr.transcripts import Failure

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't, O’Brien!", "dont obrien"),
        ("“Twenty-one”—no…", "twenty one no"),
        ("雨。 ¿Qué? STRASSE straße", "雨 qué strasse strasse"),
        ("5 % $3", "5  $3"),
    ],
)
def test_plain_text(text: str, expected: str) -> None:
    assert plain(text) == expected


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


# The whole


def utterance(*pieces: Piece, text: str) -> Utterance:
    return Utterance("m.tsv", pieces, text)


class Echo:
    """A recogniser that answers from a list, in the place of what can be read."""

    def __init__(self, *answers: str | AudioError) -> None:
        self.answers, self.heard = answers, []

    def transcribe(self, sources: Any, *, on_error: str, progress: Any) -> Iterator[Any]:
        assert on_error == "yield"
        answers = iter(self.answers)
        for source in sources:
            try:
                given = inputs.named_source(source, None)
            except AudioError as error:
                yield Failure("", error)
                continue
            self.heard.append(audio.load(given.source, given.sample_rate))
            answer = next(answers)
            if isinstance(answer, AudioError):
                yield Failure("", answer)
            else:
                yield SimpleNamespace(text=answer, duration=len(self.heard[-1]) / 16000)


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
