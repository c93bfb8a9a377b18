"""Normalisations that more than one network uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class BatchNorm(nnx.Module):
    """Batch normalisation by the stored statistics: x (..., C) -> (..., C) in x's type.

    (x - mean) / sqrt(variance + epsilon) * scale + bias (Ioffe and Szegedy, 2015, arXiv 1502.03167). Gradients do not
    reach the statistics.
    """

    def __init__(self, features: int, epsilon: float, *, rngs: nnx.Rngs) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        mean, variance = jax.lax.stop_gradient((self.mean[...], self.variance[...]))
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
        # In float32: a narrow product would round what the mean then takes away.
        return (x.astype(jnp.float32) * factor + (self.bias[...] - mean * factor)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Normalisation of each frame by itself: x (..., D) -> (..., D) in x's type.

    (x - mean) / sqrt(variance + epsilon) * scale + bias, statistics over the last axis in float32 (Ba et al., 2016,
    arXiv 1607.06450).
    """

    def __init__(self, features: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        scaled = normal * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return scaled.astype(x.dtype)
