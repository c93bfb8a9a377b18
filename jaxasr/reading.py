"""Recordings are read and decoded ahead of their use, in threads, while the device works on those before.

Nobody ever waits for the source of recordings: it may be a queue that somebody fills tomorrow. It is asked in a thread
of its own, which ends with the process, and what has come is handed on as soon as the source lets us wait.
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import os
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Final

import numpy as np

from jaxasr import audio, inputs
from jaxasr.audio import Channels
from jaxasr.devices import usual_settings
from jaxasr.errors import AudioError, JaxasrError, ModelError
from jaxasr.files import reason
from jaxasr.inputs import AudioInput
from jaxasr.transcripts import Failure

READERS = 2  # threads
UNREAD = 2 * READERS  # inputs that are taken from the source and not yet decoded
# A group that is not full goes on its way when its next input has not come from the source for so many seconds, or has
# come and is not read after so many, as a file that somebody is still writing.
SOURCE_PATIENCE, FILE_PATIENCE = 0.05, 1.0
EXIT_PATIENCE = 1.0  # s that a process waits at its end for the blocks of files that are being decoded
LONG: Final = 1 << 62  # samples; longer than any recording
_END: Final = object()  # of the source, in which None is an input like others


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording as it was read: its name ("" for an array) and its samples (S,) float32 at 16 kHz.

    `channel`: the number of the one channel that it is, from 1 on; None for the mean of all.
    """

    name: str
    samples: np.ndarray
    channel: int | None = None


@dataclasses.dataclass(frozen=True)
class LongClip:
    """A recording of which only the beginning is read yet: the last one of its group.

    `channels`: which of it are heard, one after another, as Clip has it. `pieces`: the samples (S,) of each of them,
    the next ones whenever they are asked for. Raises AudioError, once, where the recording cannot be read to its end.
    """

    name: str
    channels: tuple[int | None, ...]
    pieces: Iterator[list[np.ndarray]]


Item = Clip | LongClip | Failure


def read_ahead(
    sources: Iterable[AudioInput],
    sample_rate: float | None,
    *,
    group_samples: float,
    smallest: int = 1,
    most: int | None = None,
    stop_at_failure: bool = False,
    channels: Channels = "mix",
    piece_samples: int = LONG,
) -> Generator[list[Item], None, None]:
    """The sources in groups, in their order; the next group is read while one is used.

    A group is never empty. What cannot be read takes its place as a Failure. What the source raises is raised after
    the groups of all that it gave before.

    `sample_rate` (Hz): of arrays.
    `group_samples`: of a full group. A source that lets us wait gives smaller ones, but a list does not.
    `smallest`: samples that a shorter recording counts for.
    `most`: inputs that are taken beyond the first whose group is not yet done with; with 0 nothing is read ahead, and
        the source is asked in the caller's thread.
    `stop_at_failure`: a Failure is the last of its group.
    `channels`: which of each recording are heard; with "each" a recording gives a Clip for every one.
    `piece_samples`: a recording from so many samples on is a LongClip, in pieces of so many.
    """
    if most == 0 or (isinstance(sources, (list, tuple)) and len(sources) == 1):
        for source in sources:
            yield _read(source, sample_rate, channels, piece_samples)
        return
    intake = _Intake(sources, sample_rate, channels, group_samples, smallest, most, piece_samples)
    try:
        while group := intake.take(stop_at_failure):
            yield group
    finally:
        intake.close()


class _Slot:
    """The place of an input in the order: `item` is None until it is read, and an error where the source raised one."""

    def __init__(self, source: AudioInput | None, item: list[Item] | BaseException | None = None) -> None:
        self.source = source
        self.item = item


