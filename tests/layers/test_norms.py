from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.layers.norms import BiasNorm


def test_the_bias_enters_the_statistic_only() -> None:
    norm = BiasNorm(6, rngs=nnx.Rngs(0))
    norm.bias[...] = jnp.array([0.5, -1.0, 2.0, 0.0, 0.25, -3.0])
    norm.log_scale[...] = jnp.float32(0.7)
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    rms = np.sqrt(np.square(x - np.asarray(norm.bias[...])).mean(axis=-1, keepdims=True))
    np.testing.assert_allclose(norm(x), x / rms * np.exp(np.float32(0.7)), rtol=1e-5)
    np.testing.assert_array_equal(norm(jnp.zeros((1, 6))), np.zeros((1, 6)))


def test_there_is_no_epsilon() -> None:
    norm = BiasNorm(4, rngs=nnx.Rngs(0))
    norm.bias[...] = jnp.zeros(4)
    x = np.array([[1e-12, -1e-12, 2e-12, 1e-12]], np.float32)
    np.testing.assert_allclose(np.square(norm(x)).mean(), 1.0, rtol=1e-5)


def test_statistics_of_narrow_types_are_taken_in_float32() -> None:
    norm = BiasNorm(4, rngs=nnx.Rngs(0))
    x = jnp.array([[300.0, -300.0, 300.0, 300.0]], jnp.float16)  # 300² is beyond float16
    y = norm(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.abs(np.asarray(y, np.float32)), 1.0, atol=1e-3)
