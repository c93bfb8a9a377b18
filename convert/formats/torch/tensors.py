"""Tensors of a PyTorch checkpoint as windows of the mapped file, inside its bounds whatever the file claims."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from jaxasr.convert.formats.torch.archives import Member, damaged, refused, shown
from jaxasr.errors import CheckpointError

STORAGE_TYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
RANK_LIMIT = 16
EMPTY_LIMIT = 1 << 31  # product of the other sizes of a tensor without elements


@dataclasses.dataclass(frozen=True)
class Storage:
    """The flat array that one or more tensors are windows of."""

    dtype: np.dtype
    length: int  # elements
    start: int  # byte of the file


def locate_storage(kind: str, key: str, length: int, members: dict[str, Member]) -> Storage:
    """The storage of type torch.`kind` that the archive keeps as data/`key`."""
    if kind not in STORAGE_TYPES:
        raise CheckpointError(f"a tensor of type {shown(f'torch.{kind}')} is not supported: save the model in float32")
    member = members.get(f"data/{key}")
    if member is None:
        raise damaged(f"the storage {shown(key)} is missing from the archive")
    storage = Storage(STORAGE_TYPES[kind], length, member.start)
    if type(length) is not int or length < 0 or length * storage.dtype.itemsize != member.size:
        raise refused(f"the storage {shown(key)} has another type or size in data.pkl than in the archive")
    return storage


def rebuild_tensor(mapped: memoryview, arguments: tuple[Any, ...]) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    match arguments:
        case (Storage() as storage, offset, tuple(size), tuple(stride), bool(), dict(), *metadata):
            numbers = [offset, *size, *stride]
        case _:
            raise refused("a tensor in data.pkl with unexpected arguments")
    if len(size) != len(stride) or len(size) > RANK_LIMIT or len(metadata) > 1 or any(metadata):
        raise refused("a tensor in data.pkl with unexpected arguments")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise refused("a tensor in data.pkl with a negative or impossible offset, size or stride")
    # Python's integers do not overflow. A tensor larger than its storage (stride 0) would swell when copied.
    if math.prod(extent or 1 for extent in size) > (EMPTY_LIMIT if 0 in size else storage.length):
        raise refused("a tensor in data.pkl larger than its storage")
    if 0 in size:
        return np.empty(size, storage.dtype)
    if offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True)) >= storage.length:
        raise refused("a tensor in data.pkl that reaches beyond its storage")
    width = storage.dtype.itemsize
    strides = [step * width if extent > 1 else width for extent, step in zip(size, stride, strict=True)]
    return np.ndarray(size, storage.dtype, mapped, storage.start + offset * width, strides)


def rebuild_parameter(arguments: tuple[Any, ...]) -> np.ndarray:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)."""
    match arguments:
        case (np.ndarray() as tensor, bool(), dict()):
            return tensor
    raise refused("a parameter in data.pkl with unexpected arguments")
