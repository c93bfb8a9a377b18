"""Operand types, accumulation and precision of the products with weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers.products import batched_product, convolution_product, linear_product


@pytest.mark.parametrize("weights", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("activations", [jnp.float32, jnp.bfloat16])
def test_the_kernels_type_decides_and_the_activations_type_returns(weights: type, activations: type) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 7, 64)), activations)
    kernel = jnp.asarray(rng.standard_normal((64, 9)), weights)
    bias = jnp.asarray(rng.standard_normal(9), jnp.float32)
    made = linear_product(x, kernel, bias)
    assert made.dtype == activations
    exact = np.asarray(x.astype(weights), np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias)
    # Operands are rounded once, to the kernel's type; sums are float32, and only the result is rounded again.
    rounding = 2.0**-8 if activations == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(np.asarray(made, np.float64), exact, rtol=rounding, atol=2e-5)


def test_sums_are_kept_in_float32() -> None:
    """4096 ones and a half: bfloat16 sums would stop at 256."""
    x, kernel = jnp.full((1, 4096), 1.0, jnp.bfloat16), jnp.full((4096, 1), 1.0, jnp.bfloat16)
    assert float(linear_product(x, kernel)[0, 0]) == 4096
    assert float(batched_product(x[None], kernel[None])[0, 0, 0]) == 4096


def test_float32_asks_for_true_float32_on_every_device() -> None:
    """Without it a GPU or TPU multiplies float32 in a narrower type."""
    x, kernel = jnp.zeros((2, 4)), jnp.zeros((4, 3))
    images, filters = jnp.zeros((1, 5, 5, 2)), jnp.zeros((3, 3, 2, 4))
    text = "".join(
        [
            jax.jit(linear_product).lower(x, kernel).as_text(),
            jax.jit(batched_product).lower(x[None], kernel[None]).as_text(),
            jax.jit(lambda a, b: convolution_product(a, b, (1, 1), ((0, 0), (0, 0)))).lower(images, filters).as_text(),
        ]
    )
    assert text.count("HIGHEST") == 6  # two operands of three products
    narrow = jax.jit(linear_product).lower(x, kernel.astype(jnp.bfloat16)).as_text()
    assert "HIGHEST" not in narrow and "tensor<4x3xbf16>" in narrow


def test_batches_of_products() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 4, 5)).astype(np.float32), rng.standard_normal((2, 3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(batched_product(jnp.asarray(a), jnp.asarray(b)), a @ b, atol=1e-5)


def test_gradients_of_the_convolution_of_one_channel() -> None:
    """Against those of XLA's own convolution, which the same product takes for two channels, one of them empty."""
    rng = np.random.default_rng(2)
    x, kernel = (
        rng.standard_normal((2, 7, 6, 1)).astype(np.float32),
        rng.standard_normal((3, 3, 1, 4)).astype(np.float32),
    )
    weights = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(weights * convolution_product(x, kernel, (1, 1), ((0, 0), (1, 1))))

    made = jax.jit(jax.grad(total, (0, 1)))(x, kernel)
    twice = [np.concatenate([each, np.zeros_like(each)], axis) for each, axis in ((x, 3), (kernel, 2))]
    expected = jax.grad(total, (0, 1))(*map(jnp.asarray, twice))
    np.testing.assert_allclose(made[0], expected[0][..., :1], atol=1e-5)
    np.testing.assert_allclose(made[1], expected[1][:, :, :1], atol=1e-5)
