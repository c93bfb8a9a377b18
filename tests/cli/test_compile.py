"""`jaxasr compile` makes what later jobs need, and nothing twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxasr
import jaxasr.model
import jaxasr.testing
from jaxasr import recognizer
from jaxasr.cli import compile as command
from jaxasr.programs import Programs


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model, and a cache folder of the test."""
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jaxasr, "configure_process", lambda: None)
    return jaxasr.testing.tiny_model_directory(tmp_path / "model")


def files(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


def refuse(*_: object) -> None:
    raise AssertionError("nothing is to be made anew")


def test_what_is_made_is_what_later_jobs_need(
    run: Callable[..., Any],
    model: Path,
    tmp_path: Path,
    record: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--head", "ctc", "--batch-seconds", 4, "--pad-before", 0.25)
    first = run("compile", model, "--seconds", "1.5,2.9", "--rows", 1, *options)
    assert first.code == 0 and first.err == ""
    lines = first.out.splitlines()
    made = [re.fullmatch(r"\d of 3: clips of up to (.+) s: compiled in [0-9.]+ s", line) for line in lines[:3]]
    assert [float(each[1]) for each in made if each] == [30, 3.15, 1.6]
    assert lines[3] == "3 programs compiled, 0 were there"
    cache = tmp_path / "cache"
    assert re.fullmatch(rf"cache folder: {cache}, [0-9.]+ MB \(arrays [0-9.]+, exported [0-9.]+.*\)", lines[4])
    kept = files(cache)
    assert {file.parent.name for file in kept} >= {"arrays", "exported"}

    monkeypatch.setattr(jaxasr.model, "AbstractModel", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(Programs, "compile", refuse)
        again = run("compile", model, "--seconds", "1.5,2.9", "--rows", 1, *options)
    assert again.code == 0 and [line[-9:] for line in again.out.splitlines()[:3]] == ["was there"] * 3
    assert "all programs were there" in again.out
    # Jobs of one clip, also a live one, of any length between two rungs.
    for seconds in (1.3, 1.6, 2.6, 3.1, 29.0):
        record(tmp_path / "clip.wav", seconds)
        assert run("transcribe", tmp_path / "clip.wav", "--model", model, *options).code == 0
    assert files(cache) == kept


def test_others_are_named_and_what_cannot_be_kept(
    run: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer, "MOST_COMPILED", 1)
    (model.parent / "file").touch()
    monkeypatch.setenv("JAXASR_CACHE", str(model.parent / "file"))
    ended = run("compile", model, "--seconds", 2, "--head", "ctc")
    assert ended.code == 1 and "1 of 1: clips of up to 30 s: compiled in" in ended.out
    assert re.search(r"\n\d+ others, for jobs of many clips, are compiled when one needs them", ended.out)
    assert len(ended.lines) == 1 and "1 programs could not be kept" in ended.err


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--seconds", "1;2"), 2, "1;2 is neither a number nor several with commas"),
        (("--seconds", "1,0"), 1, "seconds must be the length of a clip or several"),
        (("--seconds", "inf"), 1, "seconds must be the length of a clip or several"),
        (("--rows", "0"), 2, "rows"),
        (("--search", "loud"), 1, "loud"),
    ],
)
def test_mistakes_are_told(
    run: Callable[..., Any], model: Path, options: tuple[str, ...], code: int, named: str
) -> None:
    ended = run("compile", model, *options)
    assert ended.code == code and len(ended.lines) == 1 and named in ended.err


def test_help_names_the_bound(run: Callable[..., Any]) -> None:
    assert f"likeliest {recognizer.MOST_COMPILED} programs" in " ".join(command.ROWS_HELP.split())


def test_a_recognizer_is_loaded_with_its_programs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"head": "ctc", "shortest_seconds": 25.0, "batch_seconds": 25.0}
    with jaxasr.load_model(model, **options, compile_for=18) as loaded:
        assert sorted(loaded.programs.compiled) == [(1, 25 * 16000), (1, 30 * 16000)]
        monkeypatch.setattr(Programs, "_lower", refuse)
        clips = [np.zeros(round(seconds * 16000), np.float32) for seconds in (1, 15, 29)]
        assert len(list(loaded.transcribe(iter(clips)))) == 3
        assert loaded.expected([99.0]) == loaded.expected()  # windows of any length are cut of it
    for wrong in (0, [], [3, -1], True, "long", float("nan")):
        with pytest.raises(jaxasr.JaxasrError, match="seconds must be"):
            jaxasr.load_model(model, **options, compile_for=wrong)
