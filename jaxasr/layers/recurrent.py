"""Recurrent layers: a step at a time, for searches, and whole sequences, for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxasr.layers.linear import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class LSTMState(NamedTuple):
    """What an LSTM layer remembers of each row: its output (B, H) and its cells (B, H)."""

    hidden: Float[Array, "B H"]
    cells: Float[Array, "B H"]


class LSTMLayer(nnx.Module):
    """One long short-term memory layer; kernels (in, 4 H) and (H, 4 H), one bias (4 H,).

    The four gates stand side by side in the order of PyTorch: input, forget, cell, output. PyTorch's two biases are one
    here, their sum. Source: Hochreiter and Schmidhuber, 1997; Gers et al., 2000, for the forget gate; torch.nn.LSTM.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        self.out_features = out_features
        self.input = Linear(in_features, 4 * out_features, rngs=rngs)
        self.recurrent = Linear(out_features, 4 * out_features, use_bias=False, rngs=rngs)

    def start(self, batch: int, dtype: jnp.dtype) -> LSTMState:
        """Nothing heard yet: zeros."""
        zeros = jnp.zeros((batch, self.out_features), dtype)
        return LSTMState(zeros, zeros)

    def step(self, state: LSTMState, x: Float[Array, "B in"]) -> LSTMState:
        """x (B, in) -> the state after it, whose `hidden` is the output."""
        return self._gates(state, self.input(x))

    def __call__(self, x: Float[Array, "B T in"]) -> Float[Array, "B T H"]:
        """x (B, T, in) from the zero state on -> the outputs (B, T, H)."""

        def step(state: LSTMState, inputs: Float[Array, "B gates"]) -> tuple[LSTMState, Float[Array, "B H"]]:
            after = self._gates(state, inputs)
            return after, after.hidden

        inputs = self.input(x).swapaxes(0, 1)  # (T, B, 4 H), all frames in one product
        _, outputs = lax.scan(step, self.start(x.shape[0], x.dtype), inputs)
        return outputs.swapaxes(0, 1)

    def _gates(self, state: LSTMState, inputs: Float[Array, "B gates"]) -> LSTMState:
        gates = inputs + self.recurrent(state.hidden)
        entering, kept, candidate, shown = jnp.split(gates, 4, axis=-1)
        cells = jax.nn.sigmoid(kept) * state.cells + jax.nn.sigmoid(entering) * jnp.tanh(candidate)
        return LSTMState(jax.nn.sigmoid(shown) * jnp.tanh(cells), cells)
