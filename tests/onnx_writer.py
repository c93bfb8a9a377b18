"""Writes ONNX models byte by byte, broken ones too, so that the tests of our reader need no onnx package."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

DATA_TYPES = {"f4": 1, "u1": 2, "i1": 3, "u2": 4, "i2": 5, "i4": 6, "i8": 7, "b1": 9, "f2": 10, "f8": 11, "u4": 12}


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field: an integer as varint, a float as 32 bits, a text or bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray, *, shape: Sequence[int] | None = None, content: bytes | None = None) -> bytes:
    """TensorProto with raw data; `content` (encoded fields) stands for the data where it is given."""
    array = np.asarray(array)
    dimensions = b"".join(field(1, size) for size in (array.shape if shape is None else shape))
    data = field(9, array.tobytes()) if content is None else content
    return dimensions + field(2, DATA_TYPES[array.dtype.str[1:]]) + field(8, name) + data


def external(name: str, array: np.ndarray, **entries: str) -> bytes:
    """TensorProto whose data lies in another file: entries location, offset, length."""
    pairs = b"".join(field(13, field(1, key) + field(2, value)) for key, value in entries.items())
    return tensor(name, array, content=pairs + field(14, 1))


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: bytes, domain: str = "") -> bytes:
    names = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs)
    label = field(3, f"{op_type}_{outputs[0]}") + field(4, op_type) + (field(7, domain) if domain else b"")
    return names + label + b"".join(field(5, attribute) for attribute in attributes)


def value_info(name: str, *sizes: int | str) -> bytes:
    dimensions = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dimensions)))


def graph(
    nodes: Sequence[bytes] = (),
    initializers: Sequence[bytes] = (),
    inputs: Sequence[bytes] = (),
    outputs: Sequence[bytes] = (),
) -> bytes:
    parts = [(1, nodes), (5, initializers), (11, inputs), (12, outputs)]
    return b"".join(field(number, item) for number, items in parts for item in items)


def model(content: bytes, *, metadata: dict[str, str] | None = None) -> bytes:
    pairs = (metadata or {}).items()
    return (
        field(1, 7)
        + field(2, "tests")
        + field(7, content)
        + field(8, field(2, 13))
        + b"".join(field(14, field(1, key) + field(2, value)) for key, value in pairs)
    )
