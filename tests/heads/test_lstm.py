from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxasr.heads.lstm import LSTMPredictor
from jaxasr.heads.lstm_config import LSTMConfig
from jaxasr.heads.transducer import Transducer, TransducerConfig
from jaxasr.training.losses import transducer_loss
from random_modules import build, random_module

VOCABULARY, BLANK, ENCODER = 11, 10, 5
CONFIG = TransducerConfig(VOCABULARY, LSTMConfig(dim=6, layers=2), 7, blank_id=BLANK, activation="relu", max_symbols=4)


def test_the_start_is_a_vector_of_zeros_heard_once() -> None:
    module = build(LSTMPredictor, CONFIG.predictor, VOCABULARY, BLANK)
    assert np.abs(module.embedding[...][BLANK]).max() > 0  # as after a training that did not keep the row at zero
    state, output = module.start(3)
    x = jnp.zeros((3, 6))
    for layer, (hidden, cells) in zip(module.layers, state, strict=True):
        expected = layer.step(layer.start(3, jnp.dtype("float32")), x)
        np.testing.assert_array_equal(hidden, expected.hidden)
        np.testing.assert_array_equal(cells, expected.cells)
        x = hidden
    np.testing.assert_array_equal(output, x)
    assert np.abs(output).max() > 0


def test_it_may_begin_with_the_blanks_row() -> None:
    module = build(LSTMPredictor, LSTMConfig(dim=6, begin="blank"), VOCABULARY, BLANK)
    (layer,) = module.layers
    row = jnp.broadcast_to(module.embedding[...][BLANK], (2, 6))
    expected = layer.step(layer.start(2, jnp.dtype("float32")), row)
    _, output = module.start(2)
    np.testing.assert_array_equal(output, expected.hidden)
    np.testing.assert_allclose(module(np.zeros((2, 0), np.int32))[:, 0], output, atol=1e-6)


def test_a_new_table_has_zeros_for_the_blank() -> None:
    table = LSTMPredictor(LSTMConfig(dim=6), VOCABULARY, BLANK, rngs=nnx.Rngs(0)).embedding[...]
    np.testing.assert_array_equal(table[BLANK], 0)
    assert (np.abs(table[:BLANK]).max(axis=1) > 0).all()


def test_all_labels_at_once_are_what_steps_give() -> None:
    """A search says token after token, training gives all of a text."""
    module = build(LSTMPredictor, CONFIG.predictor, VOCABULARY, BLANK)
    labels = np.array([[3, 3, 9, 0], [7, 1, 2, 4]], np.int32)
    state, output = module.start(2)
    outputs = [output]
    for column in labels.T:
        state, output = module.step(state, column)
        outputs.append(output)
    np.testing.assert_allclose(module(labels), np.stack(outputs, axis=1), atol=1e-6)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))  # rows of a search can be swapped


@pytest.mark.parametrize(("activation", "written"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)])
def test_the_joiners_activation(activation: Any, written: Any) -> None:
    config = TransducerConfig(VOCABULARY, LSTMConfig(dim=6), 7, blank_id=BLANK, activation=activation)
    module = build(Transducer, config, ENCODER)
    projected, predicted = np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
    expected = written(projected + predicted) @ np.asarray(module.output.kernel[...]) + module.output.bias[...]
    np.testing.assert_allclose(module.combine(projected, predicted), expected, atol=1e-5)


def test_the_transducer_loss_reaches_every_parameter() -> None:
    graph, state = random_module(lambda rngs: Transducer(CONFIG, ENCODER, rngs=rngs))
    rng = np.random.default_rng(1)
    encoded = rng.standard_normal((2, 4, ENCODER)).astype(np.float32)
    labels, lengths = rng.integers(0, BLANK, (2, 3)).astype(np.int32), np.array([3, 2], np.int32)

    def loss(state: Any) -> jax.Array:
        head = nnx.merge(graph, state)
        projected, predicted = head.project(encoded), head.predict(labels)
        return transducer_loss(
            head.combine, projected, predicted, labels, np.array([4, 3]), lengths, blank_id=BLANK
        ).sum()

    gradients = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, state))
    for path, leaf in nnx.to_flat_state(gradients):
        gradient = np.asarray(leaf[...])
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("change", [{"dim": 0}, {"layers": 0}])
def test_what_a_predictor_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="dim and layers must be positive"):
        LSTMConfig(**change)


def test_a_frame_emits_one_token_at_least() -> None:
    with pytest.raises(ValueError, match="max_symbols must be positive"):
        TransducerConfig(VOCABULARY, max_symbols=0)
