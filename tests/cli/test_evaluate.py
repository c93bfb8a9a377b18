"""`jaxasr evaluate`: the table, the JSON and the TSV agree; bad rows are told and left out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxasr

Run = Callable[..., Any]


@pytest.fixture
def two(tmp_path: Path, record: Callable[..., Path], recognizers: list[Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two manifests of three utterances, and what will be heard in them."""
    record(tmp_path / "a" / "x.wav", 3.0)
    record(tmp_path / "b" / "y.wav", 4.0, 8000)
    (tmp_path / "a" / "m.tsv").write_text(
        "path\tstart\tsamples\tsplit\ttext\nx.wav\t0\t16000\ttest\tTHE CAT\nx.wav\t16000\t32000\ttrain\tA DOG RAN\n"
    )
    (tmp_path / "b" / "m.tsv").write_text(
        "path\tstart\tsamples\tsplit\ttext\ny.wav,y.wav\t0,8000\t8000,8000\ttest\tONE TWO THREE FOUR\n"
    )
    load = jaxasr.load_model

    def load_model(name: str | None = None, **options: Any) -> Any:
        made = load(name, **options)
        made.texts = ["THE CAT SAT", "DOG RUN", "ONE TWO FOUR"]
        return made

    monkeypatch.setattr(jaxasr, "load_model", load_model)
    return tmp_path


def test_table(run: Run, two: Path) -> None:
    result = run("evaluate", two / "a" / "m.tsv", two / "b" / "m.tsv", "--model", "m")
    assert (result.code, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines()]
    assert rows[0] == ["manifest", "utterances", "errors", "substitutions", "deletions", "insertions", "words", "WER"]
    assert rows[1] == [str(two / "a" / "m.tsv"), *"2 3 1 1 1 5 60.00 %".split()]
    assert rows[2] == [str(two / "b" / "m.tsv"), *"1 1 0 1 0 4 25.00 %".split()]
    assert rows[3] == ["all", *"3 4 1 2 1 9 44.44 %".split()]
    assert len(run("evaluate", two / "b" / "m.tsv", "--model", "m").out.splitlines()) == 2


@pytest.mark.parametrize(
    ("metric", "heard", "line"),
    [
        ("wer", ["the cat.", "A dog, ran"], "4 of 4 errors are case or punctuation; without them WER is 0.00 %: "),
        ("wer", ["THE CAT", "a dog runs"], "2 of 3 errors are case or punctuation; without them WER is 20.00 %: "),
        ("cer", ["the cat", "A DOG RAN?"], "7 of 7 errors are case or punctuation; without them CER is 0.00 %: "),
        ("wer", ["THE CAT", "a DOG run"], None),
        ("wer", ["THE CAT", "A DOG RAN"], None),
    ],
)
def test_case_and_punctuation_are_told_apart_from_words(
    run: Run, two: Path, monkeypatch: pytest.MonkeyPatch, metric: str, heard: list[str], line: str | None
) -> None:
    load = jaxasr.load_model

    def load_model(name: str | None = None, **options: Any) -> Any:
        made = load(name, **options)
        made.texts = heard
        return made

    monkeypatch.setattr(jaxasr, "load_model", load_model)
    result = run("evaluate", two / "a" / "m.tsv", "--model", "m", "--metric", metric, "--json")
    assert result.code == 0 and len(result.lines) == (line is not None)
    assert (line or "") in result.err and ("--output" in result.err) == (line is not None)
    assert set(json.loads(result.out)["total"]) == {
        "utterances", "audio_seconds", "errors", "substitutions", "deletions", "insertions", "reference_length", "rate",
    }  # fmt: skip


def test_an_odd_name_of_a_manifest(run: Run, two: Path, tmp_path: Path) -> None:
    manifest = two / "a" / "m\t\x1b[2J\n.tsv"
    (two / "a" / "m.tsv").rename(manifest)
    result = run("evaluate", manifest, "--model", "m", "--output", tmp_path / "out.tsv")
    assert "m\\t\\x1b[2J\\n.tsv  " in result.out and len(result.out.splitlines()) == 2
    with open(tmp_path / "out.tsv", encoding="utf-8", newline="") as file:
        assert {row["manifest"] for row in csv.DictReader(file, delimiter="\t")} == {str(manifest)}


def test_json(run: Run, two: Path) -> None:
    result = run("evaluate", two / "a" / "m.tsv", two / "b" / "m.tsv", "--model", "m", "--json")
    report = json.loads(result.out)
    assert report["metric"] == "wer"
    assert [entry["manifest"] for entry in report["manifests"]] == [str(two / "a" / "m.tsv"), str(two / "b" / "m.tsv")]
    total = report["total"]
    assert total == {
        "utterances": 3, "audio_seconds": 5.2, "errors": 4, "substitutions": 1, "deletions": 2, "insertions": 1,
        "reference_length": 9, "rate": 4 / 9,
    }  # fmt: skip
    for key in ("errors", "substitutions", "deletions", "insertions", "reference_length", "utterances"):
        assert sum(entry[key] for entry in report["manifests"]) == total[key]
    assert report["real_time_factor"] == pytest.approx(5.2 / report["seconds"], rel=0.1) or report["seconds"] < 0.01


