from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.heads.configs import CTCConfig
from jaxasr.heads.ctc import CTC
from random_modules import random_module


def test_log_probabilities() -> None:
    graph, state = random_module(lambda rngs: CTC(CTCConfig(7), 5, rngs=rngs))
    module = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    encoded = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32) * 20
    logits = encoded @ np.asarray(module.output.kernel[...]) + np.asarray(module.output.bias[...])
    logits = logits.astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(module(encoded), expected, atol=2e-5)
    narrow = module(encoded.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(narrow).sum(axis=-1), 1, atol=1e-5)
