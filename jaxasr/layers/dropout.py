"""Dropout as an argument and not as a module: a model holds no random state, and inference never mentions it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dropout(NamedTuple):
    """Zeroes a share `rate` () of all channels and scales the others so that the mean stays (Srivastava et al., 2014).

    A row's channel is zeroed in all its frames or in none, as icefall's Zipformer does it: drawing every number of a
    layer anew would take a twelfth of a training step on a CPU.

    A pytree: rate and key, one of jax.random, may be traced. Places and members are counted in one row of numbers: what
    calls a Dropout itself hands none of it on by `within` with the same number.
    """

    rate: jax.Array
    key: jax.Array

    def __call__(self, x: jax.Array, place: int) -> jax.Array:
        """x (B, T, D) with its own draws at each `place` of a module: (B, T, D), of x's type."""
        shape = (x.shape[0], 1, x.shape[2])
        keep = jax.random.bernoulli(jax.random.fold_in(self.key, place), 1.0 - self.rate, shape)
        # Scaled in float32: in bfloat16 the factor alone would be off by up to 0.4 %.
        return jnp.where(keep, (x.astype(jnp.float32) / (1.0 - self.rate)).astype(x.dtype), 0)

    def within(self, number: int) -> Dropout:
        """The dropout of a module's member with this number."""
        return Dropout(self.rate, jax.random.fold_in(self.key, number))


def keep_all(x: jax.Array, place: int) -> jax.Array:
    """No dropout."""
    return x
