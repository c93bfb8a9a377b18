"""Convolutions, written as what runs well on every backend.

Kernels are (width, in/groups, out) and (height, width, in/groups, out). Depthwise convolutions are sums of shifted
products: XLA's own depthwise convolution is tens of times slower on a CPU (docs/benchmarks.md).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxasr.layers.products import convolution_product, precision_of

# Shifted products that XLA fuses into one loop; more of them at once spill registers and run at half the speed.
TAPS_PER_LOOP = 8


def depthwise_conv1d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid depthwise convolution over time: x (B, T, C), kernel (width, 1, C) -> (B, T - width + 1, C)."""
    steps = x.shape[1] - kernel.shape[0] + 1

    def shifted_sums(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _in_groups([x[:, k : k + steps] * kernel[k, 0] for k in range(kernel.shape[0])], TAPS_PER_LOOP)

    return _depthwise(x, kernel.astype(x.dtype), shifted_sums)


def depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid depthwise convolution: x (B, H, W, C), kernel (h, w, 1, C) -> (B, H - h + 1, W - w + 1, C)."""
    height, width = kernel.shape[:2]
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1

    def shifted_sums(x: jax.Array, kernel: jax.Array) -> jax.Array:
        taps = [x[:, i : i + rows, j : j + columns] * kernel[i, j, 0] for i in range(height) for j in range(width)]
        return _in_groups(taps, width)

    return _depthwise(x, kernel.astype(x.dtype), shifted_sums)


def _depthwise(x: jax.Array, kernel: jax.Array, shifted_sums: Callable[..., jax.Array]) -> jax.Array:
    """On TPU XLA's own depthwise convolution reads its input once; elsewhere shifted sums are faster."""
    dimensions = ("NWC", "WIO", "NWC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1,) * (x.ndim - 2),
            "VALID",
            dimension_numbers=dimensions,
            feature_group_count=x.shape[-1],
            precision=precision_of(x.dtype),
        )

    return lax.platform_dependent(x, kernel, tpu=native, default=shifted_sums)


def _in_groups(taps: list[jax.Array], size: int) -> jax.Array:
    """The sum of `taps`, `size` of them in a loop."""
    total = None
    for start in range(0, len(taps), size):
        part = functools.reduce(operator.add, taps[start : start + size])
        total = lax.optimization_barrier(part if total is None else total + part)
    return total


class DepthwiseConv1d(nnx.Module):
    """Valid depthwise convolution over time with a bias: (B, T, C) -> (B, T - width + 1, C)."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs) -> None:
        bound = width**-0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (width, 1, features), jnp.float32, -bound, bound))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise_conv1d(x, self.kernel[...]) + self.bias[...].astype(x.dtype)


class DepthwiseConv2d(nnx.Module):
    """Valid depthwise convolution with a bias: (B, H, W, C) -> (B, H - height + 1, W - width + 1, C)."""

    def __init__(self, features: int, height: int, width: int, *, rngs: nnx.Rngs) -> None:
        bound = (height * width) ** -0.5
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (height, width, 1, features), jnp.float32, -bound, bound)
        )
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise_conv2d(x, self.kernel[...]) + self.bias[...].astype(x.dtype)


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

    def __call__(self, x: jax.Array) -> jax.Array:
        y = convolution_product(x, self.kernel[...], self.strides, self.padding)
        return y + self.bias[...].astype(x.dtype)
