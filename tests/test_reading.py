"""Reading ahead: order, what a source that lets us wait gets, and that nobody ever waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from jaxasr.errors import AudioError
from jaxasr.reading import FILE_PATIENCE, Clip, read_ahead
from jaxasr.transcripts import Failure

LIMIT = 30.0  # s; what must not wait for somebody waits a hundredth of it on an idle machine


def clip(number: int) -> np.ndarray:
    """160 samples that tell clips apart."""
    return np.full(160, number / 1000, np.float32)


def numbers(group: list[Clip | Failure]) -> list[int | None]:
    return [round(1000 * float(item.samples[0])) if isinstance(item, Clip) else None for item in group]


def start(sources: Any, **options: Any) -> Any:
    return read_ahead(sources, None, **{"group_samples": 16000.0, **options})


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("jaxasr-source", "jaxasr-read")]


@pytest.fixture(autouse=True)
def no_threads_stay() -> Iterator[None]:
    yield
    wait_until(lambda: not live_threads())


class Never:
    """A source that gives some inputs, and then nothing until the test ends."""

    def __init__(self, *first: Any) -> None:
        self.first = first
        self.over = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        yield from self.first
        self.over.wait(LIMIT)


@pytest.fixture
def never() -> Iterator[Callable[..., Never]]:
    made: list[Never] = []

    def make(*first: Any) -> Never:
        made.append(Never(*first))
        return made[-1]

    yield make
    for each in made:
        each.over.set()


@pytest.mark.parametrize("ahead", [None, 0, 1, 7])
def test_every_input_has_its_place_whatever_it_is(ahead: int | None) -> None:
    strange = [None, 3, object(), [], {}, float("nan"), ..., b"", "", "no such file", [clip(1)], b"RIFF", int]
    sources = [each for number, one in enumerate(strange) for each in (clip(number), one)]
    items = [item for group in start(iter(sources), most=ahead, group_samples=1000) for item in group]
    assert numbers(items) == [each for number in range(len(strange)) for each in (number, None)]
    for item in items[1::2]:
        assert isinstance(item.error, AudioError) and "\n" not in str(item.error)
    assert items[3].error is not None and "sample_rate" in str(items[3].error)


def test_a_list_gives_full_groups() -> None:
    groups = list(start([clip(number) for number in range(250)]))
    assert [len(group) for group in groups] == [100, 100, 50]
    assert numbers([item for group in groups for item in group]) == list(range(250))


def test_a_quick_generator_gives_full_groups() -> None:
    groups = list(start(clip(number) for number in range(250)))
    assert sum(len(group) for group in groups) == 250
    assert max(len(group) for group in groups) == 100


def test_short_recordings_and_failures_count_for_the_smallest() -> None:
    sources = ["no such file" if number % 2 else clip(1) for number in range(100)]
    assert [len(group) for group in start(sources, smallest=1600)] == [10] * 10


def test_a_source_that_waits_for_each_answer(never: Callable[..., Never]) -> None:
    answers: queue.Queue[int] = queue.Queue()

    def conversation() -> Iterator[np.ndarray]:
        yield clip(0)
        for turn in range(1, 4):
            assert answers.get(timeout=LIMIT) == turn - 1
            yield clip(turn)

    groups = start(conversation())
    for turn in range(4):
        assert numbers(next(groups)) == [turn]
        answers.put(turn)
    assert list(groups) == []


def test_what_came_meanwhile_goes_together() -> None:
    """While the caller is busy with a group, the next one grows, and is there at once."""
    filled: queue.Queue[np.ndarray | None] = queue.Queue()
    filled.put(clip(0))

    def source() -> Iterator[np.ndarray]:
        while (given := filled.get(timeout=LIMIT)) is not None:
            yield given

    groups = start(source())
    assert numbers(next(groups)) == [0]
    for number in range(1, 21):
        filled.put(clip(number))
    wait_until(filled.empty)
    grown = numbers(next(groups))
    assert len(grown) > 1
    filled.put(None)
    assert grown + [number for group in groups for number in numbers(group)] == list(range(1, 21))


def test_a_file_that_is_still_written_holds_nothing_back(never: Callable[..., Never]) -> None:
    class Slow:
        def __init__(self) -> None:
            self.written = threading.Event()

        def read(self) -> bytes:
            self.written.wait(LIMIT)
            return b""

    slow = Slow()
    groups = start([clip(0), slow, clip(2)])
    began = time.monotonic()
    assert numbers(next(groups)) == [0]
    assert FILE_PATIENCE <= time.monotonic() - began < LIMIT / 2
    slow.written.set()
    assert [number for group in groups for number in numbers(group)] == [None, 2]


def test_nothing_is_taken_before_its_turn() -> None:
    taken: list[int] = []
    threads = set()

    def source() -> Iterator[np.ndarray]:
        for number in range(20):
            taken.append(number)
            threads.add(threading.current_thread())
            yield clip(number)

    for number, group in enumerate(start(source(), most=0)):
        assert numbers(group) == [number] and taken == list(range(number + 1))
    assert threads == {threading.current_thread()}
    taken.clear()
    out = 0
    for group in start(source(), most=3):
        assert len(taken) <= out + 4
        time.sleep(0.01)
        assert len(taken) <= out + 4 and len(group) <= 4
        out += len(group)
    assert out == 20


def test_taking_is_bounded() -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield clip(1)

    groups = start(endless())
    for number in range(1, 4):
        next(groups)
        time.sleep(0.05)
        assert taken <= 100 * number + 105
    groups.close()


def test_closing_waits_for_nobody(never: Callable[..., Never]) -> None:
    for first in ((), (clip(0),), (clip(0), clip(1))):
        groups = start(never(*first))
        began = time.monotonic()
        if first:
            assert next(groups)
        groups.close()
        assert time.monotonic() - began < LIMIT / 2
    dropped = start(never(clip(0)))
    assert next(dropped)
    began = time.monotonic()
    del dropped
    with pytest.raises(InterruptedError):
        for _ in start(never(clip(0))):
            raise InterruptedError
    assert time.monotonic() - began < LIMIT / 2


def test_a_bad_input_is_known_at_once(never: Callable[..., Never]) -> None:
    for stop in (True, False):
        groups = start(never("no such file"), stop_at_failure=stop)
        assert numbers(next(groups)) == [None]
        groups.close()
    groups = start([clip(0), None, clip(2), None], stop_at_failure=True)
    assert [numbers(group) for group in groups] == [[0, None], [2, None]]


@pytest.mark.parametrize("error", [ValueError("the queue broke"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_source_raises_comes_after_what_it_gave(error: BaseException) -> None:
    def source() -> Iterator[np.ndarray]:
        yield clip(0)
        yield clip(1)
        raise error

    for ahead in (None, 0):
        items = []
        with pytest.raises(type(error)) as raised:
            for group in start(source(), most=ahead):
                items += group
        assert raised.value is error and numbers(items) == [0, 1]
    with pytest.raises(TypeError):
        next(start(5))


def test_an_unexpected_error_of_one_input_is_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxasr import audio

    load = audio.load_pieces

    def broken(source: Any, *arguments: Any) -> Iterator[list[np.ndarray]]:
        if isinstance(source, str):
            raise IndexError("list index\nout of range")
        yield from load(source, *arguments)

    monkeypatch.setattr(audio, "load_pieces", broken)
    ((first, bad, last),) = start([clip(0), "b.flv", clip(1)])
    assert numbers([first, last]) == [0, 1]
    assert bad.audio == "b.flv" and str(bad.error).startswith("b.flv: ") and "\n" not in str(bad.error)
    assert isinstance(bad.error.__cause__, IndexError)


def test_a_row_of_datasets_keeps_the_name_of_its_file() -> None:
    row = {"array": np.full(10, np.nan), "sampling_rate": 16000, "path": "talk.wav"}
    good = {"array": clip(1), "sampling_rate": 16000, "path": "good.wav"}
    ((first, second),) = start([good, row])
    assert (first.name, second.audio) == ("good.wav", "talk.wav")
    assert str(second.error).startswith("talk.wav: ") and "NaN" in str(second.error)
