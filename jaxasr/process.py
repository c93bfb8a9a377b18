"""What a program of one's own may change in its process; a library that is a guest in it changes nothing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from jaxasr.caches import compilation_options


@functools.cache
def configure_process() -> None:
    """Settings of the whole process that make it faster and quieter; call it before the first computation.

    The command line, `bench` and the notebooks call it. A process that others own, such as a server's, need not.

    - JAX keeps every compiled program between processes, also those that are not jaxasr's.
    - On a CPU, glibc keeps freed memory: XLA allocates anew on every call, and page faults cost up to a third of it.
      The process then holds the largest amount of memory that it ever needed.
    - While an MP3 is decoded, file descriptor 2 (standard error) is redirected, and the decoder's own remarks are left
      out of it: libmpg123, inside libsndfile, prints on every oddity of a file and has no switch.
    """
    import jax

    for name, value in compilation_options().items():
        jax.config.update(name, value)
    if jax.default_backend() == "cpu":
        _keep_freed_memory()
    mpg123_silence.enable()


def return_freed_memory() -> None:
    """Give freed memory back to the system, where glibc would keep it: after the one use of something large."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _keep_freed_memory() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
    mallopt(-8, 1)  # M_ARENA_MAX: one heap for all of XLA's threads


class _Mpg123Silence:
    """Keeps what libmpg123 prints from file descriptor 2, once a process has enabled it.

    What other threads write meanwhile is held back until the last reader leaves. Readers enter it for each block that
    they decode, so that this takes milliseconds.
    """

    _LINE = re.compile(rb"Note: |Warning: |\[src/libmpg123/")

    def __init__(self) -> None:
        self.enabled = False
        self._lock = threading.Lock()
        self._readers = 0
        self._terminal: int | None = None
        self._captured: IO[bytes] | None = None

    def enable(self) -> None:
        """From now on `reading` redirects the descriptor."""
        self.enabled = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around calls of the decoder."""
        if not self.enabled:
            yield
            return
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            self._readers += 1
            if self._readers > 1:
                return
            with contextlib.suppress(OSError):  # no descriptor 2, or nowhere to write: nothing to keep silent
                self._captured = tempfile.TemporaryFile()
                self._terminal = os.dup(2)
                os.dup2(self._captured.fileno(), 2)

    def _leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers or self._captured is None:
                return
            if self._terminal is not None:
                os.dup2(self._terminal, 2)
                os.close(self._terminal)
                self._captured.seek(0)
                others = b"".join(line for line in self._captured if not self._LINE.match(line))
                with contextlib.suppress(OSError):
                    os.write(2, others)
            self._captured.close()
            self._captured = self._terminal = None


mpg123_silence = _Mpg123Silence()
