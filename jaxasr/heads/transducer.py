"""The stateless transducer head: a predictor that sees the last tokens only, and a joiner.

Source: icefall, egs/librispeech/ASR/zipformer, decoder.py and joiner.py.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.layers.linear import Linear
from jaxasr.layers.products import embed, grouped_product

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# In a context, "no token yet": its embedding is a vector of zeros, not the blank's row.
NOTHING = -1


@dataclasses.dataclass(frozen=True)
class TransducerConfig:
    """Sizes of a stateless transducer head; `context_size` is the number of tokens that the predictor sees (1 or 2)."""

    vocabulary_size: int
    predictor_dim: int = 512
    joiner_dim: int = 512
    context_size: int = 2
    blank_id: int = 0

    def __post_init__(self) -> None:
        if self.context_size not in (1, 2):
            raise ValueError(f"context_size must be 1 or 2, not {self.context_size}")
        if self.predictor_dim % 4:
            raise ValueError("predictor_dim must be divisible by 4")


class Transducer(nnx.Module):
    """Predictor and joiner. The state is the projected predictor output of each row and the tokens it came from.

    A search calls `project` once on all encoded frames, then `initial_state`, `advance` and `join` in its loop.
    """

    def __init__(self, config: TransducerConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.predictor = StatelessPredictor(config, rngs=rngs)
        self.encoder_proj = Linear(encoder_dim, config.joiner_dim, rngs=rngs)
        self.predictor_proj = Linear(config.predictor_dim, config.joiner_dim, rngs=rngs)
        self.output = Linear(config.joiner_dim, config.vocabulary_size, rngs=rngs)

    @property
    def blank_id(self) -> int:
        return self.config.blank_id

    def project(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T J"]:
        """encoded (B, T, D) -> (B, T, J), projected to the joiner's width once for a whole search."""
        return self.encoder_proj(encoded)

    def initial_state(self, batch: int) -> tuple[Int[Array, "{batch} context"], Float[Array, "{batch} J"]]:
        """Before the first token: context ids (B, context_size) of [-1, ..., blank], the projected predictor (B, J)."""
        context = jnp.full((batch, self.config.context_size), NOTHING, jnp.int32).at[:, -1].set(self.config.blank_id)
        return context, self._predict(context)

    def advance(
        self, state: tuple[Int[Array, "B context"], Float[Array, "B J"]], tokens: Int[Array, " B"]
    ) -> tuple[Int[Array, "B context"], Float[Array, "B J"]]:
        """Append tokens (B,) to every row's context. A first token follows nothing: [-1, blank] becomes [blank, y]."""
        context = jnp.concatenate([state[0][:, 1:], tokens[:, None].astype(jnp.int32)], axis=1)
        return context, self._predict(context)

    def join(
        self, projected: Float[Array, "B J"], state: tuple[Int[Array, "B context"], Float[Array, "B J"]]
    ) -> Float[Array, "B V"]:
        """One frame of `project`, (B, J), with each row's state: logits (B, vocabulary) float32."""
        return self.combine(projected, state[1])

    def predict(self, labels: Int[Array, "B U"]) -> Float[Array, "B U+1 J"]:
        """The projected predictor after the first 0, 1, ..., U of labels (B, U), for training: (B, U + 1, J)."""
        batch, count = labels.shape
        nothing, _ = self.initial_state(batch)
        history = jnp.concatenate([nothing, labels.astype(jnp.int32)], axis=1)  # (B, context_size + U)
        size = self.config.context_size
        contexts = jnp.stack([history[:, k : k + count + 1] for k in range(size)], axis=-1)  # (B, U + 1, context_size)
        return self._predict(contexts.reshape(-1, size)).reshape(batch, count + 1, -1)

    def combine(
        self, projected: Float[Array, "*#batch J"], predicted: Float[Array, "*#batch J"]
    ) -> Float[Array, "... V"]:
        """The joiner on projected encoder and predictor (..., J), which may broadcast: logits (..., V) float32."""
        return self.output(jnp.tanh(projected + predicted)).astype(jnp.float32)

    def _predict(self, context: Int[Array, "B context"]) -> Float[Array, "B J"]:
        return self.predictor_proj(self.predictor(context))


class StatelessPredictor(nnx.Module):
    """Embedding of the last tokens and, with two of them, a grouped convolution over both and a ReLU."""

    def __init__(self, config: TransducerConfig, *, rngs: nnx.Rngs) -> None:
        dim = config.predictor_dim
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocabulary_size, dim), jnp.float32) * 0.02)
        # (width, in / groups, out) with dim / 4 groups of 4 channels each.
        kernel = jax.random.uniform(rngs.params(), (config.context_size, 4, dim), jnp.float32, -0.35, 0.35)
        self.kernel = nnx.Param(kernel) if config.context_size > 1 else None

    def __call__(self, context: Int[Array, "B context"]) -> Float[Array, "B D"]:
        """context (B, context_size) ids, -1 for no token -> (B, D)."""
        # Each token is embedded by itself: a reduction over the short context axis is ten times slower on CPU.
        embedded = [
            jnp.where(context[:, k, None] >= 0, embed(self.embedding[...], jnp.maximum(context[:, k], 0)), 0)
            for k in range(context.shape[1])
        ]
        if self.kernel is None:
            return embedded[0]
        return jax.nn.relu(grouped_product(embedded, self.kernel[...]))
