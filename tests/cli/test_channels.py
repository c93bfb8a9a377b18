"""`jaxasr transcribe --channels`: the mean, one channel, or each in a transcript, a row or a file of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from jaxasr import testing
from jaxasr.audio import load

Run = Callable[..., Any]


@pytest.fixture
def calls(tmp_path: Path, recognizers: list[Any]) -> Path:
    """Two telephone calls and a recording of one channel."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "calls"
    folder.mkdir()
    for name, channels in (("a_call", 2), ("b_talk", 1), ("c_call", 3)):
        soundfile.write(folder / f"{name}.wav", generator.uniform(-0.1, 0.1, (8000, channels)), 16000)
    return folder


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_on_standard_output(run: Run, calls: Path) -> None:
    printed = run("transcribe", calls, "-m", "m", "-f", "json", "--channels", "each").out
    found = [json.loads(line) for line in printed.splitlines()]
    assert [(Path(each["audio"]).stem, each["channel"]) for each in found] == [
        ("a_call", 1), ("a_call", 2), ("b_talk", 1), ("c_call", 1), ("c_call", 2), ("c_call", 3),
    ]  # fmt: skip
    assert list(found[0])[:3] == ["audio", "channel", "duration"]
    rows = run("transcribe", calls, "-m", "m", "-f", "tsv", "--channels", "each").out.splitlines()
    assert rows[0] == "audio\tchannel\tstart\tend\ttext"
    assert [row.split("\t")[1] for row in rows[1:]] == ["1", "2", "1", "1", "2", "3"]
    assert run("transcribe", calls, "-m", "m", "--channels", "each").out.splitlines() == (
        ["a call"] * 2 + ["b talk"] + ["c call"] * 3
    )


def test_a_number_that_some_recordings_do_not_have(run: Run, calls: Path) -> None:
    result = run("transcribe", calls, "-m", "m", "-f", "json", "--channels", "2")
    assert result.code == 1
    assert [json.loads(line)["channel"] for line in result.out.splitlines()] == [2, 2]
    assert result.err == f"jaxasr: {calls / 'b_talk.wav'}: has one channel and no channel 2\n"
    for wrong in ("0", "-1", "left", "1.5"):
        result = run("transcribe", calls, "-m", "m", f"--channels={wrong}")
        assert result.code == 2 and "--channels takes mix, each or a number from 1 on" in result.err


def test_files_in_a_folder(run: Run, calls: Path, tmp_path: Path) -> None:
    for format in ("txt", "srt", "vtt"):
        out = tmp_path / format
        assert run("transcribe", calls, "-m", "m", "-o", f"{out}/", "-f", format, "--channels", "each").code == 0
        channels = ("a_call.ch1", "a_call.ch2", "b_talk.ch1", "c_call.ch1", "c_call.ch2", "c_call.ch3")
        assert list(written(out)) == [f"{channel}.{format}" for channel in channels]
    assert written(tmp_path / "txt")["a_call.ch2.txt"] == "a call\n"
    rerun = run("transcribe", calls, "-m", "m", "-o", f"{tmp_path}/txt/", "--channels", "each", "--skip-existing")
    assert rerun.code == 0 and "3 recordings are left out" in rerun.err
    for format in ("json", "tsv"):
        out = tmp_path / format
        assert run("transcribe", calls, "-m", "m", "-o", f"{out}/", "-f", format, "--channels", "each").code == 0
        assert list(written(out)) == [f"{stem}.{format}" for stem in ("a_call", "b_talk", "c_call")]
    assert [json.loads(line)["channel"] for line in written(tmp_path / "json")["c_call.json"].splitlines()] == [1, 2, 3]
    assert len(written(tmp_path / "tsv")["a_call.tsv"].splitlines()) == 3
    assert run("transcribe", calls, "-m", "m", "-o", f"{tmp_path}/one/", "--channels", "1").code == 0
    assert list(written(tmp_path / "one")) == ["a_call.txt", "b_talk.txt", "c_call.txt"]


def test_a_recognizer_hears_each_channel(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    planes = generator.uniform(-0.5, 0.5, (20000, 2)).astype(np.float32)
    path = tmp_path / "call.wav"
    soundfile.write(path, planes, 16000, subtype="FLOAT")
    with testing.tiny_recognizer() as recognizer:
        alone = list(recognizer.transcribe([planes[:, 0], planes[:, 1], load(path)]))
        for source in (path, planes, planes.T):
            each = list(recognizer.transcribe([source, planes[:, 1]], channels="each"))
            assert [transcript.channel for transcript in each] == [1, 2, 1]
            assert [transcript.token_ids for transcript in each] == [alone[i].token_ids for i in (0, 1, 1)]
        (second,) = recognizer.transcribe(path, channels=2)
        assert (second.channel, second.token_ids) == (2, alone[1].token_ids)
        (mixed,) = recognizer.transcribe(path)
        assert (mixed.channel, mixed.token_ids) == (None, alone[2].token_ids)
        live = recognizer.transcribe(iter([path]), channels="each", read_ahead=0)
        assert [transcript.channel for transcript in live] == [1, 2]
