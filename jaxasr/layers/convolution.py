"""Convolutions: kernels are (width, in/groups, out) and (height, width, in/groups, out)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.layers.products import convolution_product, depthwise_product

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class DepthwiseConv1d(nnx.Module):
    """Valid depthwise convolution over time, by default with a bias: (B, T, C) -> (B, T - width + 1, C)."""

    def __init__(self, features: int, width: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> None:
        bound = width**-0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (width, 1, features), jnp.float32, -bound, bound))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B _ C"]:
        y = depthwise_product(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class DepthwiseConv2d(nnx.Module):
    """Valid depthwise convolution with a bias: (B, H, W, C) -> (B, (H - height) // stride + 1, ..., C)."""

    def __init__(
        self, features: int, height: int, width: int, *, strides: tuple[int, int] = (1, 1), rngs: nnx.Rngs
    ) -> None:
        bound = (height * width) ** -0.5
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (height, width, 1, features), jnp.float32, -bound, bound)
        )
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.strides = strides

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
        return depthwise_product(x, self.kernel[...], self.strides) + self.bias[...].astype(x.dtype)


class Conv2d(nnx.Module):
    """3 x 3-like convolution with a bias: (B, H, W, in) -> (B, H', W', out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
        rngs: nnx.Rngs,
    ) -> None:
        bound = (in_features * window[0] * window[1]) ** -0.5
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (*window, in_features, out_features), jnp.float32, -bound, bound)
        )
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32))
        self.strides = strides
        self.padding = padding

    def __call__(self, x: Float[Array, "B H W in"]) -> Float[Array, "B _ _ out"]:
        y = convolution_product(x, self.kernel[...], self.strides, self.padding)
        return y + self.bias[...].astype(x.dtype)
