"""Dropout as an argument and not as a module: a model holds no random state, and inference never mentions it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Dropout(NamedTuple):
    """Zeroes a fraction `rate` () of all channels, scales the others so that the mean stays (Srivastava et al., 2014).

    A row's channel is zeroed in all its frames or in none, as in icefall's Zipformer: drawing every number of a layer
    by itself would take a twelfth of a training step on a CPU. Rate and key, one of jax.random, may be traced.

    `place` and `within(n)` share one numbering. A module that draws at place 3 must not give `within(3)` to a member,
    or both draw the same mask.
    """

    rate: jax.Array
    key: jax.Array

    def __call__(self, x: Float[Array, "B T D"], place: int) -> Float[Array, "B T D"]:
        """x (B, T, D) with channels zeroed, drawn for each `place` of a module by itself: (B, T, D) in x's type."""
        shape = (x.shape[0], 1, x.shape[2])
        keep = jax.random.bernoulli(jax.random.fold_in(self.key, place), 1.0 - self.rate, shape)
        # Scaled in float32: in bfloat16 the factor alone would be off by up to 0.4 %.
        return jnp.where(keep, (x.astype(jnp.float32) / (1.0 - self.rate)).astype(x.dtype), 0)

    def within(self, number: int) -> Dropout:
        """The dropout that a module hands to its member with this number."""
        return Dropout(self.rate, jax.random.fold_in(self.key, number))


def no_dropout(x: Float[Array, "B T D"], place: int) -> Float[Array, "B T D"]:
    """In the place of a Dropout: x as it is."""
    return x
