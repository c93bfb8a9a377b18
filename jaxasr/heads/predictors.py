"""Predictors of transducers: what was said so far to a vector. Their table and protocol stand in heads/configs.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.heads.configs import StatelessConfig
from jaxasr.layers.products import embed, grouped_product

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# In a context, "no token yet": its embedding is a vector of zeros, not the blank's row.
NOTHING = -1


class StatelessPredictor(nnx.Module):
    """Embedding of the last tokens and, with two of them, a grouped convolution over both and a ReLU.

    The state is the context: (B, context_size) int32. Source: icefall, egs/librispeech/ASR/zipformer, decoder.py.
    """

    def __init__(self, config: StatelessConfig, vocabulary_size: int, blank_id: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.blank_id = config, blank_id
        dim = config.dim
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary_size, dim), jnp.float32) * 0.02)
        shape = (config.context_size, config.group_size, dim)  # (width, in / groups, out)
        kernel = jax.random.uniform(rngs.params(), shape, jnp.float32, -0.35, 0.35)
        self.kernel = nnx.Param(kernel) if config.context_size > 1 else None

    @property
    def length_offset(self) -> int:
        """icefall counts the blanks of the first context as tokens."""
        return self.config.context_size

    def start(self, batch: int) -> tuple[Int[Array, "{batch} context"], Float[Array, "{batch} P"]]:
        """Nothing said yet: contexts of [-1, ..., blank], and the output (B, P)."""
        context = jnp.full((batch, self.config.context_size), NOTHING, jnp.int32).at[:, -1].set(self.blank_id)
        return context, self.predict(context)

    def step(
        self, state: Int[Array, "B context"], tokens: Int[Array, " B"]
    ) -> tuple[Int[Array, "B context"], Float[Array, "B P"]]:
        """Append tokens (B,) to every row's context: a first token follows nothing, [-1, blank] becomes [blank, y]."""
        context = jnp.concatenate([state[:, 1:], tokens[:, None].astype(jnp.int32)], axis=1)
        return context, self.predict(context)

    def __call__(self, labels: Int[Array, "B U"]) -> Float[Array, "B U+1 P"]:
        """labels (B, U) -> (B, U + 1, P), all contexts in one call."""
        batch, count = labels.shape
        size = self.config.context_size
        nothing, _ = self.start(batch)
        history = jnp.concatenate([nothing, labels.astype(jnp.int32)], axis=1)  # (B, context_size + U)
        contexts = jnp.stack([history[:, k : k + count + 1] for k in range(size)], axis=-1)  # (B, U + 1, context_size)
        return self.predict(contexts.reshape(-1, size)).reshape(batch, count + 1, -1)

    def predict(self, context: Int[Array, "B context"]) -> Float[Array, "B P"]:
        """context (B, context_size) ids, -1 for no token -> (B, D)."""
        # Each token is embedded by itself: a reduction over the short context axis is ten times slower on CPU.
        embedded = [
            jnp.where(context[:, k, None] >= 0, embed(self.embedding[...], jnp.maximum(context[:, k], 0)), 0)
            for k in range(context.shape[1])
        ]
        if self.kernel is None:
            return embedded[0]
        return jax.nn.relu(grouped_product(embedded, self.kernel[...]))
