"""Integers of 4, 3 and 2 bits in bytes: as small as they are in files and in the memory of any device.

The values along one axis are a stream of bits, the lowest first: value i takes the bits from i * bits on. So two values
of 4 bits share a byte, four of 2 bits do, and eight of 3 bits share three bytes; at the end of the axis zeros fill the
last group. Bytes hold them because sub-byte types of JAX have traps: a file of numpy's loses them, and concatenating
int2 ends the process (google/praxis packs 4 bits in the same order, two to an int8).

Values of 8 bits are not packed, but the axis lies last: what a product adds up lies side by side then, as the integer
units of CPUs and GPUs read it (docs/decisions.md).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxasr.arrays import ceil_div

# Values that share a whole number of bytes, and these bytes, by bits a value.
GROUPS = {4: (2, 1), 3: (8, 3), 2: (4, 1)}


def packed_shape(shape: tuple[int, ...], bits: int, axis: int) -> tuple[int, ...]:
    """The shape of what `pack` makes of values of this shape."""
    at = len(shape) + axis
    if bits == 8:
        return (*shape[:at], *shape[at + 1 :], shape[at])
    values, in_bytes = GROUPS[bits]
    return (*shape[:at], ceil_div(shape[at], values) * in_bytes, *shape[at + 1 :])


def unpacked_shape(shape: tuple[int, ...], bits: int, axis: int, size: int) -> tuple[int, ...]:
    """The shape of what `unpack` makes of an array of this shape."""
    at = len(shape) + axis
    rest = shape[:-1] if bits == 8 else (*shape[:at], *shape[at + 1 :])
    return (*rest[:at], size, *rest[at:])


def pack(values: jax.Array, bits: int, axis: int) -> jax.Array:
    """int8 values (..., n, ...) in -2^(bits-1) .. 2^(bits-1)-1 -> uint8, packed along a negative axis.

    Values of 8 bits stay int8, the axis moved to the end.
    """
    if bits == 8:
        return jnp.moveaxis(values, axis, -1)
    count, in_bytes = GROUPS[bits]
    values = jnp.moveaxis(values, axis, -1)
    ends = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % count)]
    codes = jnp.pad(values, ends).astype(jnp.uint32) & (2**bits - 1)
    codes = codes.reshape(*codes.shape[:-1], -1, count)
    word = (codes << (bits * jnp.arange(count, dtype=jnp.uint32))).sum(-1, dtype=jnp.uint32)
    taken = (word[..., None] >> (8 * jnp.arange(in_bytes, dtype=jnp.uint32))) & 0xFF
    return jnp.moveaxis(taken.astype(jnp.uint8).reshape(*word.shape[:-1], -1), -1, axis)


def unpack(packed: jax.Array, bits: int, axis: int, size: int) -> jax.Array:
    """The inverse of `pack`: `size` int8 values along a negative axis.

    On a TPU bytes of 4 and 2 bits are read as int4 and int2, which the product with them takes in as they are.
    """
    if bits == 8:
        return jnp.moveaxis(packed, -1, axis)
    shifted = functools.partial(_shifted, bits=bits, axis=axis)
    if bits == 3:
        whole = shifted(packed)
    else:
        whole = jax.lax.platform_dependent(
            packed, tpu=functools.partial(_reread, bits=bits, axis=axis), default=shifted
        )
    return jax.lax.slice_in_dim(whole, 0, size, axis=packed.ndim + axis)


def _reread(packed: jax.Array, bits: int, axis: int) -> jax.Array:
    """All values of bytes, which are read as the narrow type that they hold."""
    at = packed.ndim + axis
    narrow = jax.lax.bitcast_convert_type(packed, jnp.int4 if bits == 4 else jnp.int2)  # (..., n, ..., count)
    return jnp.moveaxis(narrow, -1, at + 1).reshape(*packed.shape[:at], -1, *packed.shape[at + 1 :]).astype(jnp.int8)


def _shifted(packed: jax.Array, bits: int, axis: int) -> jax.Array:
    """All values of bytes, by shifts."""
    count, in_bytes = GROUPS[bits]
    at = packed.ndim + axis
    head, tail = packed.shape[:at], packed.shape[at + 1 :]
    groups = packed.reshape(*head, -1, in_bytes, *tail)
    wide = jnp.int8 if in_bytes == 1 else jnp.int32  # a byte is shifted as a byte, which takes a quarter of the memory
    parts = [_part(groups, at + 1, number).astype(wide) << (8 * number) for number in range(in_bytes)]
    word = sum(parts[1:], start=parts[0])
    width = 8 * word.dtype.itemsize
    # Shifted up to the sign and down again, a value has its sign.
    values = [(word << (width - bits * (number + 1))) >> (width - bits) for number in range(count)]
    return jnp.stack(values, axis=at + 1).astype(jnp.int8).reshape(*head, -1, *tail)


def _part(groups: jax.Array, axis: int, number: int) -> jax.Array:
    return jax.lax.index_in_dim(groups, number, axis, keepdims=False)
