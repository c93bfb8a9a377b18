"""The SAN-M encoder: self-attention with a memory over neighbouring frames (Gao et al., 2020, arXiv 2006.01713).

As FunASR runs it in Paraformers (models/sanm/encoder.py): the features are scaled, position-coded and handed to the
first layer, which maps them to the model's width. A batch gives what its single utterances give.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.arrays import length_mask
from jaxasr.encoders.sanm_config import SanmConfig
from jaxasr.layers.attention import attend
from jaxasr.layers.dropout import Dropout, no_dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.memory import Memory
from jaxasr.layers.norms import LayerNorm
from jaxasr.layers.repeated import run_layer

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

EPSILON = 1e-12  # of all norms


class Sanm(nnx.Module):
    """Feature frames (B, T, F) to encoded frames (B, T, D)."""

    def __init__(self, config: SanmConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = [config.input_dim] + [config.dim] * (config.num_layers - 1)
        self.layers = nnx.List([Layer(config, width, number > 0, rngs=rngs) for number, width in enumerate(widths)])
        self.norm = LayerNorm(config.dim, EPSILON, rngs=rngs)

    def __call__(
        self, frames: Float[Array, "B T F"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "B _ D"], Int[Array, " B"]]:
        """frames (B, T, F), lengths (B,) in frames -> encoded (B, config.encoded_length(T), D), lengths (B,).

        `dropout` is for training: it acts on what each module adds to its layer's residual stream.
        """
        x, mask = self.placed(frames), length_mask(lengths, frames.shape[1])
        sees = mask[:, None]
        if self.config.chunks is not None:
            x = self.config.chunks.split(x, lengths)
            lengths = self.config.chunks.length(lengths)
            mask = length_mask(lengths, x.shape[1]) & self.config.chunks.inside(x.shape[1])
            sees = mask[:, None] & self.config.chunks.encoder_mask(x.shape[1])
        for index, layer in enumerate(self.layers):
            own = dropout.within(index) if dropout else None
            x = run_layer(layer, x, mask, sees, own)
        return self.norm(x), lengths

    def placed(self, frames: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        """The first layer's input: frames (B, T, F) times sqrt(dim), plus the codes of their places."""
        codes = positions(frames.shape[1], frames.shape[2])
        return frames * math.sqrt(self.config.dim) + codes.astype(frames.dtype)


class Layer(nnx.Module):
    """Attention with memory, then a feed-forward. The first layer changes the width: its attention has no residual."""

    def __init__(self, config: SanmConfig, width: int, residual: bool, *, rngs: nnx.Rngs) -> None:
        self.residual = residual
        self.norm_attention = LayerNorm(width, EPSILON, rngs=rngs)
        self.attention = MemoryAttention(config, width, rngs=rngs)
        self.norm_feed_forward = LayerNorm(config.dim, EPSILON, rngs=rngs)
        self.feed_forward = FeedForward(config.dim, config.feedforward_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T W"],
        mask: Bool[Array, "B T"],
        sees: Bool[Array, "#B #T T"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "B T D"]:
        """mask (B, T): frames that the memory reads; sees (B, 1 or T, T): those that each one attends to."""
        drop = dropout or no_dropout
        attended = drop(self.attention(self.norm_attention(x), mask, sees), 0)
        x = x + attended if self.residual else attended
        return x + drop(self.feed_forward(self.norm_feed_forward(x)), 1)


class MemoryAttention(nnx.Module):
    """(B, T, W) and masks as the layer's -> (B, T, D): attention plus a memory over the values of all heads."""

    def __init__(self, config: SanmConfig, width: int, *, rngs: nnx.Rngs) -> None:
        self.heads = config.num_heads
        self.query_key_value = Linear(width, 3 * config.dim, rngs=rngs)
        self.memory = Memory(config.dim, config.kernel, config.shift, rngs=rngs)
        self.out = Linear(config.dim, config.dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T W"], mask: Bool[Array, "B T"], sees: Bool[Array, "#B #T T"]
    ) -> Float[Array, "B T D"]:
        query, key, value = jnp.split(self.query_key_value(x), 3, axis=-1)
        return self.out(attend(query, key, value, sees, self.heads)) + self.memory(value, mask)


class FeedForward(nnx.Module):
    """(B, T, D) -> (B, T, D): two linear layers with a ReLU between them."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.out_proj(jax.nn.relu(self.in_proj(x)))


def positions(steps: int, width: int) -> Float[Array, "{steps} {width}"]:
    """Codes of the places 1 to `steps`: sines in the left half, cosines in the right, (steps, width) float32.

    The rates fall from 1 to 1 / 10000 exactly, where those of `layers/positions.py` stop a step before.
    """
    half = width // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * -(np.log(np.float32(10000.0)) / np.float32(half - 1)))
    angles = jnp.arange(1, steps + 1, dtype=jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
