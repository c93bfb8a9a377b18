"""Lengths and masks: the arithmetic that every room shares."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

# A length, or an array of lengths: arithmetic that a configuration does on both.
Count = TypeVar("Count", int, jax.Array)
# Stands in for log(0); finite, so that adding thousands of them does not overflow float32.
LOG_ZERO = -1e30


def length_mask(lengths: jax.Array, size: int) -> jax.Array:
    """True where a position belongs to its row: lengths (B,) -> (B, size) bool."""
    return jnp.arange(size)[None, :] < lengths[:, None]


def zero_beyond(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Replace everything at and after each row's length by zero, also NaN: values (B, T, ...), lengths (B,)."""
    mask = length_mask(lengths, values.shape[1])
    return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - 2)), values, jnp.zeros((), values.dtype))


def repeat_last(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Replace all at and after each row's length by the row's last valid step: values (B, T, D), lengths (B,)."""
    last = jnp.take_along_axis(values, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)  # (B, 1, D)
    return jnp.where(length_mask(lengths, values.shape[1])[..., None], values, last)


def ceil_div(value: Count, divisor: int) -> Count:
    """The quotient rounded up, for integers and integer arrays."""
    return (value + divisor - 1) // divisor


def at_least_zero(value: Count) -> Count:
    """The value, or 0 where it is negative, for integers and integer arrays."""
    return max(value, 0) if isinstance(value, int) else jnp.maximum(value, 0)
