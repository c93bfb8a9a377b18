from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.layers.linear import Linear


def test_product_and_bias() -> None:
    linear = Linear(3, 5, rngs=nnx.Rngs(0))
    linear.bias[...] = jnp.arange(5.0)
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(linear(x), x @ np.asarray(linear.kernel[...]) + np.arange(5), atol=1e-6)


def test_without_bias() -> None:
    linear = Linear(3, 5, use_bias=False, rngs=nnx.Rngs(0))
    assert "bias" not in nnx.to_pure_dict(nnx.state(linear))
    np.testing.assert_array_equal(linear(jnp.zeros((1, 3))), np.zeros((1, 5)))
