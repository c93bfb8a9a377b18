"""`jaxasr transcribe`: order, formats, folders, and what happens to good audio when something else is bad."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxasr
from jaxasr.errors import ModelError

Run = Callable[..., Any]
Record = Callable[..., Path]
OnATerminal = Callable[[list[str]], tuple[str, str]]


@pytest.fixture
def talks(tmp_path: Path, record: Record, recognizers: list[Any]) -> Path:
    for name in ("good_morning", "see_you_later", "b/hello"):
        record(tmp_path / "talks" / f"{name}.wav", 2.0)
    return tmp_path / "talks"


def names(folder: Path) -> list[str]:
    """All that a folder holds, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_words_on_standard_output_in_the_order_of_the_arguments(run: Run, talks: Path) -> None:
    result = run("transcribe", talks / "see_you_later.wav", talks / "good_morning.wav", "--model", "m")
    assert (result.code, result.out, result.err) == (0, "see you later\ngood morning\n", "")


def test_folders_and_patterns(run: Run, talks: Path) -> None:
    assert run("transcribe", talks, "-m", "m").out.splitlines() == ["hello", "good morning", "see you later"]
    assert run("transcribe", talks / "*_*.wav", "-m", "m").out.splitlines() == ["good morning", "see you later"]


def test_options_reach_the_library(run: Run, talks: Path, recognizers: list[Any]) -> None:
    options = "--dtype bfloat16 --batch-seconds 30 --blank-penalty 1.5 --search joint --beam 8".split()
    options += "--pad-before 0.9 --pad-after 0".split()
    assert run("transcribe", talks, "--model", "m", *options, "--precision", "int8").code == 0
    assert recognizers[0].closed
    assert run("transcribe", talks, "--model", "m", "--vad", "none").code == 0
    assert recognizers[0].options == {
        "model": "m", "dtype": "bfloat16", "batch_seconds": 30.0, "blank_penalty": 1.5,
        "search": "joint", "head": None, "beam": 8, "pad_before": 0.9, "pad_after": 0.0, "precision": "int8",
        "activations": None, "vad": "energy",
        "lazy": True,
    }  # fmt: skip
    assert recognizers[1].options == {
        "model": "m", "dtype": "float32", "batch_seconds": None, "blank_penalty": 0.0, "search": None,
        "head": None, "beam": None, "pad_before": None, "pad_after": None, "precision": "float32",
        "activations": None, "vad": "none", "lazy": True,
    }  # fmt: skip


def test_a_beam_holds_something(run: Run, talks: Path) -> None:
    result = run("transcribe", talks, "--model", "m", "--beam", "0")
    assert result.code == 2 and "--beam" in result.err


def test_json_is_one_object_per_file(run: Run, talks: Path) -> None:
    result = run("transcribe", talks, "--model", "m", "--format", "json")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(row["audio"]).stem for row in rows] == ["hello", "good_morning", "see_you_later"]
    assert rows[2] == {
        "audio": str(talks / "see_you_later.wav"), "duration": 2.0, "text": "see you later",
        "tokens": [" see", " you", " later"], "token_ids": [0, 1, 2], "timestamps": [0.0, 0.5, 1.0],
        "log_probs": [-0.25, -0.25, -0.25],
    }  # fmt: skip


