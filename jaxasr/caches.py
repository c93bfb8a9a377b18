"""Where jaxasr keeps what it can make again: converted models, downloads, arrays and compiled programs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMAT = 3  # of a model directory; part of the name of each that is kept here

FORGOTTEN_AFTER = 30 * 86400  # seconds for which a file was not used that `make_room` watches over

PROGRAMS_LIMIT = 2 * 2**30  # bytes of all compiled programs in our folder, besides the one that is being compiled

_DIRECTORY = "jax_compilation_cache_dir"
# Every program is worth keeping: by default JAX keeps only those that took over a second to compile.
_KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0, "jax_persistent_cache_min_entry_size_bytes": -1}

_lock = threading.Lock()
_inside = 0
_replaced: dict[str, tuple[Any, Any]] = {}  # option -> (the host's value, ours)


def cache_folder() -> Path:
    """$JAXASR_CACHE, else `jaxasr` in the platform's folder for users' caches; not created here."""
    named = os.environ.get("JAXASR_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "jaxasr"


def make_room(folder: Path, size: int, limit: int) -> None:
    """Remove files of a folder, those first that were not used for longest, until `size` more bytes fit into `limit`.

    A file was last used at its time of modification, and is removed in any case after FORGOTTEN_AFTER. Raises OSError.
    """
    files = [(file, file.stat()) for file in folder.iterdir()]
    total = size
    for file, status in sorted(files, key=lambda each: each[1].st_mtime, reverse=True):
        total += status.st_size
        if total > limit or status.st_mtime < time.time() - FORGOTTEN_AFTER:
            file.unlink(missing_ok=True)


def compilation_folder() -> str:
    """Where compiled programs are kept: the folder that the process has for them, or ours if it has none."""
    import jax

    return str(getattr(jax.config, _DIRECTORY) or cache_folder() / "programs")


def compilation_options() -> dict[str, Any]:
    """JAX's options by which all compiled programs are kept, in `compilation_folder`."""
    return {**_KEEP_ALL, _DIRECTORY: compilation_folder()}


def is_compiled(name: str) -> bool:
    """Whether a compiled program is kept whose function has this name; where nobody can tell, it is taken to be.

    JAX does not write down when it has read a program, so that one of our folder counts as used when it is looked for.
    """
    folder = compilation_folder()
    if "://" in folder:  # a bucket of a cloud
        return True
    files = list(Path(folder).glob(f"jit_{name}-*"))
    if _is_ours(folder):
        for file in files:
            with contextlib.suppress(OSError):
                os.utime(file)
    return bool(files)


def make_room_for_programs() -> None:
    """Remove compiled programs that were not used for long, from our folder alone: another one is its owner's.

    JAX's own limit (jax_compilation_cache_max_size) needs a lock and a file of its own at every reading, which a folder
    that may only be read, such as a container's, does not take: nothing would be found there any more.
    """
    folder = compilation_folder()
    if _is_ours(folder):
        with contextlib.suppress(OSError):
            make_room(Path(folder), 0, PROGRAMS_LIMIT)


def _is_ours(folder: str) -> bool:
    return folder == str(cache_folder() / "programs") != os.environ.get(_DIRECTORY.upper())


@contextlib.contextmanager
def programs_kept() -> Iterator[None]:
    """Keep the programs that are compiled inside, and take from the cache those that an earlier process kept.

    JAX has one such cache in a process, so its options change while any thread is inside, and are put back when the
    last one leaves: programs that the host compiles in the meantime may be kept too. An option that the host has set
    in the meantime stays as the host set it.
    """
    global _inside
    import jax

    with _lock:
        if _inside == 0:
            for name, value in compilation_options().items():
                _replaced[name] = (getattr(jax.config, name), value)
                jax.config.update(name, value)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _put_back()


def _put_back() -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    for name, (before, ours) in _replaced.items():
        if getattr(jax.config, name) == ours:
            jax.config.update(name, before)
    lent = not _replaced[_DIRECTORY][0]
    _replaced.clear()
    if lent:
        # JAX opens a cache once in a process, and would go on with ours whatever the host chooses later.
        compilation_cache.reset_cache()
