"""Convolutions, written as what runs well on every backend.

Kernels are (width, in/groups, out) and (height, width, in/groups, out). Depthwise convolutions are sums of shifted
products: XLA's own depthwise convolution is tens of times slower on a CPU (docs/benchmarks.md).
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxasr.layers.products import convolution_product, precision_of

# Shifted products that XLA fuses into one loop; more of them at once spill registers and run at half the speed.
TAPS_PER_LOOP = 8


def depthwise_conv1d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid depthwise convolution over time: x (B, T, C), kernel (width, 1, C) -> (B, T - width + 1, C)."""
    return depthwise_conv2d(x[:, :, None], kernel[:, None])[:, :, 0]


def depthwise_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid depthwise convolution: x (B, H, W, C), kernel (h, w, 1, C) -> (B, H - h + 1, W - w + 1, C).

    On TPU XLA's own depthwise convolution reads its input once; elsewhere shifted sums are faster.
    """

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
            precision=precision_of(x.dtype),
        )

    return lax.platform_dependent(x, kernel.astype(x.dtype), tpu=native, default=_shifted_sums)


@jax.custom_vjp
def _shifted_sums(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (B, H, W, C), kernel (h, w, 1, C): the taps' shifted multiples of x added up."""
    height, width = kernel.shape[:2]
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    taps = [x[:, i : i + rows, j : j + columns] * kernel[i, j, 0] for i in range(height) for j in range(width)]
    return _in_groups(taps, width if width > 1 else TAPS_PER_LOOP)


def _shifted_sums_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_sums(x, kernel), (x, kernel)


def _shifted_sums_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Again shifted sums, where the transposed program would be one padded copy of x for each tap."""
    x, kernel = saved
    height, width = kernel.shape[:2]
    rows, columns = dy.shape[1:3]
    surrounded = jnp.pad(dy, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)))
    dx = _shifted_sums(surrounded, kernel[::-1, ::-1])

    def row_of_taps(i: jax.Array) -> jax.Array:
        band = lax.dynamic_slice_in_dim(x, i, rows, axis=1)
        products = [band[:, :, j : j + columns] * dy for j in range(width)]
        return jnp.stack([product.sum((0, 1, 2), dtype=jnp.float32) for product in products])

    dkernel = lax.map(row_of_taps, jnp.arange(height))  # (h, w, C)
    return dx, dkernel[:, :, None].astype(kernel.dtype)


_shifted_sums.defvjp(_shifted_sums_forward, _shifted_sums_backward)


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
