from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxasr.layers.recurrent import LSTMLayer
from random_modules import build

WIDTH, HIDDEN = 3, 4


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def written_out(layer: LSTMLayer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One sequence (T, in), gate by gate: outputs (T, H), and the last cells (H,)."""
    into, bias = np.asarray(layer.input.kernel[...]), np.asarray(layer.input.bias[...])
    again = np.asarray(layer.recurrent.kernel[...])
    hidden = cells = np.zeros(HIDDEN)
    outputs = []
    for frame in x:
        gates = [
            frame @ into[:, gate] + bias[gate] + hidden @ again[:, gate]
            for gate in (slice(k * HIDDEN, (k + 1) * HIDDEN) for k in range(4))
        ]
        cells = sigmoid(gates[1]) * cells + sigmoid(gates[0]) * np.tanh(gates[2])
        hidden = sigmoid(gates[3]) * np.tanh(cells)
        outputs.append(hidden)
    return np.stack(outputs), cells


def test_steps_and_sequences_are_the_formula() -> None:
    layer = build(LSTMLayer, WIDTH, HIDDEN)
    x = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)
    state = layer.start(2, jnp.dtype("float32"))
    steps = []
    for frame in range(5):
        state = layer.step(state, x[:, frame])
        steps.append(state.hidden)
    for row in range(2):
        outputs, cells = written_out(layer, x[row])
        np.testing.assert_allclose(np.stack(steps, axis=1)[row], outputs, atol=1e-6)
        np.testing.assert_allclose(layer(x)[row], outputs, atol=1e-6)
        np.testing.assert_allclose(state.cells[row], cells, atol=1e-6)
