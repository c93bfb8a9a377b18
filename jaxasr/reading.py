"""Recordings are read and decoded ahead of their use, in threads, while the device works on those before."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, cast

import numpy as np

from jaxasr import audio
from jaxasr.audio import AudioSource
from jaxasr.errors import AudioError, JaxasrError
from jaxasr.transcripts import Failure

READERS = 2  # threads
_END: Final = object()  # of the sources, among which None is an error of its own


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording as it was read: its name ("" for an array) and its samples (S,) float32 at 16 kHz."""

    name: str
    samples: np.ndarray


def read_ahead(
    sources: Iterable[AudioSource], sample_rate: float | None, group_samples: float
) -> Iterator[list[Clip | Failure]]:
    """The sources in groups of about `group_samples`, in their order; the next group is read while one is used.

    `sample_rate` (Hz): of arrays. What cannot be read takes its place as a Failure.
    """
    inputs = iter(sources)
    pending: collections.deque[Future[Clip | Failure]] = collections.deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="jaxasr-read") as readers:

        def collect() -> list[Clip | Failure]:
            group: list[Clip | Failure] = []
            size = 0
            while size < group_samples:
                while len(pending) < 2 * READERS and (source := next(inputs, _END)) is not _END:
                    pending.append(readers.submit(_read, cast(AudioSource, source), sample_rate))
                if not pending:
                    break
                item = pending.popleft().result()
                group.append(item)
                size += len(item.samples) if isinstance(item, Clip) else 0
            return group

        with ThreadPoolExecutor(1, thread_name_prefix="jaxasr-group") as collector:
            upcoming = collector.submit(collect)
            try:
                while group := upcoming.result():
                    upcoming = collector.submit(collect)
                    yield group
            finally:
                for future in list(pending):  # which `collect` may still change
                    future.cancel()


def _read(source: AudioSource, sample_rate: float | None) -> Clip | Failure:
    name = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else ""
    try:
        return Clip(name, audio.load(source, sample_rate))
    except JaxasrError as error:
        return Failure(name, error)
    except MemoryError:
        return Failure(name, AudioError(f"{name or 'array'}: too long for this machine's memory: cut it up first"))
