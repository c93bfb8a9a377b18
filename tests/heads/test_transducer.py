from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxasr.heads.configs import StatelessConfig, TransducerConfig
from jaxasr.heads.predictors import NOTHING
from jaxasr.heads.transducer import Transducer
from random_modules import random_module

VOCABULARY, DIM, JOINER, ENCODER = 11, 12, 7, 5


def head(context_size: int) -> tuple[Any, dict[str, np.ndarray]]:
    """The module, and its parameters by dotted path."""
    config = TransducerConfig(VOCABULARY, StatelessConfig(dim=DIM, context_size=context_size), JOINER)
    graph, state = random_module(lambda rngs: Transducer(config, ENCODER, rngs=rngs), seed=context_size)
    flat = {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graph, jax.tree.map(jnp.asarray, state)), flat


def embedded(parameters: dict[str, np.ndarray], token: int) -> np.ndarray:
    return parameters["predictor.embedding"][token] if token >= 0 else np.zeros(DIM, np.float32)


def predicted(parameters: dict[str, np.ndarray], context: list[int]) -> np.ndarray:
    """The stateless predictor written out: a convolution over two embeddings in groups of four channels, and a ReLU."""
    if len(context) == 1:
        return embedded(parameters, context[0])
    result = np.zeros(DIM, np.float32)
    for out in range(DIM):
        group = out // 4  # dim / 4 groups, each of four channels in and four out
        for tap, token in enumerate(context):
            for channel in range(4):
                weight = parameters["predictor.kernel"][tap, channel, out]
                result[out] += weight * embedded(parameters, token)[4 * group + channel]
    return np.maximum(result, 0)


@pytest.mark.parametrize("contexts", [[[NOTHING, 0], [0, 3], [3, 3], [7, 10]], [[0], [4], [10], [NOTHING]]])
def test_predictor(contexts: list[list[int]]) -> None:
    module, parameters = head(len(contexts[0]))
    expected = np.stack([predicted(parameters, context) for context in contexts])
    np.testing.assert_allclose(module.predictor.predict(jnp.array(contexts)), expected, atol=1e-5)


def test_nothing_is_a_vector_of_zeros_and_not_the_blanks_row() -> None:
    module, parameters = head(2)
    nothing, blank = module.predictor.predict(jnp.array([[NOTHING, 0], [0, 0]]))
    assert np.abs(nothing - blank).max() > 1e-3
    assert np.abs(parameters["predictor.embedding"][0]).max() > 0


def test_one_token_of_context_has_no_convolution() -> None:
    _, parameters = head(1)
    assert "predictor.kernel" not in parameters


def test_a_search_begins_with_nothing_and_blank() -> None:
    module, _ = head(2)
    state = module.initial_state(3)
    np.testing.assert_array_equal(state[0], [[NOTHING, 0]] * 3)
    state = module.advance(state, jnp.array([4, 5, 6]))
    np.testing.assert_array_equal(state[0], [[0, 4], [0, 5], [0, 6]])
    state = module.advance(state, jnp.array([7, 8, 9]))
    np.testing.assert_array_equal(state[0], [[4, 7], [5, 8], [6, 9]])
    one, _ = head(1)
    np.testing.assert_array_equal(one.initial_state(2)[0], [[0], [0]])


def test_joiner() -> None:
    module, parameters = head(2)
    encoded = np.random.default_rng(0).standard_normal((2, 3, ENCODER)).astype(np.float32)
    projected = module.project(encoded)
    expected = encoded @ parameters["encoder_proj.kernel"] + parameters["encoder_proj.bias"]
    np.testing.assert_allclose(projected, expected, atol=1e-5)
    state = module.advance(module.initial_state(2), jnp.array([3, 9]))
    logits = module.join(projected[:, 1], state)
    prediction = np.stack([predicted(parameters, [0, 3]), predicted(parameters, [0, 9])])
    prediction = prediction @ parameters["predictor_proj.kernel"] + parameters["predictor_proj.bias"]
    hidden = np.tanh(expected[:, 1] + prediction)
    np.testing.assert_allclose(logits, hidden @ parameters["output.kernel"] + parameters["output.bias"], atol=1e-5)
    narrow = module.join(projected[:, 1].astype(jnp.bfloat16), (state[0], state[1].astype(jnp.bfloat16)))
    assert narrow.dtype == jnp.float32  # the search's softmax is taken in float32 whatever the network runs in


@pytest.mark.parametrize(("change", "named"), [({"context_size": 3}, "context_size"), ({"dim": 10}, "dim")])
def test_what_a_predictor_cannot_be_is_refused(change: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StatelessConfig(**{"dim": DIM, **change})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blank_id": VOCABULARY}, "blank_id"),
        ({"silent_ids": (-1,)}, "silent_ids"),
        ({"durations": (0,)}, "durations"),
        ({"durations": (2, -1)}, "durations"),
    ],
)
def test_what_a_head_cannot_be_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TransducerConfig(VOCABULARY, **change)


def test_durations_are_further_outputs_of_the_joiner() -> None:
    config = TransducerConfig(VOCABULARY, StatelessConfig(dim=DIM), JOINER, durations=(0, 1, 2))
    graph, state = random_module(lambda rngs: Transducer(config, ENCODER, rngs=rngs))
    module = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    logits = module.join(module.project(jnp.ones((2, 1, ENCODER)))[:, 0], module.initial_state(2))
    assert logits.shape == (2, VOCABULARY + 3)
