from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from jaxasr.configuration import from_mapping
from jaxasr.errors import ConfigError
from jaxasr.heads.classifier import Classifier
from jaxasr.heads.configs import ClassifierConfig
from random_modules import random_module


@pytest.mark.parametrize("layers", [1, 2])
def test_all_classes_but_those_of_no_speech(layers: int) -> None:
    config = ClassifierConfig(classes=4, nonspeech=(0, 2), layers=layers)
    graph, state = random_module(lambda rngs: Classifier(config, 5, rngs=rngs))
    module = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    encoded = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    values = encoded.astype(np.float64)
    for number, layer in enumerate(module.layers):
        values = np.maximum(values, 0) if number else values
        values = values @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    expected = scipy.special.softmax(values, axis=-1)[..., [1, 3]].sum(-1)
    np.testing.assert_allclose(module(encoded), expected, atol=1e-5)
    assert module(encoded.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"layers": 0}, "layers must be positive"),
        ({"classes": 2, "nonspeech": [0, 1]}, "nonspeech must hold some of the 2 classes and not all"),
        ({"classes": 2, "nonspeech": []}, "nonspeech must hold some"),
        ({"classes": 2, "nonspeech": [2]}, "nonspeech must hold some"),
    ],
)
def test_impossible_sizes(mapping: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_mapping(ClassifierConfig, mapping, "classifier")
