"""Tensors that an ONNX model keeps in a file beside it, opened without being led astray.

What has gone wrong elsewhere: CVE-2022-25882 and -27318 (paths that climb), CVE-2026-34446 (hard links), -34447
(symbolic links); a check too strict broke ONNX Runtime 1.24.1 on hub caches, where every file is a symbolic link.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from jaxasr.convert.formats.mapped import open_without_waiting
from jaxasr.errors import CheckpointError
from jaxasr.files import refuse_pointer


def external_bytes(model: Path, tensor: str, entries: Mapping[str, str], expected: int) -> memoryview:
    """The `expected` bytes of `tensor`, mapped from where `entries` (location, offset, length) say.

    The file must lie below the model's directory, reached without any link, or be a blob of the same hub snapshot, to
    which huggingface_hub's cache links. Raises CheckpointError otherwise, and where offset and length lead out of it.
    """
    where = f"{model}: external data of '{tensor}'"
    file = _locate(model, entries.get("location", ""), where)
    refuse_pointer(file, CheckpointError)
    offset = _number(entries, "offset", 0, where)
    length = _number(entries, "length", expected, where)
    if length != expected:
        raise CheckpointError(f"{where} has {length} bytes, but its shape needs {expected}")
    try:
        before = os.lstat(file)
        with open(file, "rb", opener=open_without_waiting) as opened:
            status = os.fstat(opened.fileno())
            if (before.st_dev, before.st_ino) != (status.st_dev, status.st_ino) or not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{where} is not a regular file")
            if status.st_nlink > 1:
                raise CheckpointError(f"{where} is a file with several hard links; copy {file.name} first")
            if offset > status.st_size or length > status.st_size - offset:
                raise CheckpointError(f"{where} ends at {offset + length}, but {file.name} has {status.st_size} bytes")
            if length == 0:
                return memoryview(b"")
            start = offset - offset % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(opened.fileno(), offset - start + length, access=mmap.ACCESS_READ, offset=start)
            return memoryview(mapped)[offset - start :]
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{where} cannot be read from {file.name} ({reason})") from None


def _locate(model: Path, location: str, where: str) -> Path:
    """The real path of `location`; raises CheckpointError unless it is one that a model may name."""
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise CheckpointError(f"{where} has the location {location[:80]!r}, which is no plain path beside the model")
    try:
        folder = model.parent.resolve(strict=True)
        file = model.parent.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{where} needs {location[:80]!r} beside the model ({reason})") from None
    if file != folder.joinpath(*parts) and file.parent != _hub_blobs(model.parent):
        raise CheckpointError(f"{where} at {location[:80]!r} is a link, and none of a hub cache; copy the file there")
    return file


def _hub_blobs(folder: Path) -> Path | None:
    """The blob folder of huggingface_hub's cache (REPO/snapshots/REVISION/… beside REPO/blobs) that `folder` is in."""
    for revision in (folder.absolute(), *folder.absolute().parents):
        if revision.parent.name == "snapshots":
            blobs = revision.parent.parent.resolve() / "blobs"
            return None if blobs.is_symlink() else blobs
    return None


def _number(entries: Mapping[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise CheckpointError(f"{where} has the {key} {text[:40]!r}")
    return int(text)
