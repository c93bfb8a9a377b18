from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.layers.norms import BatchNorm, LayerNorm
from jaxasr.layers.repeated import run_layer

STATISTICS = {"mean": np.array([0.5, -1, 2]), "variance": np.array([4, 0.25, 1])}


def test_layer_norm() -> None:
    module = LayerNorm(6, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = jnp.arange(6.0), jnp.arange(6.0, 12.0)
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32) * 3 + 1
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(module(x), normal * np.arange(6) + np.arange(6, 12), atol=1e-5)
    assert module(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def batch_norm() -> BatchNorm:
    module = BatchNorm(3, 1e-3, rngs=nnx.Rngs(0))
    module.scale[...], module.bias[...] = jnp.array([1.0, 2, 3]), jnp.array([4.0, 5, 6])
    module.mean[...], module.variance[...] = (jnp.array(values, jnp.float32) for values in STATISTICS.values())
    return module


def normalized(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (x - mean) / np.sqrt(variance + 1e-3) * np.array([1, 2, 3]) + np.array([4, 5, 6])
    return scaled


def test_batch_norm_by_stored_statistics() -> None:
    module = batch_norm()
    x = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)
    expected = normalized(x, STATISTICS["mean"], STATISTICS["variance"])
    np.testing.assert_allclose(module(x, jnp.array([5, 2])), expected, atol=1e-5)
    for name, values in STATISTICS.items():
        np.testing.assert_array_equal(getattr(module, name)[...], values)


def test_batch_norm_in_training_by_the_frames_of_the_batch_that_exist() -> None:
    """Also through a layer that is traced once; torch.nn.BatchNorm1d's formulas, written out."""
    module = batch_norm()
    module.train()
    stored = dict(STATISTICS)
    generator = np.random.default_rng(2)
    for number, lengths in enumerate(([5, 2, 0], [1, 5, 4])):
        x = (generator.standard_normal((3, 5, 3)) * 2 - 1).astype(np.float32)
        exists = np.arange(5) < np.array(lengths)[:, None]
        given = np.where(exists[..., None], x, np.nan)
        y = run_layer(module, given, jnp.array(lengths)) if number else module(given, jnp.array(lengths))
        frames = x[exists].astype(np.float64)
        mean, count = frames.mean(0), len(frames)
        np.testing.assert_allclose(y[exists], normalized(x, mean, frames.var(0))[exists], atol=1e-4)
        stored["mean"] = 0.9 * stored["mean"] + 0.1 * mean
        stored["variance"] = 0.9 * stored["variance"] + 0.1 * frames.var(0) * count / (count - 1)
        for name, values in stored.items():
            np.testing.assert_allclose(getattr(module, name)[...], values, rtol=1e-5, err_msg=name)
    module(given, jnp.zeros(3, jnp.int32))  # no frame at all
    for name, values in stored.items():
        np.testing.assert_allclose(getattr(module, name)[...], values, rtol=1e-5, err_msg=name)


def test_a_layer_that_changes_nothing_is_not_written_to() -> None:
    """So that a module can be called within any trace; Flax refuses to write to what belongs to another one."""
    module = batch_norm()
    x, lengths = jnp.ones((1, 2, 3)), jnp.array([2])
    y = jax.jit(lambda x: run_layer(module, x, lengths))(x)
    np.testing.assert_allclose(y, module(x, lengths), atol=1e-6)
