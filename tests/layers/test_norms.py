from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.layers.norms import BatchNorm, LayerNorm


def test_layer_norm() -> None:
    module = LayerNorm(6, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = jnp.arange(6.0), jnp.arange(6.0, 12.0)
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32) * 3 + 1
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(module(x), normal * np.arange(6) + np.arange(6, 12), atol=1e-5)
    assert module(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_batch_norm_by_stored_statistics() -> None:
    module = BatchNorm(3, 1e-3, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = jnp.array([1.0, 2, 3]), jnp.array([4.0, 5, 6])
    module.mean[...], module.variance[...] = jnp.array([0.5, -1, 2]), jnp.array([4.0, 0.25, 1])
    x = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)
    normal = (x - np.array([0.5, -1, 2])) / np.sqrt(np.array([4, 0.25, 1]) + 1e-3)
    np.testing.assert_allclose(module(x), normal * np.array([1, 2, 3]) + np.array([4, 5, 6]), atol=1e-5)
