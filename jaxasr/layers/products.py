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


def batched_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Activation times activation: a (..., M, K), b (..., K, N) -> (..., M, N), summed in float32, in a's type."""
    return jnp.matmul(a, b, precision=precision_of(a.dtype), preferred_element_type=jnp.float32).astype(a.dtype)
