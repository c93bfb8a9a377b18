"""Norms with a scale and a bias for each channel; statistics are taken in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) over the last axis, times scale plus bias (Ba et al., 2016)."""

    def __init__(self, features: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        scaled = normal * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return scaled.astype(x.dtype)


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) with stored running statistics, times scale plus bias (Ioffe, 2015).

    `mean` and `variance` are no trained parameters: they are of nnx's type BatchStat.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale, bias, mean, variance = (
            each[...].astype(jnp.float32) for each in (self.scale, self.bias, self.mean, self.variance)
        )
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype)
