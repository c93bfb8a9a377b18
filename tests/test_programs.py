"""Programs are compiled once, and those that are needed later while the device works."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import jaxasr.testing
from jaxasr.planner import COSTS, Costs
from jaxasr.programs import Programs
from jaxasr.search import GreedyConfig

FIRST, SECOND, THIRD = (1, 16000), (1, 32000), (1, 48000)


class Slow:
    """Programs that are compiled when they are let go; `compile` of a lowered stub gives its shape."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.let_go: dict[tuple[int, int], threading.Event] = {}
        self.faults: set[tuple[int, int]] = set()
        self.kept: set[tuple[int, int]] = set()

    def lower(self, rows: int, samples: int, anew: Callable[[], None]) -> Slow.Lowered:
        if (rows, samples) not in self.kept:
            anew()
        return Slow.Lowered(self, (rows, samples))

    class Lowered:
        def __init__(self, owner: Slow, shape: tuple[int, int]) -> None:
            self.owner, self.shape = owner, shape

        def compile(self) -> tuple[int, int]:
            self.owner.begun.append(self.shape)
            if self.shape in self.owner.let_go:
                assert self.owner.let_go[self.shape].wait(30)
            if self.shape in self.owner.faults:
                raise RuntimeError(f"no program for {self.shape}")
            return self.shape


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def programs(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    with jaxasr.testing.tiny_recognizer() as recognizer:
        monkeypatch.setattr(recognizer.programs, "_lower", slow.lower)
        yield recognizer.programs


@pytest.fixture
def at_info(logger_restored: None) -> None:
    logging.getLogger("jaxasr").setLevel(logging.INFO)


def compiling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jaxasr-compile"]


def test_a_program_that_is_there_waits_for_none_that_is_compiled(programs: Programs, slow: Slow) -> None:
    assert programs.compile(*FIRST) == FIRST
    slow.let_go[SECOND] = threading.Event()
    programs.compile_ahead([FIRST, SECOND, SECOND, THIRD])
    assert programs.compile(*FIRST) == FIRST
    assert programs.params
    slow.let_go[SECOND].set()
    assert programs.compile(*SECOND) == SECOND
    assert programs.compile(*THIRD) == THIRD
    assert slow.begun == [FIRST, SECOND, THIRD]


def test_what_is_not_begun_when_the_caller_leaves_is_not_compiled(programs: Programs, slow: Slow) -> None:
    slow.let_go[FIRST] = threading.Event()
    stop = programs.compile_ahead([FIRST, SECOND])
    (thread,) = compiling()
    stop.set()
    slow.let_go[FIRST].set()
    thread.join(30)
    assert slow.begun == [FIRST] and set(programs.compiled) == {FIRST}


def test_a_fault_in_the_thread_is_met_by_who_needs_the_program(programs: Programs, slow: Slow) -> None:
    slow.let_go[SECOND] = threading.Event()
    slow.faults.add(SECOND)
    programs.compile_ahead([SECOND, THIRD])
    threading.Timer(0.1, slow.let_go[SECOND].set).start()
    with pytest.raises(RuntimeError, match="no program for"):
        programs.compile(*SECOND)
    slow.faults.clear()
    assert programs.compile(*SECOND) == SECOND


def test_threads_compile_one_program_once(programs: Programs, slow: Slow) -> None:
    slow.let_go[FIRST] = threading.Event()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(programs.compile(*FIRST))) for _ in range(4)]
    for thread in threads:
        thread.start()
    slow.let_go[FIRST].set()
    for thread in threads:
        thread.join(30)
    assert found == [FIRST] * 4 and slow.begun == [FIRST]


COMPILING = "compiling for clips of up to {} s: once for this machine"


def test_who_waits_is_told_for_what(programs: Programs, slow: Slow, logged: list[str], at_info: None) -> None:
    """Not of a program that is there or that nobody waits for, and once."""
    slow.kept.add(FIRST)
    programs.compile(*FIRST)
    slow.let_go = {SECOND: threading.Event(), THIRD: threading.Event()}
    programs.compile_ahead([SECOND, THIRD])
    slow.let_go[SECOND].set()
    while SECOND not in programs.compiled:
        time.sleep(0.01)
    programs.compile(*SECOND)
    assert logged == []
    threads = [threading.Thread(target=programs.compile, args=THIRD) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not logged:
        time.sleep(0.01)
    slow.let_go[THIRD].set()
    for thread in threads:
        thread.join(30)
    said = COMPILING.format(3)
    assert logged == [said, f"no longer {said}"]


def test_a_program_that_fails_is_waited_for_no_longer(
    programs: Programs, slow: Slow, logged: list[str], at_info: None
) -> None:
    slow.faults.add(FIRST)
    with pytest.raises(RuntimeError):
        programs.compile(*FIRST)
    assert logged == [COMPILING.format(1), f"no longer {COMPILING.format(1)}"]


def test_reading_is_told_where_it_takes_long(logged: list[str], at_info: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read = threading.Event()

    def params() -> dict[str, Any]:
        assert read.wait(30)
        return {}

    programs = Programs(jaxasr.testing.tiny_config(), params, search=GreedyConfig())
    threading.Timer(0.5, read.set).start()
    monkeypatch.setattr("jaxasr.programs.QUIET_SECONDS", 0.01)
    programs.load()
    programs.load()
    assert logged == ["reading the model's arrays", "no longer reading the model's arrays"]
    programs.close()


def test_a_job_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recognizer names the further shapes of a group before it compiles the first one."""
    ahead: list[list[tuple[int, int]]] = []
    compile_ahead = Programs.compile_ahead

    def noted(self: Programs, shapes: Iterable[tuple[int, int]]) -> threading.Event:
        ahead.append(list(shapes))
        assert not self.compiled
        return compile_ahead(self, ahead[-1])

    monkeypatch.setattr(Programs, "compile_ahead", noted)
    monkeypatch.setitem(COSTS, "cpu", Costs(program=0.0, length=0.0, batch=0.0, work=1.0))  # two lengths, two programs
    noise = np.random.default_rng(0).normal(size=48000).astype(np.float32)
    with jaxasr.testing.tiny_recognizer(batch_seconds=0.5) as recognizer:
        assert len(list(recognizer.transcribe([noise, noise[:16000]]))) == 2
        assert len(set(recognizer.programs.compiled) - set(ahead[0])) == 1 == len(set(ahead[0]))


def test_two_programs_are_compiled_at_once(programs: Programs, slow: Slow) -> None:
    slow.let_go = {shape: threading.Event() for shape in (FIRST, SECOND, THIRD)}
    threads = [threading.Thread(target=programs.compile, args=shape) for shape in (FIRST, SECOND, THIRD)]
    for thread in threads:
        thread.start()
    while len(slow.begun) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(slow.begun) == 2
    for event in slow.let_go.values():
        event.set()
    for thread in threads:
        thread.join(30)
    assert set(programs.compiled) == {FIRST, SECOND, THIRD}


def test_a_process_that_ends_waits_for_one_program_at_most() -> None:
    """An iterator that is left open is closed after threads have been waited for."""
    program = """
import time
import jaxasr.testing
recognizer = jaxasr.testing.tiny_recognizer()
begun = []
class Lowered:
    def compile(self):
        time.sleep(0.5)
recognizer.programs._lower = lambda *shape: begun.append(shape[:2]) or Lowered()
import atexit
atexit.register(lambda: print(len(begun)))
recognizer.programs.compile_ahead([(1, 1000 * rows) for rows in range(1, 600)])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert 1 <= int(ended.stdout) < 10
