"""The parallel head: a predictor that counts the tokens, and a decoder that says all of them at once.

Gao et al., 2022, arXiv 2206.08317 (Paraformer), as FunASR publishes it (models/paraformer/decoder.py). Every token sees
its neighbours' vectors on both sides and all encoded frames. A batch gives what its single utterances give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.heads.cif import CIF, Fired, fire_places
from jaxasr.heads.parallel_config import ParallelConfig
from jaxasr.layers.attention import attend
from jaxasr.layers.linear import Linear
from jaxasr.layers.memory import Memory
from jaxasr.layers.norms import LayerNorm
from jaxasr.layers.repeated import run_layer

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

EPSILON = 1e-12  # of all norms


class Parallel(nnx.Module):
    """Encoded frames to tokens: `fire`, then `decode`.

    `embedding` (V, D) is the training's: its sampler puts the vectors of true tokens among those that were found.
    """

    def __init__(self, config: ParallelConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.encoder_dim = config, encoder_dim
        self.predictor = CIF(config.predictor, encoder_dim, rngs=rngs)
        size = (config.vocabulary_size, encoder_dim)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), size, jnp.float32) * 0.02)
        self.layers = nnx.List([Layer(config, encoder_dim, rngs=rngs) for _ in range(config.num_layers)])
        self.memory_layers = nnx.List(
            [MemoryLayer(config, encoder_dim, 0, rngs=rngs) for _ in range(config.memory_layers)]
        )
        self.final_layers = nnx.List(
            [NormedFeedForward(config, encoder_dim, rngs=rngs) for _ in range(config.final_layers)]
        )
        self.norm = LayerNorm(encoder_dim, EPSILON, rngs=rngs)
        self.output = Linear(encoder_dim, config.vocabulary_size, rngs=rngs)

    @property
    def blank_id(self) -> int:
        """The id of the blank, which is no token."""
        return self.config.blank_id

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Further ids that are no tokens."""
        return self.config.silent_ids

    def fire(self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Fired:
        """The tokens' vectors, not yet decoded: encoded (B, T, D), lengths (B,) -> at most T tokens a row.

        `frames` are the second head's, where there is one.
        """
        if self.config.padding == "isolated":
            encoded = zero_beyond(encoded, lengths)
        fired = self.predictor(encoded, lengths)
        if self.config.predictor.peaks is None:
            return fired
        peaks = self.predictor.peaks(encoded, lengths, fired.counts)
        steps = fire_places(peaks.running, encoded.shape[1]) // self.config.predictor.peaks.upsampling
        return fired._replace(frames=jnp.minimum(steps, jnp.maximum(lengths - 1, 0)[:, None]))

    def decode(
        self,
        vectors: Float[Array, "B L D"],
        counts: Int[Array, " B"],
        encoded: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
    ) -> Float[Array, "B L V"]:
        """Logits (B, L, V) float32 of tokens' vectors (B, L, D), counts (B,), by all that was encoded, lengths (B,)."""
        x = vectors.astype(encoded.dtype)
        for layer in self.layers:
            x = run_layer(*nnx.split(layer), x, counts, encoded, lengths)
        for memory_layer in self.memory_layers:
            x = run_layer(*nnx.split(memory_layer), x, counts)
        for final_layer in self.final_layers:
            x = run_layer(*nnx.split(final_layer), x)
        return self.output(self.norm(x)).astype(jnp.float32)


class NormedFeedForward(nnx.Module):
    """(B, L, D) -> (B, L, D): a norm, then a feed-forward with a norm over its hidden units. Without a residual."""

    def __init__(self, config: ParallelConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(dim, EPSILON, rngs=rngs)
        self.in_proj = Linear(dim, config.feedforward_dim, rngs=rngs)
        self.hidden_norm = LayerNorm(config.feedforward_dim, EPSILON, rngs=rngs)
        self.out_proj = Linear(config.feedforward_dim, dim, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.out_proj(self.hidden_norm(jax.nn.relu(self.in_proj(self.norm(x)))))


class MemoryLayer(nnx.Module):
    """A feed-forward, then a memory over neighbouring tokens; the memory's output alone is added to the input."""

    def __init__(self, config: ParallelConfig, dim: int, shift: int, *, rngs: nnx.Rngs) -> None:
        self.feed_forward = NormedFeedForward(config, dim, rngs=rngs)
        self.norm_memory = LayerNorm(dim, EPSILON, rngs=rngs)
        self.memory = Memory(dim, config.kernel, shift, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], counts: Int[Array, " B"]) -> Float[Array, "B L D"]:
        return x + self.memory(self.norm_memory(self.feed_forward(x)), counts)


class Layer(nnx.Module):
    """A memory layer, then attention to the encoded frames."""

    def __init__(self, config: ParallelConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.neighbours = MemoryLayer(config, dim, config.shift, rngs=rngs)
        self.norm_attention = LayerNorm(dim, EPSILON, rngs=rngs)
        self.attention = CrossAttention(dim, config.num_heads, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        counts: Int[Array, " B"],
        encoded: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
    ) -> Float[Array, "B L D"]:
        x = self.neighbours(x, counts)
        return x + self.attention(self.norm_attention(x), encoded, lengths)


class CrossAttention(nnx.Module):
    """(B, L, D), which sees encoded (B, T, D) up to lengths (B,) -> (B, L, D)."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = Linear(dim, dim, rngs=rngs)
        self.key_value = Linear(dim, 2 * dim, rngs=rngs)
        self.out = Linear(dim, dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B L D"]:
        key, value = jnp.split(self.key_value(encoded), 2, axis=-1)
        mask = length_mask(lengths, encoded.shape[1])[:, None]
        return self.out(attend(self.query(x), key, value, mask, self.heads))
