from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.quant.packing import pack, packed_shape, unpack, unpacked_shape


def by_hand(values: list[int], bits: int) -> list[int]:
    """The bytes of one row: a stream of bits, the lowest first, up to the end of a group."""
    stream = [value >> bit & 1 for value in values for bit in range(bits)]
    stream += [0] * (packed_shape((len(values),), bits, -1)[0] * 8 - len(stream))
    return [sum(bit << place for place, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8)]


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_bytes_and_back(bits: int) -> None:
    generator = np.random.default_rng(bits)
    values = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, 19, 3)).astype(np.int8)
    for axis in (-1, -2):
        packed = jax.jit(pack, static_argnums=(1, 2))(values, bits, axis)
        size = values.shape[axis]
        assert packed.dtype == jnp.uint8 and packed.shape == packed_shape(values.shape, bits, axis)
        assert unpacked_shape(packed.shape, bits, axis, size) == values.shape
        rows = np.moveaxis(values, axis, -1).reshape(-1, size)
        expected = [by_hand(row.tolist(), bits) for row in rows]
        np.testing.assert_array_equal(np.moveaxis(np.asarray(packed), axis, -1).reshape(len(rows), -1), expected)
        np.testing.assert_array_equal(jax.jit(unpack, static_argnums=(1, 2, 3))(packed, bits, axis, size), values)


@pytest.mark.parametrize("bits", [4, 2])
def test_a_tpu_reads_narrow_types(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Its program holds no shift, and its values are those of the shifts: they are made here, on any device."""
    packed = np.random.default_rng(bits).integers(0, 256, (2, 5, 3)).astype(np.uint8)
    for axis in (-1, -2, -3):
        size = packed.shape[axis] * (8 // bits) - 1
        expected = unpack(jnp.asarray(packed), bits, axis, size)
        with monkeypatch.context() as patched:
            patched.setattr(jax.lax, "platform_dependent", lambda array, tpu, default: tpu(array))
            program = jax.make_jaxpr(functools.partial(unpack, bits=bits, axis=axis, size=size))(packed)
            np.testing.assert_array_equal(unpack(jnp.asarray(packed), bits, axis, size), expected)
        assert f"i{bits}[" in str(program) and "shift" not in str(program)


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_values_of_eight_bits_lie_along_their_axis(axis: int) -> None:
    values = np.random.default_rng(8).integers(-128, 128, (4, 9, 3)).astype(np.int8)
    packed = pack(jnp.asarray(values), 8, axis)
    np.testing.assert_array_equal(packed, np.moveaxis(values, axis, -1))
    np.testing.assert_array_equal(unpack(packed, 8, axis, values.shape[axis]), values)
    assert packed.shape == packed_shape(values.shape, 8, axis)
    assert unpacked_shape(packed.shape, 8, axis, values.shape[axis]) == values.shape


def test_what_packing_takes() -> None:
    assert [packed_shape((2, 512), bits, -1) for bits in (8, 4, 3, 2)] == [(2, 512), (2, 256), (2, 192), (2, 128)]
    assert [packed_shape((9, 2), bits, -2) for bits in (8, 4, 3, 2)] == [(2, 9), (5, 2), (6, 2), (3, 2)]
