"""Dropout as an argument and not as a module: a model holds no random state, and inference never mentions it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEVELS = 256  # Rates are rounded to 1/256: a byte a number costs a quarter of what 32 random bits cost.


class Dropout(NamedTuple):
    """Zeroes a `rate` () of all numbers and scales the others so that the mean stays (Srivastava et al., 2014).

    A pytree: rate and key may be traced.
    """

    rate: jax.Array
    key: jax.Array

    def __call__(self, x: jax.Array, place: int) -> jax.Array:
        """x (...) with its own draws at each `place` of a module: (...), of x's type."""
        dropped = jnp.round(self.rate * _LEVELS)
        bits = jax.random.bits(jax.random.fold_in(self.key, place), x.shape, jnp.uint8)
        return jnp.where(bits.astype(jnp.int32) >= dropped, x * (_LEVELS / (_LEVELS - dropped)).astype(x.dtype), 0)

    def within(self, number: int) -> Dropout:
        """The dropout of a module's member with this number."""
        return Dropout(self.rate, jax.random.fold_in(self.key, number))


def keep_all(x: jax.Array, place: int) -> jax.Array:
    """No dropout."""
    return x