def test_pieces_are_joined_before_they_are_resampled(run: Run, two: Path, recognizers: list[Any]) -> None:
    assert run("evaluate", two / "b" / "m.tsv", "--model", "m").code == 0
    (samples,) = recognizers[0].heard
    assert len(samples) == 2 * (2 * 8000 + 2 * 800)


def test_options_reach_the_library(run: Run, two: Path, recognizers: list[Any]) -> None:
    options = "--dtype bfloat16 --batch-seconds 30 --blank-penalty 1.5 --search joint --beam 8".split()
    options += "--pad-before 0.9 --pad-after 0".split()
    assert run("evaluate", two / "b" / "m.tsv", "--model", "m", *options, "--precision", "int8").code == 0
    assert recognizers[0].options == {
        "model": "m", "dtype": "bfloat16", "batch_seconds": 30.0, "blank_penalty": 1.5,
        "search": "joint", "head": None, "beam": 8, "pad_before": 0.9, "pad_after": 0.0, "precision": "int8",
        "activations": None, "vad": "energy",
        "lazy": True,
    }  # fmt: skip


def test_characters(run: Run, two: Path) -> None:
    result = run("evaluate", two / "a" / "m.tsv", "--model", "m", "--metric", "cer")
    # THECAT to THECATSAT: 3 inserted; ADOGRAN to DOGRUN: 1 deleted, 1 replaced.
    assert result.out.splitlines()[0].split()[-2:] == ["characters", "CER"]
    assert result.out.splitlines()[1].split()[1:] == "2 5 1 1 3 13 38.46 %".split()


def test_where(run: Run, two: Path) -> None:
    report = json.loads(run("evaluate", two / "a" / "m.tsv", "-m", "m", "--json", "--where", "split=test").out)
    assert report["total"]["utterances"] == 1 and report["total"]["insertions"] == 1
    both = run("evaluate", two / "a" / "m.tsv", "-m", "m", "--json", "--where", "split=test", "--where", "split=train")
    assert json.loads(both.out)["total"]["utterances"] == 2
    none = run("evaluate", two / "a" / "m.tsv", "-m", "m", "--where", "split=dev")
    assert (none.code, none.out, len(none.lines)) == (1, "", 1) and "split=dev" in none.err
    for condition in ("split", "=test"):
        wrong = run("evaluate", two / "a" / "m.tsv", "-m", "m", "--where", condition)
        assert wrong.code == 2 and "COLUMN=VALUE" in wrong.err


def test_utterances_are_written(run: Run, two: Path) -> None:
    output = two / "out.tsv"
    assert run("evaluate", two / "a" / "m.tsv", two / "b" / "m.tsv", "-m", "m", "--output", output).code == 0
    with open(output, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["reference"], row["hypothesis"], row["errors"]) for row in rows] == [
        ("THE CAT", "THE CAT SAT", "1"),
        ("A DOG RAN", "DOG RUN", "2"),
        ("ONE TWO THREE FOUR", "ONE TWO FOUR", "1"),
    ]
    assert (rows[2]["path"], rows[2]["start"], rows[2]["deletions"]) == ("y.wav,y.wav", "0,8000", "1")
    assert rows[0]["manifest"] == str(two / "a" / "m.tsv")


def test_bad_rows_are_told_and_left_out(run: Run, two: Path) -> None:
    with open(two / "a" / "m.tsv", "a") as file:
        file.write("absent.wav\t0\t10\ttest\tNOTHING\nx.wav\t47999\t10\ttest\tTOO LONG\n")
    result = run("evaluate", two / "a" / "m.tsv", "--model", "m", "--json")
    assert result.code == 1 and len(result.lines) == 2
    assert "absent.wav" in result.lines[0] and "x.wav: holds 48000 samples" in result.lines[1]
    assert json.loads(result.out)["total"]["utterances"] == 2


def test_nothing_but_bad_rows_leaves_no_file(run: Run, two: Path) -> None:
    (two / "a" / "m.tsv").write_text("path\ttext\nabsent.wav\tNOTHING\n")
    result = run("evaluate", two / "a" / "m.tsv", "--model", "m", "--output", two / "out.tsv")
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert not (two / "out.tsv").exists()


def test_errors_before_the_model_is_loaded(run: Run, two: Path, recognizers: list[Any]) -> None:
    for arguments in (
        [two / "absent.tsv", "--model", "m"],
        [two / "a" / "m.tsv", "--model", "m", "--output", two / "no" / "out.tsv"],
    ):
        result = run("evaluate", *arguments)
        assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert recognizers == []
