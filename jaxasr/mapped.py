"""A model's arrays in one file of the cache folder, mapped into memory: what a warm start reads instead of Orbax.

Orbax restores a thousand arrays in seconds, most of them Python's. The system maps one file at once, its pages are
shared by all processes that use the model, and JAX on a CPU takes the arrays where they lie.

A file is never trusted: the hash of every array is compared with the model's manifest each time, and a file that does
not fit is made anew. Its name depends on the manifest and on size and time of every file that the arrays came from, so
that what happens to those is noticed as if there were no such file. `described`: the manifest's "arrays", which gives
shape, dtype and sha256 of each path. The arrays stand in its order, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy knows bfloat16 by its name once this is imported
import numpy as np

from jaxasr.caches import cache_folder, make_room
from jaxasr.files import replacing_file

LIMIT = 4 * 2**30  # bytes of all files together
_ALIGNMENT = 64  # of memory that JAX on a CPU takes without a copy


def entry(described: Mapping[str, Any], source: Path) -> Path:
    """Where the arrays of the folder `source` are kept. Raises OSError where a file of it cannot be looked at."""
    hashed = hashlib.sha256(json.dumps(described).encode())
    for file in sorted(source.rglob("*")):
        status = file.stat()
        # Images of containers keep whole seconds.
        hashed.update(f"{file.relative_to(source).as_posix()} {status.st_size} {int(status.st_mtime)}\n".encode())
    return cache_folder() / "arrays" / hashed.hexdigest()


def read(kept: Path, described: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays in the file `kept`, read-only, by path; None where there is none or it is damaged."""
    try:
        arrays = _map(kept, described)
    except (OSError, ValueError):
        return None
    if differing(arrays, described):
        return None
    with contextlib.suppress(OSError):
        os.utime(kept)  # when it was last used
        make_room(kept.parent, 0, LIMIT)
    return arrays


def keep(kept: Path, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Write the file `kept`, whole or not at all, and give its arrays as `read` does; None where it cannot be written.

    Nothing is kept that would fill half of what is free on the disk.
    """
    size = _size(described)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if size > min(LIMIT, shutil.disk_usage(kept.parent).free // 2):
            return None
        make_room(kept.parent, size, LIMIT)
        with replacing_file(kept) as file:
            for path, _, _, offset in _places(described):
                file.seek(offset)
                file.write(_bytes(arrays[path]))
            file.truncate(size)
            if os.name == "posix":
                # A process that has a file mapped is killed where another one makes it shorter. Windows refuses that,
                # and would not remove a file that is read-only.
                os.fchmod(file.fileno(), 0o444)
        return _map(kept, described)
    except (OSError, ValueError):
        return None


def pack(described: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, taken out of `arrays` one by one, in memory laid out as a file would be."""
    packed = _views(mmap.mmap(-1, _size(described)), described)
    for path, array in packed.items():
        array[...] = arrays.pop(path)
        array.flags.writeable = False
    return packed


def differing(arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> list[str]:
    """The paths of arrays whose hash is not the described one."""
    return sorted(path for path, digest in hashes(arrays).items() if digest != described[path]["sha256"])


def hashes(arrays: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each array's bytes, row by row, in hex digits."""
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda array: hashlib.sha256(_bytes(np.asarray(array))).hexdigest(), arrays.values())
        return dict(zip(arrays, digests, strict=True))


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _map(kept: Path, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays in a file. Raises OSError, and ValueError for a file of another length."""
    with open(kept, "rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(buffer) != _size(described):
        raise ValueError(f"{kept} has {len(buffer)} bytes")
    return _views(buffer, described)


def _views(buffer: mmap.mmap, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {path: np.ndarray(shape, dtype, buffer, offset) for path, shape, dtype, offset in _places(described)}


def _places(described: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any], int]]:
    """Path, shape, type and first byte of each array."""
    offset = 0
    for path, array in described.items():
        yield path, tuple(array["shape"]), np.dtype(array["dtype"]), offset
        offset += _padded(array)


def _size(described: Mapping[str, Any]) -> int:
    """Bytes of the whole; never 0, since nothing can be mapped then."""
    return max(sum(map(_padded, described.values())), _ALIGNMENT)


def _padded(array: Mapping[str, Any]) -> int:
    size: int = math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
