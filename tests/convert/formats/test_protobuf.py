"""The wire format, against messages written out by hand and numbers from the specification's own examples."""

from __future__ import annotations

import numpy as np
import pytest

from jaxasr.convert.formats import protobuf
from jaxasr.convert.formats.protobuf import Budget, Malformed
from onnx_writer import field, varint


def read(data: bytes) -> list[tuple[int, int, object]]:
    fields = protobuf.fields(memoryview(data), Budget(1000))
    return [(n, wire, bytes(value) if isinstance(value, memoryview) else value) for n, wire, value in fields]


def test_fields_of_the_specifications_examples() -> None:
    # protobuf.dev: 08 96 01 is field 1 = 150, 12 07 … is field 2 = "testing".
    assert read(b"\x08\x96\x01\x12\x07testing") == [(1, protobuf.VARINT, 150), (2, protobuf.BYTES, b"testing")]


def test_negative_numbers_take_ten_bytes() -> None:
    data = field(1, -2)
    assert len(data) == 11
    ((_, wire, value),) = read(data)
    assert protobuf.integer(wire, value) == -2


def test_integers_equal_a_loop_over_every_length_and_across_blocks() -> None:
    generator = np.random.default_rng(0)
    widths = generator.integers(0, 64, 400_000)  # more than one block of a megabyte
    values = (generator.integers(0, 2**63, len(widths), dtype=np.uint64) >> widths.astype(np.uint64)).astype(np.int64)
    values[:4] = [0, -1, np.iinfo(np.int64).min, np.iinfo(np.int64).max]
    packed = b"".join(map(varint, values.tolist()))
    assert len(packed) > 2**20
    np.testing.assert_array_equal(protobuf.integers(packed), values)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08", "cut off"),
        (b"\x08" + b"\xff" * 11, "64 bits"),
        (b"\x12\x7fabc", "127 bytes where 3 are left"),
        (b"\x12" + varint(2**63) + b"abc", "where 3 are left"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x01", "field number 0"),
        (b"\x0d\x00\x00", "4 bytes where 2"),
        (b"\x09\x00\x00", "8 bytes where 2"),
    ],
)
def test_damage_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        read(data)


def test_packed_damage_is_told() -> None:
    for data in (b"\x80", b"\x01\xff", b"\xff" * 11 + b"\x01"):
        with pytest.raises(Malformed):
            protobuf.integers(data)
    with pytest.raises(Malformed):
        protobuf.floats(memoryview(b"\0\0\0\0\0"))


def test_the_budget_bounds_the_number_of_fields() -> None:
    with pytest.raises(Malformed, match="too many parts"):
        list(protobuf.fields(memoryview(b"\x08\x00" * 11), Budget(10)))


def test_texts_are_short_and_utf8() -> None:
    for value in (memoryview(b"\xff"), memoryview(b"a" * (protobuf.MAX_STRING_BYTES + 1))):
        with pytest.raises(Malformed):
            protobuf.text(protobuf.BYTES, value)