def test_a_file_for_all(run: Run, talks: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.json"
    output.write_text("old")
    result = run("transcribe", talks, "--model", "m", "--output", output)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == [
        "hello",
        "good morning",
        "see you later",
    ]
    assert names(tmp_path) == ["all.json", "talks/b/hello.wav", "talks/good_morning.wav", "talks/see_you_later.wav"]


def test_the_suffix_of_the_output_is_its_format(run: Run, talks: Path, tmp_path: Path) -> None:
    clip = talks / "good_morning.wav"
    for name, start in {
        "a.srt": "1\n00:00",
        "a.vtt": "WEBVTT\n",
        "a.TSV": "audio\t",
        "a.jsonl": "{",
        "a.log": "good",
    }.items():
        assert run("transcribe", clip, "-m", "m", "-o", tmp_path / name).code == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert run("transcribe", clip, "-m", "m", "-o", tmp_path / "b.srt", "-f", "txt").code == 0
    assert (tmp_path / "b.srt").read_text() == "good morning\n"


def test_a_folder_gets_a_file_for_each(run: Run, talks: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    result = run("transcribe", talks, "--model", "m", "--format", "vtt", "--output", output)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert names(output) == ["good_morning.vtt", "hello.vtt", "see_you_later.vtt"]
    assert (output / "hello.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> ")


def test_existing_files_are_skipped_and_then_no_model_is_loaded(
    run: Run, talks: Path, tmp_path: Path, recognizers: list[Any]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "hello.txt").write_text("mine")
    command = ("transcribe", talks, "--model", "m", "--output", output, "--skip-existing")
    assert run(*command).code == 0
    assert (output / "hello.txt").read_text() == "mine"
    assert (output / "good_morning.txt").read_text() == "good morning\n"
    assert len(recognizers) == 1
    assert run(*command).code == 0 and len(recognizers) == 1
    assert run(*command[:-1]).code == 0 and (output / "hello.txt").read_text() == "hello\n"


def test_two_folders_with_files_of_one_name(run: Run, tmp_path: Path, record: Record, recognizers: list[Any]) -> None:
    for name in ("a/hello.wav", "b/hello.wav", "b/goodbye.wav"):
        record(tmp_path / name)
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    command = ("transcribe", "-m", "m", "--output", out)
    assert run(*command, a).err == "" and names(out) == ["hello.txt"]
    skipped = run(*command, b, "--skip-existing")
    assert (skipped.code, names(out), len(skipped.lines)) == (0, ["goodbye.txt", "hello.txt"], 1)
    assert f"1 recording is left out, as its file exists: {b / 'hello.wav'} (hello.txt)" in skipped.err
    replaced = run(*command, b)
    assert (replaced.code, len(replaced.lines)) == (0, 1)
    assert f"{out}: 2 files of an earlier run will be replaced: goodbye.txt, hello.txt" in replaced.err
    # In one run the folders tell them apart, and each keeps its file in whatever run comes after.
    together = run(*command, a, b, "--skip-existing")
    both = ["a_hello.wav.txt", "b_hello.wav.txt"]
    assert names(out) == [*both, "goodbye.txt", "hello.txt"] and "goodbye.wav (goodbye.txt)" in together.err
    (out / "hello.txt").unlink()
    for folder, name in zip((a, b), both, strict=True):
        again = run(*command, folder, "--skip-existing")
        assert f"{folder / 'hello.wav'} ({name})" in again.err
        (out / name).write_text("old")
        assert name in run(*command, folder).err and (out / name).read_text() == "hello\n"
    assert names(out) == [*both, "goodbye.txt"]


def test_what_is_named_twice_is_transcribed_once(run: Run, talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("transcribe", talks, talks / "b", f"{talks}/../talks", "-m", "m", "--output", out)
    assert (result.code, len(result.lines)) == (0, 1)
    assert "3 recordings are transcribed once, though named more often: " in result.err
    assert names(out) == ["good_morning.txt", "hello.txt", "see_you_later.txt"]
    # Standard output gets what was asked for, as often as it was.
    assert run("transcribe", talks / "b", talks / "b", "-m", "m").out == "hello\nhello\n"


def test_long_lists_of_files_are_cut(run: Run, tmp_path: Path, record: Record, recognizers: list[Any]) -> None:
    clip = record(tmp_path / "in" / "0.wav", 0.1)
    for number in range(1, 300):
        os.link(clip, tmp_path / "in" / f"{number}.wav")
    command = ("transcribe", tmp_path / "in", "-m", "m", "--output", tmp_path / "out")
    assert run(*command).err == ""
    for option in ((), ("--skip-existing",)):
        (line,) = run(*command, *option).lines
        assert "300 " in line and " and 292 more" in line and len(line) < 2000


def test_a_folder_in_the_place_of_a_file(run: Run, talks: Path, tmp_path: Path, recognizers: list[Any]) -> None:
    (tmp_path / "out" / "hello.txt").mkdir(parents=True)
    for option in ((), ("--skip-existing",)):
        result = run("transcribe", talks, "-m", "m", "--output", tmp_path / "out", *option)
        assert result.code == 1 and len(result.lines) == 1 and "hello.txt: is a folder" in result.err
    assert recognizers == []


ODD = [
    "new\nline.wav",
    "\x1b[2J.wav",
    "a\u202eb.wav",
    "tab\there.wav",
    " two  spaces.wav",
    'it\'s "so".wav',
    "x\x9b\x85.wav",
]


def test_odd_names(run: Run, tmp_path: Path, record: Record, recognizers: list[Any]) -> None:
    folder = tmp_path / "in"
    for name in [*ODD, b"caf\xe9.wav".decode(errors="surrogateescape")]:
        record(folder / name)
        (folder / f"bad {name}").write_bytes(b"RIFF nothing")
    result = run("transcribe", folder, "-m", "m", "--format", "json")
    found = {Path(json.loads(line)["audio"]).name for line in result.out.splitlines()}
    assert found == {*ODD, b"caf\xe9.wav".decode(errors="surrogateescape")}
    assert len(result.lines) == len(found) and all(line.isprintable() for line in result.lines)
    for shown in (
        "new\\nline",
        "\\x1b[2J",
        "a\\u202eb",
        "tab\\there",
        " two  spaces",
        'it\'s "so"',
        "x\\x9b\\x85",
        "caf\\udce9",
    ):
        assert f"bad {shown}.wav: " in result.err
    out = tmp_path / "out"
    assert run("transcribe", folder, "-m", "m", "--output", out).code == 1
    assert set(names(out)) == {Path(name).stem + ".txt" for name in found}
    again = run("transcribe", folder, "-m", "m", "--output", out)
    assert again.err.isascii() and again.err.replace("\n", "").isprintable()
    table = run("transcribe", folder, "-m", "m", "--format", "tsv").out
    rows = list(csv.reader(io.StringIO(table, newline=""), delimiter="\t"))
    assert {Path(row[0]).name for row in rows[1:]} == found


def test_names_of_a_table_on_a_terminal(on_a_terminal: OnATerminal, tmp_path: Path, record: Record) -> None:
    record(tmp_path / "\x1b[2J.wav")
    program = SLOW.replace("PAUSE", "0").replace(
        "ARGUMENTS", f"'transcribe', {str(tmp_path)!r}, '-m', 'm', '-f', 'tsv'"
    )
    _, shown = on_a_terminal([sys.executable, "-c", "import os; os.dup2(2, 1)\n" + program])
    assert "\\x1b[2J.wav\t0.000" in shown and "\x1b[2J" not in shown


def test_skipping_needs_a_folder(run: Run, talks: Path, tmp_path: Path) -> None:
    for output in ((), ("--output", tmp_path / "a.txt")):
        result = run("transcribe", talks, "--model", "m", "--skip-existing", *output)
        assert result.code == 2 and "--skip-existing needs --output with a folder" in result.err


def test_several_recordings_in_one_subtitle_file_are_pointed_out(run: Run, talks: Path) -> None:
    result = run("transcribe", talks, "--model", "m", "--format", "srt")
    assert result.code == 0 and len(result.lines) == 1 and "--output FOLDER" in result.err
    assert re.findall(r"^\d+$", result.out, re.MULTILINE) == ["1", "2", "3"]
    assert run("transcribe", talks / "good_morning.wav", "--model", "m", "--format", "srt").err == ""


def test_standard_input(talks: Path) -> None:
    program = SLOW.replace("PAUSE", "0").replace("ARGUMENTS", "'transcribe', '-', '-m', 'm', '--format', 'json'")
    data = (talks / "good_morning.wav").read_bytes()
    result = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert (row["audio"], row["duration"]) == ("-", 2.0)


def test_bad_audio_among_good_ones(run: Run, talks: Path, tmp_path: Path) -> None:
    (talks / "bad.wav").write_bytes(b"RIFF nothing")
    (talks / "empty.wav").write_bytes(b"")
    arguments = ("transcribe", talks / "absent.wav", talks, tmp_path / "no*such", "--model", "m")
    result = run(*arguments)
    assert (result.code, result.out) == (1, "hello\ngood morning\nsee you later\n")
    assert len(result.lines) == 4
    for name in ("absent.wav", "bad.wav", "empty.wav", "no*such"):
        assert sum(name in line for line in result.lines) == 1
    output = tmp_path / "out"
    assert run(*arguments, "--output", output).code == 1
    assert names(output) == ["good_morning.txt", "hello.txt", "see_you_later.txt"]


def test_only_bad_audio_leaves_no_file(run: Run, tmp_path: Path, recognizers: list[Any]) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    output = tmp_path / "out.txt"
    output.write_text("old")
    result = run("transcribe", tmp_path / "bad.wav", "--model", "m", "--output", output)
    assert (result.code, len(result.lines)) == (1, 1)
    assert names(tmp_path) == ["bad.wav", "out.txt"] and output.read_text() == "old"


def test_a_model_that_cannot_be_loaded(run: Run, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: Any, **__: Any) -> None:
        raise ModelError("m is no model")

    monkeypatch.setattr(jaxasr, "load_model", load_model)
    result = run("transcribe", talks, "--model", "m", "--output", tmp_path / "out.txt")
    assert (result.code, result.out, result.lines) == (1, "", ["jaxasr: m is no model"])
    assert not (tmp_path / "out.txt").exists()


def test_the_audio_is_not_written_over(run: Run, talks: Path) -> None:
    clip = talks / "good_morning.wav"
    before = clip.read_bytes()
    result = run("transcribe", clip, "--model", "m", "--output", clip)
    assert result.code == 1 and "is one of the audio files" in result.err
    assert clip.read_bytes() == before


def test_output_that_cannot_be_written(run: Run, talks: Path, tmp_path: Path, recognizers: list[Any]) -> None:
    (tmp_path / "a file").write_text("")
    for output in (tmp_path / "a file" / "out", tmp_path / "a file" / "out.txt", tmp_path / "absent" / "out.txt"):
        result = run("transcribe", talks, "--model", "m", "--output", output)
        assert (result.code, result.out, len(result.lines)) == (1, "", 1)
        assert str(output) in result.err
    assert recognizers == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk(run: Run, talks: Path) -> None:
    result = run("transcribe", talks, "--model", "m", "--output", "/dev/full", "--format", "json")
    assert result.code == 1 and result.lines == [
        "jaxasr: /dev/full: cannot be written (No space left on device); choose another path"
    ]


def test_a_folder_on_a_disk_that_fills(talks: Path, tmp_path: Path) -> None:
    # A limit on the size of files stands for the full disk: it needs no rights and fails the same call.
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n" + SLOW.replace("PAUSE", "0")
    output = tmp_path / "out"
    arguments = f"'transcribe', {str(talks)!r}, '-m', 'm', '--format', 'json', '--output', {str(output)!r}"
    result = subprocess.run(
        [sys.executable, "-c", program.replace("ARGUMENTS", arguments)], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and "hello.json: cannot be written (File too large)" in result.stderr
    assert names(output) == []


def test_a_device_as_output(run: Run, talks: Path) -> None:
    assert run("transcribe", talks, "--model", "m", "--output", os.devnull).code == 0
    assert not Path(os.devnull).is_file()


SLOW = """
import contextlib, sys, time
import jaxasr
from jaxasr import audio
from jaxasr.cli import main

class Slow(contextlib.AbstractContextManager):
    def __exit__(self, *_):
        pass

    def transcribe(self, sources, *, on_error, progress, channels):
        for index, source in enumerate(sources):
            samples = audio.load(source)
            progress(index + 1.0, 3.0)
            yield jaxasr.Transcript(
                audio=source, duration=len(samples) / 16000, text="word", tokens=[" word"], token_ids=[1],
                timestamps=[0.0], log_probs=[-1.0],
            )
            time.sleep(PAUSE)

jaxasr.load_model = lambda *args, **kwargs: Slow()
main([ARGUMENTS])
"""


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_in_the_middle(talks: Path, tmp_path: Path, number: int, code: int, line: str) -> None:
    output = tmp_path / "out"
    arguments = f"'transcribe', {str(talks)!r}, '-m', 'm', '--output', {str(output)!r}"
    program = SLOW.replace("PAUSE", "60").replace("ARGUMENTS", arguments)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    while not (output / "hello.txt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, f"jaxasr: {line}\n")
    assert names(output) == ["hello.txt"]


def test_stopped_before_the_file_for_all_is_complete(talks: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.txt"
    arguments = f"'transcribe', {str(talks)!r}, '-m', 'm', '--output', {str(output)!r}"
    pause = 'open("first-result", "w").close(); time.sleep(60)'
    program = SLOW.replace("time.sleep(PAUSE)", pause).replace("ARGUMENTS", arguments)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (tmp_path / "first-result").exists() and process.poll() is None:
        time.sleep(0.02)
    assert [name for name in names(tmp_path) if name.endswith(".part")]
    time.sleep(0.5)  # into the pause after it
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "jaxasr: interrupted\n")
    assert [name for name in names(tmp_path) if not name.startswith("talks/")] == ["first-result"]


def test_results_come_as_they_are_recognised(talks: Path) -> None:
    arguments = f"'transcribe', {str(talks)!r}, '-m', 'm'"
    program = SLOW.replace("PAUSE", "60").replace("ARGUMENTS", arguments)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"word\n"
    # A reader that leaves is no error.
    process.stdout.close()
    process.kill()
    process.communicate(timeout=30)


def test_a_reader_that_leaves(talks: Path) -> None:
    arguments = f"'transcribe', {str(talks)!r}, '-m', 'm'"
    program = SLOW.replace("PAUSE", "0.3").replace("ARGUMENTS", arguments)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"word\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=30)) == (b"", 141)


def test_progress_on_a_terminal_leaves_standard_output_alone(talks: Path, on_a_terminal: OnATerminal) -> None:
    arguments = f"'transcribe', {str(talks)!r}, {str(talks / 'absent.wav')!r}, '-m', 'm'"
    program = SLOW.replace("PAUSE", "0.3").replace("ARGUMENTS", arguments)
    printed, shown = on_a_terminal([sys.executable, "-c", program])
    assert printed == "word\nword\nword\n"
    assert "transcribing" in shown and "x real time" in shown and "of audio" in shown
    assert "absent.wav" in shown and "Traceback" not in shown
