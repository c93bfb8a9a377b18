"""Operand types, accumulation and precision of the products with weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers.products import (
    batched_product,
    convolution_product,
    depthwise_product,
    embed,
    grouped_product,
    linear_product,
)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


@pytest.mark.parametrize(("strides", "padding"), [((1, 1), ((0, 0), (1, 1))), ((2, 2), ((2, 1), (1, 1)))])
def test_the_convolution_of_one_channel_and_its_gradients(
    strides: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """Against XLA's own convolution, which the same product takes for two channels, one of them empty."""
    x, kernel = random(2, 2, 7, 6, 1), random(3, 3, 3, 1, 4)
    twice = [np.concatenate([each, np.zeros_like(each)], axis) for each, axis in ((x, 3), (kernel, 2))]
    y = convolution_product(*map(jnp.asarray, twice), strides, padding)
    np.testing.assert_allclose(convolution_product(jnp.asarray(x), jnp.asarray(kernel), strides, padding), y, atol=1e-5)
    weights = random(4, *y.shape)

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(weights * convolution_product(x, kernel, strides, padding))

    made = jax.jit(jax.grad(total, (0, 1)))(x, kernel)
    expected = jax.grad(total, (0, 1))(*map(jnp.asarray, twice))
    np.testing.assert_allclose(made[0], expected[0][..., :1], atol=1e-5)
    np.testing.assert_allclose(made[1], expected[1][:, :, :1], atol=1e-5)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 31])  # fewer taps than one loop holds, as many, and more
def test_depthwise_over_time(width: int) -> None:
    x, kernel = random(0, 2, 40, 3), random(1, width, 1, 3)
    expected = np.stack([(x[:, t : t + width] * kernel[:, 0]).sum(axis=1) for t in range(40 - width + 1)], axis=1)
    np.testing.assert_allclose(jax.jit(depthwise_product)(x, kernel), expected, atol=1e-5)


def test_depthwise_over_time_and_frequency() -> None:
    x, kernel = random(2, 2, 9, 8, 3), random(3, 7, 5, 1, 3)
    expected = np.zeros((2, 3, 4, 3), np.float32)
    for i in range(3):
        for j in range(4):
            expected[:, i, j] = (x[:, i : i + 7, j : j + 5] * kernel[:, :, 0]).sum(axis=(1, 2))
    np.testing.assert_allclose(jax.jit(depthwise_product)(x, kernel), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 9), (9, 8)])
def test_strided_depthwise_convolutions_and_their_gradients(size: tuple[int, int]) -> None:
    """Each stride's rows and columns of the whole product; gradients as those of it."""
    x, kernel = jnp.asarray(random(4, 2, *size, 3)), jnp.asarray(random(5, 3, 3, 1, 3))
    weights = random(6, 2, 3, 4, 3)

    def strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise_product(x, kernel, (3, 2))

    def chosen(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return depthwise_product(x, kernel)[:, ::3, ::2]

    expected = chosen(x, kernel)
    np.testing.assert_allclose(jax.jit(strided)(x, kernel), expected, atol=1e-6)
    rows, columns = expected.shape[1:3]

    def gradients(product: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.grad(lambda *inputs: jnp.sum(weights[:, :rows, :columns] * product(*inputs)), (0, 1))(x, kernel)

    for made, other in zip(gradients(strided), gradients(chosen), strict=True):
        np.testing.assert_allclose(made, other, atol=1e-5)


def test_each_backend_gets_the_form_that_is_fast_there() -> None:
    """Shifted sums on CPU and GPU, one native convolution on TPU: lowered for each, which needs none of them."""
    traced = jax.jit(depthwise_product).trace(jnp.zeros((1, 40, 8)), jnp.zeros((31, 1, 8)))
    lowered = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda", "tpu")}
    assert "stablehlo.convolution" not in lowered["cpu"]
    assert "stablehlo.convolution" not in lowered["cuda"]
    assert "stablehlo.convolution" in lowered["tpu"]
    assert "HIGHEST" in lowered["tpu"]


@pytest.mark.parametrize(("width", "inputs", "outputs"), [(1, 4, 4), (2, 4, 4), (3, 2, 5)])
@pytest.mark.parametrize("weights", [jnp.float32, jnp.bfloat16])
def test_groups_of_channels(width: int, inputs: int, outputs: int, weights: type) -> None:
    groups = 3
    steps, kernel = random(0, width, 2, groups * inputs), random(1, width, inputs, groups * outputs)
    kernel = np.asarray(jnp.asarray(kernel, weights).astype(jnp.float32))
    expected = np.zeros((2, groups * outputs))
    for out in range(groups * outputs):
        group = slice(out // outputs * inputs, (out // outputs + 1) * inputs)
        expected[:, out] = (steps[:, :, group] * kernel[:, None, :, out]).sum(axis=(0, 2))
    made = grouped_product(list(jnp.asarray(steps)), jnp.asarray(kernel, weights))
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_rows_of_a_table_keep_its_type() -> None:
    table = jnp.asarray(random(2, 5, 3), jnp.bfloat16)
    rows = embed(table, jnp.array([[4, 0], [1, 1]], jnp.int32))
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, np.asarray(table)[[[4, 0], [1, 1]]])
