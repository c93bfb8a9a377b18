"""Regular files mapped into memory, opened without waiting, their pages given back when they have been used."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from jaxasr.errors import CheckpointError
from jaxasr.files import refuse_pointer


@contextlib.contextmanager
def regular_file(path: Path) -> Iterator[BinaryIO]:
    """The regular file `path`, open for reading; a named pipe is refused at once instead of waited for.

    CheckpointError for what is none (a folder, a pipe, a device), for a git-lfs pointer, and for what cannot be read.
    """
    refuse_pointer(path, CheckpointError)
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(f"{path}: is not a regular file: name the checkpoint itself")
            yield file
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is not a regular file: name the checkpoint itself") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


class Readable(Protocol):
    """An open file, or a part of one, as far as readers of formats use it."""

    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes: ...


class Part:
    """`size` bytes of an open file from byte `start` on, as if they were a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def seek(self, offset: int, /) -> int:
        """Go to a byte of the part."""
        self._position = offset
        return offset

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes from here on, none after the end."""
        self._file.seek(self._start + self._position)
        data = self._file.read(max(0, min(size, self._size - self._position)))
        self._position += len(data)
        return data


def map_whole(file: BinaryIO) -> mmap.mmap:
    """The bytes of an open file, which must not be empty, read-only; its pages are read when they are used."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def open_without_waiting(name: str, flags: int) -> int:
    """An opener for `open`: a named pipe would wait for its writer for ever."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def release(array: np.ndarray) -> None:
    """Let the system take back the pages of the file that `array` is a window of; they are read again when used."""
    base: Any = array.base
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
