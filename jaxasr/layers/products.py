"""The one door for products with a weight: operand types, accumulation and precision are decided here and nowhere else.

The type of a kernel decides how it is multiplied: the activation is cast to it, sums are kept in float32, and the
result returns in the activation's type. So bfloat16 kernels run as bfloat16 products whether the activations around
them are bfloat16 (GPU, TPU) or float32 (CPU, where narrow element-wise arithmetic is slow).
"""

from __future__ import annotations

import functools

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _single_channel_convolution(
    x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """One input channel: a few shifted multiples, which on CPU take a tenth of XLA's convolution's time."""
    taps = kernel[:, :, 0].astype(x.dtype)
    windows = _windows(x, taps.shape[:2], padding)
    return sum(windows[tap] * taps[tap] for tap in windows)


def _single_channel_forward(
    x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _single_channel_convolution(x, kernel, padding), (x, kernel)


def _single_channel_backward(
    padding: tuple[tuple[int, int], tuple[int, int]], saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A product each, where the transposed program would keep every shifted copy of x in all channels."""
    x, kernel = saved
    taps = kernel[:, :, 0].astype(dy.dtype)
    flat = dy.reshape(-1, dy.shape[-1])
    windows, back = jax.vjp(lambda x: jnp.stack(list(_windows(x, taps.shape[:2], padding).values())), x)
    dkernel = batched_product(windows.reshape(len(windows), -1).astype(dy.dtype), flat)
    dwindows = batched_product(taps.reshape(len(windows), -1), flat.T)
    (dx,) = back(dwindows.reshape(windows.shape).astype(x.dtype))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


_single_channel_convolution.defvjp(_single_channel_forward, _single_channel_backward)


def _windows(
    x: jax.Array, size: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> dict[tuple[int, int], jax.Array]:
    """What each tap of a kernel of this size is multiplied by: x (B, H, W, C), padded, from that row and column on."""
    height, width = size
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    return {(i, j): x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)}


def batched_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Activation times activation: a (..., M, K), b (..., K, N) -> (..., M, N), summed in float32, in a's type."""
    return jnp.matmul(a, b, precision=precision_of(a.dtype), preferred_element_type=jnp.float32).astype(a.dtype)
