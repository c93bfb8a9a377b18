"""Safetensors files, one or several with their index: tensors as windows of the mapped file, which are read when used.

The package safetensors checks what a header claims: ranges without holes or overlaps that fill the file, sizes that
fit shapes and types. Two things are checked here before it. It takes a header of up to 100 MB, and of two tensors of
one name it takes one.
"""

from __future__ import annotations

import math
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxasr.convert.formats.json_objects import parse_object, read_object
from jaxasr.convert.formats.mapped import map_whole, regular_file
from jaxasr.errors import CheckpointError, listing, printable
from jaxasr.files import reason

HEADER_LIMIT = 1 << 23  # bytes; 24 layers of a Conformer need 100 kB
RANK_LIMIT = 16
TYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

_PLAIN = re.compile(r"[^/\\:\0]+\.safetensors")
_SHOWN = 80  # characters of a foreign name


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file by name, in the order of the file.

    CheckpointError, one line, for a file that cannot be read, is damaged, lies about itself or has a type unknown here.
    """
    from safetensors import SafetensorError, safe_open

    with regular_file(path) as file:
        start = _check_header(path, file)
        try:
            with safe_open(path, framework="numpy") as opened:
                described = [(name, opened.get_slice(name)) for name in opened.offset_keys()]
                table = [(name, part.get_dtype(), part.get_shape()) for name, part in described]
        except (SafetensorError, OSError) as error:
            what = printable(reason(error).removeprefix("Error while deserializing header: "), 120)
            raise CheckpointError(
                f"{path}: its header does not fit it ({what}): fetch or copy the file again"
            ) from None
        mapped = map_whole(file)
    tensors: dict[str, np.ndarray] = {}
    for name, kind, shape in table:
        if kind not in TYPES:
            raise CheckpointError(f"{path}: {_named(name)} has the type {kind}; known are {', '.join(TYPES)}")
        if len(shape) > RANK_LIMIT:
            raise CheckpointError(f"{path}: {_named(name)} has {len(shape)} axes: refused")
        # Without holes, each tensor begins where the one before it ends.
        size = math.prod(shape) * TYPES[kind].itemsize
        tensors[name] = np.ndarray(shape, TYPES[kind], mapped, start) if size else np.empty(shape, TYPES[kind])
        start += size
    return tensors


def read_sharded(index: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """The tensors of all files that an index (NAME.safetensors.index.json) names, and these files.

    A shard is a plain file beside the index, or a link to where the index itself is linked from, as in a hub's cache.
    CheckpointError where one lies elsewhere or is missing, and where the index and the shards contradict each other.
    """
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensors to files: fetch or copy it again")
    files = [_shard(index, name) for name in sorted(set(places.values()))]
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        inside = read_safetensors(file)
        strange = [name for name in inside if places.get(name) != file.name]
        if strange:
            raise CheckpointError(
                f"{file}: holds {listing(strange, 3)}, which {index.name} places elsewhere or nowhere"
            )
        tensors |= inside
    missing = [name for name in places if name not in tensors]
    if missing:
        raise CheckpointError(f"{index}: places {listing(missing, 3)} in files that do not hold them")
    return tensors, files


def _check_header(path: Path, file: BinaryIO) -> int:
    """Refuse a header that is too long or names a tensor twice; the byte where the tensors begin."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= size - 8:
        raise CheckpointError(f"{path}: is no safetensors file, or a part of one: fetch or copy it again")
    if length > HEADER_LIMIT:
        raise CheckpointError(f"{path}: a header of {length:,} bytes, more than {HEADER_LIMIT:,}: refused")
    parse_object(file.read(length), f"{path}: its header")
    return 8 + length


def _shard(index: Path, name: str) -> Path:
    """The file of a shard's name; refused where it is no file beside the index."""
    file = index.parent / name
    if not _PLAIN.fullmatch(name):
        raise CheckpointError(f"{index}: places tensors in {printable(name, _SHOWN)!r}, no file beside it: refused")
    try:
        real, folders = file.resolve(strict=True), {index.parent.resolve(), index.resolve().parent}
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{index}: needs {printable(name, _SHOWN)!r} beside it ({reason(error)})") from None
    if real.parent not in folders:
        raise CheckpointError(f"{file}: is a link out of its folder: refused; copy the file there")
    return file


def _named(name: Any) -> str:
    return f"tensor {printable(str(name), _SHOWN)!r}"
