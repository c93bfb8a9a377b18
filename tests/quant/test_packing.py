from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.quant.packing import pack, packed_size, unpack


def by_hand(values: list[int], bits: int) -> list[int]:
    """The bytes of one row: a stream of bits, the lowest first, up to the end of a group."""
    stream = [value >> bit & 1 for value in values for bit in range(bits)]
    stream += [0] * (packed_size(len(values), bits) * 8 - len(stream))
    return [sum(bit << place for place, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8)]


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_bytes_and_back(bits: int) -> None:
    generator = np.random.default_rng(bits)
    values = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, 19, 3)).astype(np.int8)
    for axis in (-1, -2):
        packed = jax.jit(pack, static_argnums=(1, 2))(values, bits, axis)
        size = values.shape[axis]
        assert packed.dtype == jnp.uint8 and packed.shape[axis] == packed_size(size, bits)
        rows = np.moveaxis(values, axis, -1).reshape(-1, size)
        expected = [by_hand(row.tolist(), bits) for row in rows]
        np.testing.assert_array_equal(np.moveaxis(np.asarray(packed), axis, -1).reshape(len(rows), -1), expected)
        np.testing.assert_array_equal(jax.jit(unpack, static_argnums=(1, 2, 3))(packed, bits, axis, size), values)


def test_what_packing_takes() -> None:
    assert [packed_size(512, bits) for bits in (8, 4, 3, 2)] == [512, 256, 192, 128]
    assert [packed_size(9, bits) for bits in (8, 4, 3, 2)] == [9, 5, 6, 3]
