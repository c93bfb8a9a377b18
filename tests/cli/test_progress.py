"""Lines on standard error, and a meter that is silent where there is no terminal."""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.progress import Progress

from jaxasr import waiting
from jaxasr.cli import progress


@pytest.fixture
def own_logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    monkeypatch.setattr(logging.getLogger("jaxasr"), "handlers", [])
    return logging.getLogger("jaxasr")


def test_what_jaxasr_logs_is_one_line(own_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    progress.log_to_stderr()
    progress.log_to_stderr()
    own_logger.warning("%s: cut into\n%d windows", "a.wav", 3)
    own_logger.info("a note")
    own_logger.debug("unheard")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "jaxasr: a.wav: cut into 3 windows\njaxasr: a note\n")


def test_nothing_that_is_said_commands_the_terminal(
    own_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.log_to_stderr()
    own_logger.warning("%s: is odd", "\x1b[2J\u202e  a\udce9.wav")
    progress.say(" two\r\n lines \x9b ")
    progress.show("a\tb\nc \x07")
    captured = capsys.readouterr()
    assert captured.err == "jaxasr: \\x1b[2J\\u202e  a\\udce9.wav: is odd\njaxasr: two lines \\x9b\n"
    assert captured.out == "a\\tb\\nc \\x07\n"
    progress.say("x" * 100_000)
    assert len(capsys.readouterr().err) < 5100


@pytest.mark.parametrize(("value", "heard"), [("", False), ("0", False), ("1", True)])
def test_libraries_are_heard_only_when_debugging(value: str, heard: bool) -> None:
    # In a Python of its own: pytest has handlers at the root.
    program = "import logging; from jaxasr.cli import progress; progress.log_to_stderr(); logging.getLogger('orbax')"
    result = subprocess.run(
        [sys.executable, "-c", program + ".error('what a library says')"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAXASR_DEBUG": value},
    )
    assert ("what a library says" in result.stderr) == heard


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.metered("transcribing") as meter:
        meter(1.0, 2.0)
        with meter.aside():
            print("result")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "")


WAITING = """
import time
from jaxasr.cli.progress import log_to_stderr, metered
from jaxasr.waiting import Wait
log_to_stderr()
with metered("transcribing") as meter:
    time.sleep(0.3)
    wait = Wait("compiling for clips of up to 12 s: once for this machine")
    wait.note(long=True, awaited=True)
    time.sleep(0.3)
    wait.end()
    meter(5.0, 10.0)
    time.sleep(0.3)
    Wait("compiling more").note(long=True)  # of which nobody has to know
wait = Wait("compiling after the bar")
wait.note(long=True, awaited=True)
"""


def test_a_terminal_sees_what_is_waited_for(on_a_terminal: Callable[[list[str]], tuple[str, str]]) -> None:
    printed, shown = on_a_terminal([sys.executable, "-c", WAITING])
    assert printed == ""
    stages = re.findall("transcribing|compiling for clips of up to 12 s: once for this machine|compiling", shown)
    assert [stage for stage, _ in itertools.groupby(stages)] == [
        "transcribing", "compiling for clips of up to 12 s: once for this machine", "transcribing"
    ]  # fmt: skip


def test_a_wait_stands_in_the_place_of_the_title() -> None:
    with Progress(disable=True) as bar:
        meter = progress.Meter(bar, "listening")
        logger = logging.Logger(waiting.LOGGER)
        logger.addHandler(meter)
        logger.info("boiling %d", 3)
        assert bar.tasks[0].description == "boiling 3"
        logger.info("no longer boiling", extra={waiting.OVER: True})
        assert bar.tasks[0].description == "listening"


def test_a_pipe_hears_nothing_of_it() -> None:
    ended = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_closed_standard_error_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    progress.say("into the void")


def test_a_traceback_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        progress.show_traceback()
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n  File ")
    assert "ValueError: \\x1b[2J\n" in shown and "\x1b" not in shown
