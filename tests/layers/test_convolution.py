from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxasr.layers.convolution import Conv2d, DepthwiseConv1d, DepthwiseConv2d
from jaxasr.layers.products import depthwise_product


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "strides", "padding"), [(1, (1, 1), (0, 1)), (1, (2, 2), (0, 0)), (4, (1, 2), (1, 0))]
)
def test_conv2d(channels: int, strides: tuple[int, int], padding: tuple[int, int]) -> None:
    """One channel without strides takes a way of its own, with the same result."""
    pads = ((padding[0], padding[0]), (padding[1], padding[1]))
    module = Conv2d(channels, 5, (3, 3), strides=strides, padding=pads, rngs=nnx.Rngs(0))
    module.bias[...] = jnp.arange(5.0)
    x = random(4, 2, 9, 10, channels)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    kernel = np.asarray(module.kernel[...])
    rows, columns = ((padded.shape[k + 1] - 3) // strides[k] + 1 for k in (0, 1))
    expected = np.zeros((2, rows, columns, 5), np.float32)
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * strides[0] : i * strides[0] + 3, j * strides[1] : j * strides[1] + 3]
            expected[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    np.testing.assert_allclose(module(x), expected + np.arange(5), atol=1e-5)


def test_modules_add_their_bias_and_keep_types() -> None:
    one = DepthwiseConv1d(3, 5, rngs=nnx.Rngs(0))
    two = DepthwiseConv2d(3, 3, 3, rngs=nnx.Rngs(0))
    one.bias[...] = two.bias[...] = jnp.array([1.0, 2.0, 3.0])
    x = random(5, 1, 6, 3)
    np.testing.assert_allclose(one(x), depthwise_product(x, one.kernel[...]) + one.bias[...], atol=1e-6)
    assert one(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    y = random(6, 1, 6, 6, 3)
    np.testing.assert_allclose(two(y), depthwise_product(y, two.kernel[...]) + two.bias[...], atol=1e-6)
    assert two(y.astype(jnp.float16)).dtype == jnp.float16
