"""Stretches of files, at the files' own rates, as the rows of a corpus name them; and how long files are."""

from __future__ import annotations

import collections
import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from jaxasr.audio import opened
from jaxasr.audio.mono import Mixer, check_rate, mixed, native
from jaxasr.audio.recording import Recording
from jaxasr.caches import cache_folder

_Key: TypeAlias = tuple[str, int, int]  # a file's path, size (bytes) and time of the last change (ns)

_KEPT_BYTES = 256 << 20  # of decoded files, in memory


@dataclass(frozen=True)
class Length:
    """How long a file is: `samples` at `rate` (Hz), and the seconds of them that are `lost`, damaged or missing."""

    samples: int
    rate: int
    lost: float = 0.0


@dataclass(frozen=True)
class Stretch:
    """Sound at its file's rate: `samples` (n,) float32 mono, `rate` (Hz).

    `lost`: seconds of the file's sound that could not be decoded. `remarks`: lines about it for the user.
    """

    samples: np.ndarray
    rate: int
    lost: float = 0.0
    remarks: tuple[str, ...] = ()


def length(path: str | os.PathLike[str]) -> Length:
    """How long a file is. Raises AudioError.

    The header is believed where the file's size bears it out: of WAV, FLAC and others. Every other file is decoded
    once; its length is then kept in the cache folder, by path, size and time of the last change.
    """
    key = _key(path)
    if key is not None and key in _lengths:
        return _lengths[key]
    with opened(path) as recording:
        check_rate(recording.rate, recording.name)
        if recording.exact and recording.frames is not None:
            found: Length | None = Length(recording.frames, recording.rate)
        else:
            found = _stored_length(key)
        if found is None:
            samples = sum(map(len, recording.blocks()))
            found = Length(samples, recording.rate, recording.lost)
            _store_length(key, found)
    if key is not None:
        _lengths[key] = found
    return found


def read(path: str | os.PathLike[str], start: int = 0, count: int | None = None) -> Stretch:
    """`count` samples of a file from sample `start` on (None: to the end), fewer where it ends before. AudioError.

    Files whose decoding can begin anywhere are read from `start`. Of the others the whole sound is kept in memory for
    a while, so that the rows of one file do not decode it once each.
    """
    whole = _decoded.kept(path)
    if whole is None:
        with opened(path) as recording:
            check_rate(recording.rate, recording.name)
            if recording.exact or (start == 0 and count is None):
                return _stretch(recording, start, count)
        whole = _decoded.get(path)
    end = None if count is None else start + count
    return Stretch(whole.samples[start:end].copy(), whole.rate, whole.lost, whole.remarks)


def _stretch(recording: Recording, start: int, count: int | None) -> Stretch:
    samples, mixer = mixed(
        lambda mixer: _gathered(recording, start, count, mixer), recording.name, floating=recording.floating
    )
    remarks = (*recording.remarks, *mixer.remarks(recording.rate))
    return Stretch(samples, recording.rate, recording.lost, remarks)


def _gathered(recording: Recording, start: int, count: int | None, mixer: Mixer) -> np.ndarray:
    gathered = bytearray()  # grows in place: a list of blocks would need twice the memory when joined
    room = count
    with contextlib.closing(native(recording.blocks(start), mixer)) as blocks:
        for block in blocks:
            gathered += block[:room].tobytes()
            if room is not None:
                room -= min(len(block), room)
                if room == 0:
                    break
    return np.frombuffer(gathered, np.float32)


class _Decoded:
    """Whole files as they were decoded, the latest ones, up to _KEPT_BYTES."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: collections.OrderedDict[_Key, Stretch] = collections.OrderedDict()

    def kept(self, path: str | os.PathLike[str]) -> Stretch | None:
        """The whole sound of a file, if it is here."""
        key = _key(path)
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def get(self, path: str | os.PathLike[str]) -> Stretch:
        """The whole sound of a file. Raises AudioError."""
        with self._lock:  # held while decoding: whoever waits most likely wants the same file
            if (kept := self.kept(path)) is not None:
                return kept
            key = _key(path)
            with opened(path) as recording:
                whole = _stretch(recording, 0, None)
            if key is not None and whole.samples.nbytes <= _KEPT_BYTES:
                self._kept[key] = whole
                while sum(stretch.samples.nbytes for stretch in self._kept.values()) > _KEPT_BYTES:
                    self._kept.popitem(last=False)
            return whole


def _stored_length(key: _Key | None) -> Length | None:
    """The length of a file that was decoded before and is as it was then."""
    if key is not None:
        with contextlib.suppress(sqlite3.Error, OSError, UnicodeEncodeError), _lengths_table() as table:
            for row in table.execute(
                "select samples, rate, lost from lengths where (path, size, time) = (?, ?, ?)", key
            ):
                return Length(*row)
    return None


def _store_length(key: _Key | None, found: Length) -> None:
    """Keep a length on disk, where there is room: it can be made again."""
    if key is not None:
        with contextlib.suppress(sqlite3.Error, OSError, UnicodeEncodeError), _lengths_table() as table, table:
            row = (*key, found.samples, found.rate, found.lost)
            table.execute("insert or replace into lengths values (?, ?, ?, ?, ?, ?)", row)


@contextlib.contextmanager
def _lengths_table() -> Iterator[sqlite3.Connection]:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "lengths.sqlite", timeout=5)) as table:
        table.execute(
            "create table if not exists lengths "
            "(path text primary key, size integer, time integer, samples integer, rate integer, lost real)"
        )
        yield table


def _key(path: str | os.PathLike[str]) -> _Key | None:
    """None where there is no such file."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return os.path.abspath(os.fspath(path)), facts.st_size, facts.st_mtime_ns


_decoded = _Decoded()
_lengths: dict[_Key, Length] = {}  # of this process
