"""The recurrent predictor of transducers: all that was said so far to a vector.

Source: Graves, 2012, arXiv 1211.3711, section 2.1; NVIDIA NeMo, nemo/collections/asr/modules/rnnt.py, RNNTDecoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.heads.lstm_config import LSTMConfig
from jaxasr.layers.products import embed
from jaxasr.layers.recurrent import LSTMLayer, LSTMState

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class LSTMPredictor(nnx.Module):
    """Embedding of the last token and LSTM layers over all of them; the state is a tuple of the layers' states.

    Before the first token the layers hear a vector of zeros, once, or the blank's row of the table: `begin` of the
    configuration. NeMo writes zeros into that row too. A search looks no blank up.
    """

    def __init__(self, config: LSTMConfig, vocabulary_size: int, blank_id: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.blank_id = config, blank_id
        table = jax.random.normal(rngs.params(), (vocabulary_size, config.dim), jnp.float32)
        self.embedding = nnx.Param(table.at[blank_id].set(0.0))
        self.layers = nnx.List([LSTMLayer(config.dim, config.dim, rngs=rngs) for _ in range(config.layers)])

    @property
    def length_offset(self) -> int:
        """NeMo counts the blank that its beam searches begin with."""
        return 1

    def start(self, batch: int) -> tuple[tuple[LSTMState, ...], Float[Array, "{batch} P"]]:
        """Nothing said yet: the states after what goes before the first token, and the output (B, P)."""
        nothing = self._nothing(batch)
        return self._step(tuple(layer.start(batch, nothing.dtype) for layer in self.layers), nothing)

    def step(
        self, state: tuple[LSTMState, ...], tokens: Int[Array, " B"]
    ) -> tuple[tuple[LSTMState, ...], Float[Array, "B P"]]:
        """tokens (B,) were said: the states after them, and the output (B, P)."""
        return self._step(state, embed(self.embedding[...], tokens))

    def __call__(self, labels: Int[Array, "B U"]) -> Float[Array, "B U+1 P"]:
        """labels (B, U) -> (B, U + 1, P), layer after layer."""
        x = jnp.concatenate([self._nothing(len(labels))[:, None], embed(self.embedding[...], labels)], axis=1)
        for layer in self.layers:
            x = layer(x)
        return x

    def _nothing(self, batch: int) -> Float[Array, "{batch} P"]:
        """What the layers hear before the first token."""
        blank = embed(self.embedding[...], jnp.full((batch,), self.blank_id, jnp.int32))
        return blank if self.config.begin == "blank" else jnp.zeros_like(blank)

    def _step(
        self, state: tuple[LSTMState, ...], x: Float[Array, "B P"]
    ) -> tuple[tuple[LSTMState, ...], Float[Array, "B P"]]:
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            after.append(layer.step(before, x))
            x = after[-1].hidden
        return tuple(after), x
