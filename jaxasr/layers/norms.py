"""Normalisations that Flax does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class BiasNorm(nnx.Module):
    """x / rms(x - bias) * e^log_scale over the last axis (Zipformer, section 3.3).

    The bias enters the statistic only, never the output, and there is no epsilon.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        self.bias = nnx.Param(jnp.full((features,), 1e-4, jnp.float32))
        self.log_scale = nnx.Param(jnp.zeros((), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        centred = x.astype(jnp.float32) - self.bias[...].astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True))
        return x * (scale * jnp.exp(self.log_scale[...].astype(jnp.float32))).astype(x.dtype)
