"""The CTC head: log-probabilities of tokens and blank, frame by frame, and of whole texts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.layers.linear import Linear


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """Size of a CTC head; the vocabulary includes the blank."""

    vocabulary_size: int
    blank_id: int = 0


class CTC(nnx.Module):
    """Encoded frames (B, T, D) to log-probabilities (B, T, vocabulary) float32."""

    def __init__(self, config: CTCConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.output = Linear(encoder_dim, config.vocabulary_size, rngs=rngs)

    def __call__(self, encoded: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(self.output(encoded).astype(jnp.float32), axis=-1)


def ctc_loss(
    log_probs: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    blank_id: int = 0,
) -> jax.Array:
    """Minus the log-likelihood of each text: log_probs (B, T, V), labels (B, U), lengths (B,) -> (B,) float32, in nats.

    Padding changes nothing, also where it is NaN. A text that is too long for its frames costs about 1e5, optax'
    logarithm of nothing.
    """
    log_probs = zero_beyond(log_probs.astype(jnp.float32), frame_lengths)
    labels = zero_beyond(labels, label_lengths)
    frame_padding = 1.0 - length_mask(frame_lengths, log_probs.shape[1]).astype(jnp.float32)
    label_padding = 1.0 - length_mask(label_lengths, labels.shape[1]).astype(jnp.float32)
    # Optax picks log-probabilities by a product with ones and zeros, which accelerators would round to bfloat16.
    with jax.default_matmul_precision("highest"):
        return optax.ctc_loss(log_probs, frame_padding, labels, label_padding, blank_id=blank_id)
