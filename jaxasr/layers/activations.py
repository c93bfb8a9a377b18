"""Activations that are not in jax.nn."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _softplus(x: jax.Array) -> jax.Array:
    # log(1 + e^x) without overflow; the plain logarithm is off by one rounding of 1 at most, which the sum hides,
    # and vectorises on every device where log1p and logaddexp do not.
    return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


def swoosh_l(x: jax.Array) -> jax.Array:
    """SwooshL (Zipformer, section 3.4): log(1 + e^(x-4)) - 0.08 x - 0.035, element-wise."""
    return _softplus(x - 4.0) - 0.08 * x - 0.035


def swoosh_r(x: jax.Array) -> jax.Array:
    """SwooshR (Zipformer, section 3.4): log(1 + e^(x-1)) - 0.08 x - 0.313261687, element-wise."""
    return _softplus(x - 1.0) - 0.08 * x - 0.313261687
