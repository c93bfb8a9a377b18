"""The classifier of a detector: the probability of speech, frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.heads.configs import ClassifierConfig
from jaxasr.layers.linear import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Classifier(nnx.Module):
    """Encoded frames (B, T, D) to the probability of speech in each (B, T) float32."""

    def __init__(self, config: ClassifierConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = [*([encoder_dim] * (config.layers - 1)), config.classes]
        self.layers = nnx.List([Linear(encoder_dim, width, rngs=rngs) for width in widths])

    def __call__(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        for layer in self.layers[:-1]:
            encoded = jax.nn.relu(layer(encoded))
        shares = jax.nn.softmax(self.layers[-1](encoded).astype(jnp.float32), axis=-1)
        speech = [number not in self.config.nonspeech for number in range(self.config.classes)]
        return jnp.where(jnp.array(speech), shares, 0).sum(-1)
