"""The SAN-M encoder: self-attention with a memory over neighbouring frames (Gao et al., 2020, arXiv 2006.01713).

As FunASR runs it in Paraformers (models/sanm/encoder.py): the features are scaled, position-coded and handed to the
first layer, which maps them to the model's width. A batch gives what its single utterances give. A stream is encoded in
windows that overlap (models/scama/encoder.py, forward_chunk).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.encoders.sanm_config import SanmConfig
from jaxasr.layers.attention import attend
from jaxasr.layers.dropout import Dropout, no_dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.memory import Memory
from jaxasr.layers.norms import LayerNorm
from jaxasr.layers.repeated import run_layer, run_step
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

EPSILON = 1e-12  # of all norms

State = dict[str, jax.Array]


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

    def placed(self, frames: Float[Array, "B T F"], before: Int[Array, " B"] | None = None) -> Float[Array, "B T F"]:
        """The first layer's input: frames (B, T, F) times sqrt(dim), plus the codes of their places.

        `before` (B,): frames of the stream before these, none by default.
        """
        codes = positions(frames.shape[1], frames.shape[2], before)
        return frames * math.sqrt(self.config.dim) + codes.astype(frames.dtype)

    def initial_state(self, batch: int, dtype: DTypeLike = jnp.float32) -> State:
        """The state before the first step.

        `frames` (B, past + ahead, F): those that the next window begins with. `keys`, `values` (B, layers, N, D): of
        the frames before it, the last `cached` (B,) being there. `placed` (B,): frames of the stream so far.
        """
        config, window = self.config, self.config.sliding
        cache = (batch, config.num_layers, window.encoder_cache, config.dim)
        return {
            "frames": jnp.zeros((batch, window.kept, config.input_dim), dtype),
            "keys": jnp.zeros(cache, dtype),
            "values": jnp.zeros(cache, dtype),
            "cached": jnp.zeros((batch,), jnp.int32),
            "placed": jnp.zeros((batch,), jnp.int32),
        }

    def step(
        self,
        state: State,
        frames: Float[Array, "B T F"],
        lengths: Int[Array, " B"] | None = None,
        final: Bool[Array, " B"] | None = None,
    ) -> tuple[State, Float[Array, "B _ D"]]:
        """One window of a stream: frames (B, window.current, F) -> state, encoded (B, window.size, D).

        `lengths` (B,): frames that exist, all by default. Only a step in which a row is `final` (B,), by default none,
        may have fewer, or none at all; the row's state is of no use afterwards. Of the encoded frames as many count as
        `counted` of the configuration says, the others are zeros.
        """
        window = self.config.sliding
        batch, steps, _ = frames.shape
        lengths = jnp.full((batch,), steps, jnp.int32) if lengths is None else lengths
        kept, placed = state["frames"], state["placed"] + lengths
        if window.tail == "publisher" and final is not None:
            # FunASR scales the cached frames in place where it hands them to the encoder once more.
            again = final & (lengths == 0)
            kept = jnp.where(again[:, None, None], kept * math.sqrt(self.config.dim), kept)
        x = jnp.concatenate([kept, self.placed(frames, state["placed"]).astype(kept.dtype)], axis=1)
        valid = window.kept + lengths
        if window.tail == "whole":
            valid = jnp.where(placed > 0, valid, 0)  # of an empty stream nothing is heard
        mask = length_mask(valid, window.size)
        cached = state["cached"]
        filled = jnp.arange(window.encoder_cache) >= window.encoder_cache - cached[:, None]
        sees = jnp.concatenate([filled, mask], axis=1)[:, None]
        new = {"frames": x[:, window.current :], "placed": placed}
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            caches = state["keys"][:, index], state["values"][:, index]
            x, all_keys, all_values = run_step(layer, x, mask, sees, *caches)
            begin = window.past + window.current  # the frames to come are left out of the cache
            keys.append(all_keys[:, begin : begin + window.encoder_cache])
            values.append(all_values[:, begin : begin + window.encoder_cache])
        more = cached + window.past + window.current
        trimmed = jnp.minimum(more, window.encoder_look_back * window.current)
        new |= {"keys": jnp.stack(keys, axis=1), "values": jnp.stack(values, axis=1)}
        new["cached"] = jnp.where(state["placed"] > 0, trimmed, jnp.minimum(more, window.encoder_cache))
        return new, zero_beyond(self.norm(x), valid)


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
        with ranges_over(mask):
            x = self._added(x, drop(self.attention(self.norm_attention(x), mask, sees), 0))
            return x + drop(self.feed_forward(self.norm_feed_forward(x)), 1)

    def step(
        self,
        x: Float[Array, "B T W"],
        mask: Bool[Array, "B T"],
        sees: Bool[Array, "B 1 all"],
        keys: Float[Array, "B N D"],
        values: Float[Array, "B N D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B all D"], Float[Array, "B all D"]]:
        """The window x after N cached keys and values -> (B, T, D), and the keys and values of all N + T frames."""
        with ranges_over(mask):
            attended, keys, values = self.attention.step(self.norm_attention(x), mask, sees, keys, values)
            x = self._added(x, attended)
            return x + self.feed_forward(self.norm_feed_forward(x)), keys, values

    def _added(self, x: Float[Array, "B T W"], attended: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x + attended if self.residual else attended


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

    def step(
        self,
        x: Float[Array, "B T W"],
        mask: Bool[Array, "B T"],
        sees: Bool[Array, "B 1 all"],
        keys: Float[Array, "B N D"],
        values: Float[Array, "B N D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B all D"], Float[Array, "B all D"]]:
        """As the layer's: attention sees the cached frames too, the memory those of the window alone."""
        query, key, value = jnp.split(self.query_key_value(x), 3, axis=-1)
        keys, values = jnp.concatenate([keys, key], axis=1), jnp.concatenate([values, value], axis=1)
        return self.out(attend(query, keys, values, sees, self.heads)) + self.memory(value, mask), keys, values


class FeedForward(nnx.Module):
    """(B, T, D) -> (B, T, D): two linear layers with a ReLU between them."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.out_proj(jax.nn.relu(self.in_proj(x)))


def positions(steps: int, width: int, before: Int[Array, " B"] | None = None) -> Float[Array, "*B {steps} {width}"]:
    """Codes of places, (steps, width) float32, the first place being 1: sines in the left half, cosines in the right.

    `before` (B,): places that come before them, in each row: (B, steps, width). The rates fall from 1 to 1 / 10000
    exactly, where those of `layers/positions.py` stop a step before.
    """
    half = width // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * -(np.log(np.float32(10000.0)) / np.float32(half - 1)))
    places = jnp.arange(1, steps + 1)
    places = places if before is None else before[:, None] + places
    angles = places.astype(jnp.float32)[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