class _Intake:
    """What the threads share: one asks the source, some decode, and the caller takes groups; `_changed` guards all."""

    def __init__(
        self,
        sources: Iterable[AudioInput],
        sample_rate: float | None,
        channels: Channels,
        group_samples: float,
        smallest: int,
        most: int | None,
        piece_samples: int,
    ) -> None:
        self._channels, self._piece_samples = channels, piece_samples
        self._sample_rate, self._group_samples, self._smallest, self._most = sample_rate, group_samples, smallest, most
        self._patient = isinstance(sources, (list, tuple))  # it never lets us wait
        self._changed = threading.Condition()
        self._slots: collections.deque[_Slot] = collections.deque()  # taken, and in no group yet
        self._unread: collections.deque[_Slot] = collections.deque()  # those of them that no thread decodes yet
        self._reading = 0  # those of them that are not decoded
        self._size = 0  # samples of those that are
        self._outstanding = 0  # inputs taken, without those of groups that are done with
        self._in_use = 0  # inputs of the group that the caller works on
        self._asked: float | None = None  # since when the source is asked for an input, in seconds
        self._ended = self._closed = False
        self._process = os.getpid()
        # Daemons: the source may never answer. `_close_all` waits for those that decode, which would otherwise be
        # stopped inside the libraries of C that they call.
        self.readers = [threading.Thread(target=self._decode, name="jaxasr-read", daemon=True) for _ in range(READERS)]
        _open.add(self)
        for thread in self.readers:
            thread.start()
        threading.Thread(target=self._ask, args=(sources,), name="jaxasr-source", daemon=True).start()

    def take(self, stop_at_failure: bool) -> list[Item]:
        """The next group, after the caller is done with the one before; empty at the end."""
        self._check_process()
        group: list[Item] = []
        size, heard = 0, False
        with self._changed:
            self._outstanding -= self._in_use
            self._in_use = 0
            self._changed.notify_all()
            while size < self._group_samples and self._wait_for_next(bool(group), heard):
                item = self._slots[0].item
                if isinstance(item, BaseException):
                    if not group:
                        raise item
                    break
                assert item is not None
                self._slots.popleft()
                self._size -= self._count(item)
                size += self._count(item)
                heard = heard or not isinstance(item[0], Failure)
                group += item
                self._in_use += 1
                self._changed.notify_all()
                if isinstance(item[0], LongClip) or (stop_at_failure and isinstance(item[0], Failure)):
                    break
        return group

    def close(self) -> None:
        """Let the threads end, without waiting for them; the source is asked nothing more."""
        if self._closed or os.getpid() != self._process:  # in a child the lock may be held by a thread of its parent
            return
        with self._changed:
            self._closed = True
            self._slots.clear()
            self._unread.clear()
            self._changed.notify_all()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ModelError("transcripts that were begun before a fork go on in the parent only: begin anew here")

    def _wait_for_next(self, begun: bool, heard: bool) -> bool:
        """Wait until the next input is read; False where there is none, or none soon enough for a group `begun`.

        A group in which nothing is `heard` waits for nothing.
        """
        began = time.monotonic()
        while not self._closed:
            deadline: float | None = None
            if self._slots:
                if self._slots[0].item is not None:
                    return True
                deadline = began + FILE_PATIENCE
            elif self._ended or (begun and not self._has_room()):
                return False
            elif self._asked is not None and not self._patient:
                deadline = self._asked + SOURCE_PATIENCE
            if not begun:
                self._changed.wait()
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if not heard or (left is not None and left <= 0):
                return False
            self._changed.wait(left)
        return False

    def _count(self, item: list[Item]) -> int:
        return sum(max(self._samples(clip), self._smallest) for clip in item)

    def _samples(self, clip: Item) -> int:
        match clip:
            case Clip(samples=samples):
                return len(samples)
            case LongClip():
                return self._piece_samples
        return 0

    def _has_room(self) -> bool:
        return (
            self._reading < UNREAD
            and self._size < self._group_samples
            and (self._most is None or self._outstanding <= self._most)
        )

    def _ask(self, sources: Iterable[AudioInput]) -> None:
        """Take inputs from the source while there is room, in a thread."""
        last: list[_Slot] = []
        try:
            given = iter(sources)
            del sources
            while self._wait_for_room():
                source = next(given, _END)
                if source is _END:
                    break
                with self._changed:
                    self._asked = None
                    if self._closed:
                        return
                    slot = _Slot(source)  # type: ignore[arg-type]  # which is not _END
                    self._slots.append(slot)
                    self._unread.append(slot)
                    self._reading += 1
                    self._outstanding += 1
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it belongs to who asks for transcripts
            last = [_Slot(None, error)]
        with self._changed:
            self._asked = None
            if not self._closed:
                self._slots.extend(last)
            self._ended = True
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until an input may be taken; False after `close`."""
        with self._changed:
            while not (self._closed or self._has_room()):
                self._changed.wait()
            self._asked = time.monotonic()
            self._changed.notify_all()
            return not self._closed

    def _decode(self) -> None:
        """Read inputs in the order in which they come, in a thread."""
        while True:
            with self._changed:
                while not (self._unread or self._ended or self._closed):
                    self._changed.wait()
                if not self._unread:
                    return
                slot = self._unread.popleft()
            item: list[Item] | BaseException
            try:
                source: AudioInput = slot.source  # type: ignore[assignment]  # an input, maybe None
                item = _read(source, self._sample_rate, self._channels, self._piece_samples)
            except BaseException as error:
                item = error
            with self._changed:
                slot.source, slot.item = None, item
                self._reading -= 1
                self._size += 0 if isinstance(item, BaseException) else self._count(item)
                self._changed.notify_all()
            del slot, item, source


_open: weakref.WeakSet[_Intake] = weakref.WeakSet()  # whose threads may still run


@atexit.register
def _close_all() -> None:
    """At the end of the process, let all threads end that do not wait for somebody else."""
    intakes = list(_open)
    if intakes:
        audio.ending.set()
    for intake in intakes:
        intake.close()
    end = time.monotonic() + EXIT_PATIENCE
    for thread in (thread for intake in intakes for thread in intake.readers):
        thread.join(max(end - time.monotonic(), 0.0))


def _read(value: AudioInput, sample_rate: float | None, channels: Channels, piece_samples: int) -> list[Item]:
    """What is heard of an input, a Clip for each of the channels that are asked for; or why nothing is."""
    name = ""
    try:
        with usual_settings():  # an array of JAX is brought here
            named = inputs.named_source(value, sample_rate)
        name = named.name
        pieces = audio.load_pieces(named.source, named.sample_rate, channels, piece_samples)
        heard = next(pieces)
        numbers = range(1, len(heard) + 1) if channels == "each" else [None if channels == "mix" else channels]
        if len(heard[0]) == piece_samples:
            return [LongClip(name, tuple(numbers), _further(value, name, heard, pieces))]
        next(pieces, None)  # the end, where what there is to remark is logged
        return [Clip(name, samples, number) for samples, number in zip(heard, numbers, strict=True)]
    except Exception as error:  # one input is no reason to lose the others
        return [Failure(name, _why(error, value, name))]


def _further(
    value: AudioInput, name: str, first: list[np.ndarray], pieces: Iterator[list[np.ndarray]]
) -> Iterator[list[np.ndarray]]:
    """The pieces of a LongClip, `first` the first one. Raises AudioError."""
    try:
        yield first
        del first
        yield from pieces
    except JaxasrError as error:
        raise _why(error, value, name) from None
    except Exception as error:
        raise _why(error, value, name) from error


def _why(error: BaseException, value: AudioInput, name: str) -> JaxasrError:
    """The error of one line for an input that cannot be read."""
    if isinstance(error, JaxasrError):
        if isinstance(value, Mapping) and name not in str(error):  # an array that came from a file
            return AudioError(f"{name}: {error}")
        return error
    if isinstance(error, MemoryError):
        return AudioError(f"{name or 'array'}: too long for this machine's memory: cut it up first")
    failure = AudioError(f"{name or 'audio'}: cannot be read (unexpected {type(error).__name__}: {reason(error)})")
    failure.__cause__ = error
    return failure
