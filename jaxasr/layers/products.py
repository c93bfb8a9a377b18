"""The one door for products with a weight: operand types, accumulation and precision are decided here and nowhere else.

The type of a kernel decides how it is multiplied: the activation is cast to it, sums are kept in float32, and the
result returns in the activation's type. So bfloat16 kernels run as bfloat16 products whether the activations around
them are bfloat16 (GPU, TPU) or float32 (CPU, where narrow element-wise arithmetic is slow).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def precision_of(dtype: jnp.dtype) -> lax.Precision:
    """Float32 products are true float32 on every device; narrower ones take the device's own unit."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def linear_product(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x (..., in) times kernel (in, out) plus bias (out,): (..., out) in x's type."""
    product = lax.dot_general(
        x.astype(kernel.dtype),
        kernel,
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=precision_of(kernel.dtype),
        preferred_element_type=jnp.float32,
    )
    if bias is not None:
        product = product + bias.astype(jnp.float32)
    return product.astype(x.dtype)


def convolution_product(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """x (B, H, W, in) convolved with kernel (height, width, in, out): (B, H', W', out) in x's type."""
    if x.shape[-1] == 1 and strides == (1, 1):
        return _single_channel_convolution(x, kernel, padding)
    y = lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision_of(kernel.dtype),
    )
    return y.astype(x.dtype)


def _single_channel_convolution(
    x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """One input channel: a few shifted multiples, which on CPU take a tenth of XLA's convolution's time."""
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    taps = kernel[:, :, 0].astype(x.dtype)
    return sum(x[:, i : i + rows, j : j + columns] * taps[i, j] for i in range(height) for j in range(width))


def batched_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Activation times activation: a (..., M, K), b (..., K, N) -> (..., M, N), summed in float32, in a's type."""
    return jnp.matmul(a, b, precision=precision_of(a.dtype), preferred_element_type=jnp.float32).astype(a.dtype)
