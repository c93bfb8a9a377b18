"""Normalisations that more than one network uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import length_mask

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# How far the stored statistics of a batch norm move towards those of one batch: PyTorch's default.
BATCH_SHARE = 0.1


class BatchNorm(nnx.Module):
    """Batch normalisation: x (B, T, C), lengths (B,) -> (B, T, C) in x's type.

    (x - mean) / sqrt(variance + epsilon) * scale + bias (Ioffe and Szegedy, 2015, arXiv 1502.03167), by the stored
    statistics. In training (after `train()`) by those of the batch over the frames within `lengths`, towards which
    the stored ones move by BATCH_SHARE: as torch.nn.BatchNorm1d, whose stored variance is the unbiased one, but that
    frames beyond a row's length do not count. Rows may lie on several devices: the statistics are those of all rows.
    Gradients do not reach the stored ones.
    """

    def __init__(self, features: int, epsilon: float, *, rngs: nnx.Rngs) -> None:
        self.epsilon = epsilon
        self.use_running_average = True  # the name by which Flax' train() and eval() find it
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.variance = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> Float[Array, "B T C"]:
        # In float32: a narrow product would round what the mean then takes away.
        wide = x.astype(jnp.float32)
        mean, variance = jax.lax.stop_gradient((self.mean[...], self.variance[...]))
        if not self.use_running_average:
            mean, variance = self._of_the_batch(wide, lengths)
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
        return (wide * factor + (self.bias[...] - mean * factor)).astype(x.dtype)

    def _of_the_batch(
        self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """Mean and variance (C,) of the batch, which move the stored ones; a batch without frames moves nothing."""
        valid = length_mask(lengths, x.shape[1])[..., None]  # (B, T, 1)
        number = valid.sum().astype(jnp.float32)
        mean = jnp.where(valid, x, 0).sum((0, 1)) / jnp.maximum(number, 1)
        variance = jnp.square(jnp.where(valid, x - mean, 0)).sum((0, 1)) / jnp.maximum(number, 1)
        share = jnp.where(number > 0, BATCH_SHARE, 0.0)
        unbiased = variance * number / jnp.maximum(number - 1, 1)
        for stored, new in ((self.mean, mean), (self.variance, unbiased)):
            stored[...] = stored[...] + share * (jax.lax.stop_gradient(new) - stored[...])
        return mean, variance


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
