"""Protobuf's wire format: the fields of a message, read from memory with bounded work.

See protobuf.dev/programming-guides/encoding. Nothing here knows a schema; groups (long deprecated) are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types

MAX_STRING_BYTES = 1 << 16
MAX_NAME = 1024  # characters
MAX_PACKED_BYTES = 1 << 26  # integers of varying width; publishers keep large tensors as raw bytes

Value: TypeAlias = int | memoryview  # of a field: an integer, or the memory it takes
Field: TypeAlias = tuple[int, int, Value]  # number, wire type, value


class Malformed(Exception):
    """The bytes are not the message that they should be; readers turn it into an error that names the file."""


class Budget:
    """How many more parts of a file may be read: what keeps a small file from taking much time or memory."""

    def __init__(self, parts: int) -> None:
        self.left = parts

    def spend(self, parts: int) -> None:
        self.left -= parts
        if self.left < 0:
            raise Malformed("too many parts")


def fields(data: memoryview, budget: Budget) -> Iterator[Field]:
    """The fields of one message in order; raises Malformed where the bytes do not add up."""
    position, end = 0, len(data)
    while position < end:
        budget.spend(1)
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise Malformed(f"field number {number}")
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, position = _varint(data, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise Malformed(f"wire type {wire}")
        if length > end - position:
            raise Malformed(f"a field of {length} bytes where {end - position} are left")
        yield number, wire, data[position : position + length]
        position += length


def integer(wire: int, value: Value) -> int:
    """The value of an int32, int64 or enum field."""
    if wire != VARINT or not isinstance(value, int):
        raise Malformed("bytes where a number belongs")
    return _signed(value)


def single(wire: int, value: Value) -> float:
    """The value of a float field."""
    if wire != FIXED32 or isinstance(value, int):
        raise Malformed("another kind of value where a float belongs")
    (number,) = struct.unpack("<f", value)
    return float(number)


def message(wire: int, value: Value) -> memoryview:
    """The memory of an embedded message or of a bytes field."""
    if wire != BYTES or isinstance(value, int):
        raise Malformed("a number where bytes belong")
    return value


def short(data: memoryview) -> memoryview:
    """`data`, if it is no longer than any name, text or list of attributes may be."""
    if len(data) > MAX_STRING_BYTES:
        raise Malformed(f"a text or list of {len(data)} bytes")
    return data


def text(wire: int, value: Value) -> str:
    """The value of a string field."""
    try:
        return str(short(message(wire, value)), "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a name is not UTF-8") from None


def name(wire: int, value: Value) -> str:
    """The value of a string field that names something, and so may stand in a message of one line."""
    named = text(wire, value)
    if len(named) > MAX_NAME or not named.isprintable():
        raise Malformed("a name is too long or not printable")
    return named


def packed(wire: int, value: Value, element_wire: int) -> memoryview:
    """The bytes of a repeated field of numbers, whether one element stands here or all of them packed."""
    if isinstance(value, int):
        if element_wire != VARINT:
            raise Malformed("a number where bytes belong")
        return memoryview(_encode_varint(value))
    return value if wire == element_wire else message(wire, value)


def integers(data: memoryview | bytes) -> np.ndarray:
    """All integers of a packed field (N,) int64, by blocks and not one by one."""
    octets = np.frombuffer(data, np.uint8)
    if len(octets) > MAX_PACKED_BYTES:
        raise Malformed(f"a list of integers of {len(octets)} bytes")
    blocks = [np.zeros(0, np.int64)]
    while len(octets):
        block = octets[: 1 << 20]
        ends = np.flatnonzero(block < 0x80)
        if not len(ends):
            raise Malformed("a list of integers is cut off")
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        if lengths.max() > 10:
            raise Malformed("an integer of more than 64 bits")
        values = np.zeros(len(ends), np.uint64)
        for byte in range(int(lengths.max())):
            longer = np.flatnonzero(lengths > byte)
            values[longer] |= (block[starts[longer] + byte] & 0x7F).astype(np.uint64) << np.uint64(7 * byte)
        blocks.append(values.view(np.int64))
        octets = octets[ends[-1] + 1 :]
    return np.concatenate(blocks)


def floats(data: memoryview) -> np.ndarray:
    """All numbers of a packed float field (N,) float32."""
    if len(data) % 4:
        raise Malformed("a list of numbers is cut off")
    return np.frombuffer(data, "<f4")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift >= 70:
            raise Malformed("an integer of more than 64 bits")
    raise Malformed("an integer is cut off")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
