"""A blank that is not 0: the same model with two ids exchanged says the same, in every search and loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import Golden, abstract_model, quick_jit
from jaxasr import store
from jaxasr.model_config import ModelConfig
from jaxasr.search import BeamConfig, GreedyConfig, JointConfig, SearchConfig
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.training.objective import HEAD_LOSSES, Targets
from jaxasr.training.recipe import Recipe

BLANK = 7
SEARCHES: dict[str, SearchConfig] = {
    "transducer": GreedyConfig(),
    "ctc": GreedyConfig(head="ctc"),
    "beam": BeamConfig(),
    "joint": JointConfig(),
}


def exchanged(bundled: Golden) -> tuple[ModelConfig, dict[str, Any]]:
    """The bundled model in which the blank has the id of another token, and that token the blank's."""
    config = bundled.config
    assert config.transducer is not None and config.ctc is not None and config.transducer.blank_id == 0
    order = np.arange(config.vocabulary_size)
    order[[0, BLANK]] = BLANK, 0
    arrays = store.flatten(bundled.params)
    for path in ("transducer.output.kernel", "transducer.output.bias", "ctc.output.kernel", "ctc.output.bias"):
        arrays[path] = jnp.asarray(arrays[path])[..., order]
    arrays["transducer.predictor.embedding"] = jnp.asarray(arrays["transducer.predictor.embedding"])[order]
    elsewhere = dataclasses.replace(
        config,
        transducer=dataclasses.replace(config.transducer, blank_id=BLANK),
        ctc=dataclasses.replace(config.ctc, blank_id=BLANK),
    )
    return elsewhere, store.unflatten(arrays)


def swapped(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == 0, BLANK, np.where(ids == BLANK, 0, ids))


@pytest.fixture(scope="module")
def encoded(bundled: Golden) -> tuple[jax.Array, jax.Array]:
    """Frames (3, 20, D) that make the random weights speak, and their lengths."""
    width = bundled.config.encoder.output_dim
    frames = np.random.default_rng(3).normal(size=(3, 20, width)).astype(np.float32) * 3
    return jnp.asarray(frames), jnp.array([20, 13, 1], jnp.int32)


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search(bundled: Golden, encoded: tuple[jax.Array, jax.Array], search: str) -> None:
    def run(config: ModelConfig, params: dict[str, Any]) -> Hypotheses:
        model = abstract_model(config)
        found = quick_jit(lambda params, *frames: model.fill(params).search(*frames, SEARCHES[search], 0.5))
        result: Hypotheses = jax.device_get(found(params, *encoded))
        return result

    plain, moved = run(bundled.config, bundled.params), run(*exchanged(bundled))
    np.testing.assert_array_equal(moved.length, plain.length)
    assert plain.length[:, 0].sum() > 5, "a model that says nothing proves nothing"
    for row, count in np.ndenumerate(plain.length):
        np.testing.assert_array_equal(moved.tokens[row][:count], swapped(plain.tokens[row][:count]))
        np.testing.assert_array_equal(moved.frames[row][:count], plain.frames[row][:count])
        np.testing.assert_allclose(moved.log_probs[row][:count], plain.log_probs[row][:count], atol=1e-4)
        assert BLANK not in moved.tokens[row][:count]


@pytest.mark.parametrize("role", ["transducer", "ctc"])  # the loss of a parallel head knows no blank
def test_every_loss(bundled: Golden, encoded: tuple[jax.Array, jax.Array], role: str) -> None:
    labels = np.array([[5, BLANK, BLANK, 9], [BLANK, 11, 0, 0], [0, 0, 0, 0]], np.int32)
    counts = jnp.array([4, 2, 0], jnp.int32)

    def run(config: ModelConfig, params: dict[str, Any], labels: np.ndarray) -> np.ndarray:
        def loss(params: dict[str, Any]) -> jax.Array:
            head = getattr(abstract_model(config).fill(params), role)
            return HEAD_LOSSES[role](head, Targets(*encoded, jnp.asarray(labels), counts), Recipe(steps=1))

        return np.asarray(quick_jit(loss)(params))

    plain = run(bundled.config, bundled.params, labels)
    # The rest of a row is padding, which stays 0 and now is the id of a token.
    moved = np.where(np.arange(4) < np.asarray(counts)[:, None], swapped(labels), 0)
    np.testing.assert_allclose(run(*exchanged(bundled), moved), plain, rtol=1e-5)
    assert np.isfinite(plain).all() and (plain > 0).all()
