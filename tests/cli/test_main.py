"""`main`: help without JAX, and one line and the right exit code for whatever goes wrong in a command."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxasr
from jaxasr.cli import info
from jaxasr.errors import AudioError

Run = Callable[..., Any]
COMMANDS = ("transcribe", "convert", "info", "evaluate", "train", "bench")
OUT_OF_MEMORY = "jaxasr: out of memory: try a smaller --batch-seconds, or --dtype bfloat16"
HEAVY = ("jax", "jaxlib", "flax", "orbax", "librosa", "huggingface_hub", "onnx", "torch", "rich.markdown")


def python(program: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(("value", "heard"), [("", False), ("1", True)])
def test_what_cannot_be_raised_is_told_when_debugging_only(value: str, heard: bool) -> None:
    program = """
from jaxasr.cli import main
class Late:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
try:
    main(["--version"])
finally:
    late = Late()
    del late
"""
    result = python(program, env={**os.environ, "JAXASR_DEBUG": value})
    assert result.returncode == 0 and ("Event loop is closed" in result.stderr) == heard


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["transcribe", "--help"], ["transcribe"]])
def test_help_and_usage_import_no_jax(arguments: list[str]) -> None:
    program = f"""
import sys
from jaxasr.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("LOADED", loaded, "CODE", stop.code)
"""
    result = python(program)
    code = 2 if arguments == ["transcribe"] else 0
    assert result.stdout.splitlines()[-1] == f"LOADED [] CODE {code}", result.stderr


def test_help_of_every_command_has_an_example(run: Run) -> None:
    overview = run("--help")
    assert overview.code == 0 and overview.err == ""
    for command in COMMANDS:
        assert command in overview.out
        help = run(command, "--help")
        assert (help.code, help.err) == (0, "")
        assert f"Example: jaxasr {command} " in " ".join(help.out.split())


def test_version(run: Run) -> None:
    assert run("--version").out == f"jaxasr {jaxasr.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transcribe"], "Missing argument"),
        (["transcribe", "a.wav", "--modle", "x"], "--modle"),
        (["transcribe", "a.wav", "--dtype", "int4"], "'--dtype'"),
        (["transcribe", "a.wav", "--format", "doc"], "'--format'"),
        (["transcribe", "a.wav", "--batch-seconds", "0"], "'--batch-seconds'"),
        (["transcribe", "a.wav", "--blank-penalty", "nan"], "'--blank-penalty'"),
        (["transcribe", "a.wav", "--pad-after", "-1"], "'--pad-after'"),
        (["transcribe", "a.wav", "--pad-before", "inf"], "'--pad-before'"),
        (["convert", "a.pt"], "Missing argument"),
        (["convert", "a.pt", "out", "--average"], "--average"),
        (["convert", "a.pt", "out", "--chunk-seconds", "-1"], "'--chunk-seconds'"),
        (["evaluate", "m.tsv", "--metric", "per"], "'--metric'"),
        (["translate"], "translate"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Run, arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    (line,) = result.lines
    assert line.startswith("jaxasr: ") and says in line and "--help)" in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (AudioError("a.wav: is broken;\n copy it again"), 1, "jaxasr: a.wav: is broken; copy it again"),
        (KeyboardInterrupt(), 130, "jaxasr: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "jaxasr: /x/y: No space left on device"),
        (OSError(errno.ENOENT, "No such file", "/x/\x1b[2J\n"), 1, "jaxasr: /x/\\x1b[2J\\n: No such file"),
        (AudioError("a\nb\x1b.wav: is broken"), 1, "jaxasr: a\\nb\\x1b.wav: is broken"),
        (MemoryError(), 1, OUT_OF_MEMORY),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, OUT_OF_MEMORY),
        (
            ValueError("first\nsecond"),
            1,
            "jaxasr: unexpected ValueError: first second (JAXASR_DEBUG=1 shows where; please report it)",
        ),
        (AssertionError(), 1, "jaxasr: unexpected AssertionError: (JAXASR_DEBUG=1 shows where; please report it)"),
    ],
)  # fmt: skip
def test_errors_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.delenv("JAXASR_DEBUG", raising=False)
    monkeypatch.setattr(info, "fact_lines", fail)
    monkeypatch.setattr("jaxasr.store.is_model_directory", lambda path: True)
    monkeypatch.setattr("jaxasr.store.describe", lambda path: {})
    result = run("info", "model")
    assert (result.code, result.out, result.lines) == (code, "", [line])


def test_debugging_shows_the_traceback() -> None:
    program = "from jaxasr.cli import main; main(['evaluate', 'absent.tsv'])"
    plain = python(program, env={**os.environ, "JAXASR_DEBUG": "0"})
    assert plain.returncode == 1 and len(plain.stderr.splitlines()) == 1
    debugged = python(program, env={**os.environ, "JAXASR_DEBUG": "1"})
    assert debugged.returncode == 1 and "Traceback" in debugged.stderr
    assert debugged.stderr.splitlines()[-1] == plain.stderr.strip()


def test_no_argument_commands_the_terminal() -> None:
    for arguments in (
        ["evaluate", "\x1b[2J.tsv"],
        ["translate\x1b[2J"],
        ["info", "\x1b[2J\x9b"],
        ["info", "--\x1b[2J"],
    ):
        for value in ("0", "1"):
            result = python(
                f"from jaxasr.cli import main; main({arguments!r})", env={**os.environ, "JAXASR_DEBUG": value}
            )
            assert result.returncode and "x1b[2J" in result.stderr and result.stderr.replace("\n", "").isprintable()


def test_a_refused_recording_waits_for_the_model_to_be_read(tmp_path: Path) -> None:
    """Python that shuts down while TensorStore reads may abort."""
    (tmp_path / "bad.wav").write_bytes(b"RIFF nothing")
    program = """
import time
from jaxasr import store
from jaxasr.cli import main
read = store.StoredModel.params
def slow(*arguments, **options):
    time.sleep(3)
    params = read(*arguments, **options)
    open("read", "w").close()
    return params
store.StoredModel.params = slow
main(["transcribe", "bad.wav", "--model", "embedded"])
"""
    result = python(program, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("jaxasr: bad.wav: ")
    assert (tmp_path / "read").exists()


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "from jaxasr.cli import main; main(['--help'])"
    source, sink = os.pipe()
    os.close(source)
    with os.fdopen(sink, "w") as closed:
        result = subprocess.run([sys.executable, "-c", program], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_on_a_full_disk() -> None:
    program = "from jaxasr.cli import main; main(['--help'])"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "jaxasr: standard output: No space left on device\n")
