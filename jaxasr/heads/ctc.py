"""The CTC head: log-probabilities of tokens and blank, frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.heads.configs import CTCConfig
from jaxasr.layers.linear import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class CTC(nnx.Module):
    """Encoded frames (B, T, D) to log-probabilities (B, T, vocabulary) float32."""

    def __init__(self, config: CTCConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.output = Linear(encoder_dim, config.vocabulary_size, rngs=rngs)

    @property
    def blank_id(self) -> int:
        """The id of the blank."""
        return self.config.blank_id

    @property
    def vocabulary_size(self) -> int:
        """Ids that the head emits, blank included."""
        return self.config.vocabulary_size

    @property
    def token_frames(self) -> str:
        """own or previous: the frame that a search gives a token."""
        return self.config.token_frames

    def __call__(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return jax.nn.log_softmax(self.output(encoded).astype(jnp.float32), axis=-1)
