"""A layer of the Zipformer and the modules that it is made of (arXiv 2310.11230, sections 3.2 to 3.4).

A layer computes its attention weights once and uses them three times. Shapes are (B, T, D) at the frame rate of the
layer's stack. In a stream T is a chunk, and keys are the cached frames of the left context and the chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import ceil_div, length_mask, zero_beyond
from jaxasr.encoders.zipformer_attention import relative_bias, split_heads
from jaxasr.encoders.zipformer_positions import StoredPositions
from jaxasr.layers.attention import extend_cache
from jaxasr.layers.convolution import DepthwiseConv1d
from jaxasr.layers.dropout import Dropout, no_dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.products import batched_product
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

State = dict[str, Any]
# Kept from the original: masked scores are set to this, not to minus infinity.
MASKED = -1000.0


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """Sizes of one layer; `chunk` is in frames of the layer's stack, None for no chunks.

    `stored_positions`: the relative positions of which the layer holds the products; 0 where it holds their matrix.
    """

    dim: int
    feedforward_dim: int
    num_heads: int
    query_head_dim: int
    value_head_dim: int
    pos_head_dim: int
    conv_kernel: int
    pos_dim: int
    causal: bool
    chunk: int | None
    stored_positions: int = 0


class Layer(nnx.Module):
    """One Zipformer layer: attention weights once, then four kinds of modules on one residual stream."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs) -> None:
        dim, hidden = config.dim, config.feedforward_dim
        self.attention_weights = AttentionWeights(config, rngs=rngs)
        self.attention1 = SelfAttention(dim, config.num_heads, config.value_head_dim, rngs=rngs)
        self.attention2 = SelfAttention(dim, config.num_heads, config.value_head_dim, rngs=rngs)
        self.feed_forward1 = FeedForward(dim, hidden * 3 // 4, rngs=rngs)
        self.feed_forward2 = FeedForward(dim, hidden, rngs=rngs)
        self.feed_forward3 = FeedForward(dim, hidden * 5 // 4, rngs=rngs)
        self.nonlin_attention = NonlinAttention(dim, dim * 3 // 4, rngs=rngs)
        self.conv1 = ConvModule(dim, config.conv_kernel, config.causal, rngs=rngs)
        self.conv2 = ConvModule(dim, config.conv_kernel, config.causal, rngs=rngs)
        self.norm = BiasNorm(dim, rngs=rngs)
        self.bypass_mid = Bypass(dim, rngs=rngs)
        self.bypass = Bypass(dim, rngs=rngs)
        self.chunk = config.chunk

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Float[Array, "2*T-1 P"],
        mask: Bool[Array, "#B 1 #T T"],
        lengths: Int[Array, " B"],
        scale_lengths: Int[Array, " B"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "B T D"]:
        """x (B, T, D), positions (2T - 1, pos_dim), mask (B or 1, 1, T or 1, T) True where a key may be seen.

        `scale_lengths` (B,): where the causal convolution takes a row to end (its own length, or the padded one).
        `dropout` is for training and this layer's own: it acts on what each module adds to the stream.
        """

        def mix(cache: str, module: SelfAttention | NonlinAttention, x: jax.Array, weights: jax.Array) -> jax.Array:
            return module(x, weights)

        def convolve(cache: str, module: ConvModule, x: jax.Array) -> jax.Array:
            return module(x, lengths, scale_lengths, self.chunk)

        drop = no_dropout if dropout is None else dropout.__call__
        with ranges_over(lengths, self.chunk):
            weights = self.attention_weights(x, positions, mask)  # (B, heads, T, T)
            return self._residual_stream(x, weights, mix, convolve, drop)

    def initial_state(self, batch: int, left: int, dtype: DTypeLike) -> State:
        """Caches of `left` frames for the attention and of half a kernel for the convolutions."""
        return {
            "key": jnp.zeros((batch, left, self.attention_weights.query_dim), dtype),
            "nonlin": jnp.zeros((batch, left, self.nonlin_attention.hidden), dtype),
            "value1": jnp.zeros((batch, left, self.attention1.value_dim), dtype),
            "value2": jnp.zeros((batch, left, self.attention2.value_dim), dtype),
            "conv1": self.conv1.initial_state(batch, dtype),
            "conv2": self.conv2.initial_state(batch, dtype),
        }

    def step(
        self,
        state: State,
        x: Float[Array, "B T D"],
        positions: Float[Array, "N P"],
        mask: Bool[Array, "B 1 1 N-T+1"],
        lengths: Int[Array, " B"],
        scale_lengths: Int[Array, " B"],
    ) -> tuple[State, Float[Array, "B T D"]]:
        """x (B, chunk, D), positions (left + 2 chunk - 1, pos_dim), mask (B, 1, 1, left + chunk).

        lengths (B,): frames of the chunk that exist. `scale_lengths` (B,): where its convolution takes it to end.
        """
        new: State = {}

        def mix(cache: str, module: SelfAttention | NonlinAttention, x: jax.Array, weights: jax.Array) -> jax.Array:
            new[cache], y = module.step(state[cache], x, weights)
            return y

        def convolve(cache: str, module: ConvModule, x: jax.Array) -> jax.Array:
            new[cache], y = module.step(state[cache], x, lengths, scale_lengths)
            return y

        with ranges_over(lengths):
            new["key"], weights = self.attention_weights.step(state["key"], x, positions, mask)
            return new, self._residual_stream(x, weights, mix, convolve, no_dropout)

    def _residual_stream(
        self,
        x: Float[Array, "B T D"],
        weights: Float[Array, "B heads T keys"],
        mix: Callable[[str, SelfAttention | NonlinAttention, jax.Array, jax.Array], jax.Array],
        convolve: Callable[[str, ConvModule, jax.Array], jax.Array],
        drop: Callable[[jax.Array, int], jax.Array],
    ) -> Float[Array, "B T D"]:
        """The modules in their order, x (B, T, D), weights (B, heads, T, keys) -> (B, T, D).

        `mix` and `convolve` run a module that sees other frames than its own, on a whole utterance or on a chunk with
        the cache of that name.
        """
        original = x
        x = x + drop(self.feed_forward1(x), 0)
        x = x + drop(mix("nonlin", self.nonlin_attention, x, weights[:, 0]), 1)
        x = x + drop(mix("value1", self.attention1, x, weights), 2)
        x = x + drop(convolve("conv1", self.conv1, x), 3)
        x = x + drop(self.feed_forward2(x), 4)
        x = self.bypass_mid(original, x)
        x = x + drop(mix("value2", self.attention2, x, weights), 5)
        x = x + drop(convolve("conv2", self.conv2, x), 6)
        x = x + drop(self.feed_forward3(x), 7)
        return self.bypass(original, self.norm(x))


class AttentionWeights(nnx.Module):
    """softmax(q k + p W pos) without 1/sqrt(d): x (B, T, D) -> (B, heads, T, keys)."""

    def __init__(self, config: LayerConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.num_heads
        self.query_dim = self.heads * config.query_head_dim
        self.position_dim = self.heads * config.pos_head_dim
        # Scores are not divided by sqrt(d): queries and keys begin small instead.
        scale = config.query_head_dim**-0.25
        outputs = 2 * self.query_dim + self.position_dim
        self.in_proj = Linear(config.dim, outputs, initial_scale=scale, rngs=rngs)
        chunk, stored = config.chunk or 0, config.stored_positions
        self.stored = StoredPositions(stored, self.position_dim, chunk, rngs=rngs) if stored else None
        self.linear_pos = (
            None if stored else Linear(config.pos_dim, self.position_dim, use_bias=False, initial_scale=0.05, rngs=rngs)
        )

    def __call__(
        self, x: Float[Array, "B T D"], positions: Float[Array, "2*T-1 P"], mask: Bool[Array, "#B 1 #T T"]
    ) -> Float[Array, "B heads T T"]:
        query, key, position_query = self._project(x)
        return self._weights(query, key, position_query, positions, mask)

    def step(
        self,
        cached: Float[Array, "B left K"],
        x: Float[Array, "B T D"],
        positions: Float[Array, "left+2*T-1 P"],
        mask: Bool[Array, "#B 1 #T left+T"],
    ) -> tuple[Float[Array, "B left K"], Float[Array, "B heads T left+T"]]:
        query, key, position_query = self._project(x)
        cached, key = extend_cache(cached, key)
        return cached, self._weights(query, key, position_query, positions, mask)

    def _project(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T K"], Float[Array, "B T K"], Float[Array, "B T P"]]:
        query, key, position_query = jnp.split(self.in_proj(x), [self.query_dim, 2 * self.query_dim], axis=-1)
        return query, key, position_query

    def _weights(
        self,
        query: Float[Array, "B T K"],
        key: Float[Array, "B keys K"],
        position_query: Float[Array, "B T P"],
        positions: Float[Array, "keys+T-1 _"],
        mask: Bool[Array, "#B 1 #T keys"],
    ) -> Float[Array, "B heads T keys"]:
        keys, by_position = key.shape[1], None
        if self.stored is not None:
            position_query, encoded, by_position = self.stored(position_query, keys)
        else:
            assert self.linear_pos is not None
            encoded = self.linear_pos(positions.astype(query.dtype))  # (N, heads * p)
        query, key, position_query = (split_heads(each, self.heads) for each in (query, key, position_query))
        encoded = split_heads(encoded[None], self.heads)[0]  # (heads, N, p)
        scores = batched_product(query, key.swapaxes(-1, -2))  # (B, heads, T, keys)
        bias = relative_bias(position_query, encoded, keys)
        scores = scores + (bias if by_position is None else (bias * by_position[:, None]).astype(scores.dtype))
        scores = jnp.where(mask, scores.astype(jnp.float32), MASKED)
        return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


class SelfAttention(nnx.Module):
    """Values mixed by given weights: x (B, T, D), weights (B, heads, T, keys) -> (B, T, D)."""

    def __init__(self, dim: int, heads: int, value_head_dim: int, *, rngs: nnx.Rngs) -> None:
        self.heads, self.value_dim = heads, heads * value_head_dim
        self.in_proj = Linear(dim, self.value_dim, rngs=rngs)
        self.out_proj = Linear(self.value_dim, dim, initial_scale=0.05, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], weights: Float[Array, "B heads T T"]) -> Float[Array, "B T D"]:
        return self._mix(self.in_proj(x), weights)

    def step(
        self,
        cached: Float[Array, "B left V"],
        x: Float[Array, "B T D"],
        weights: Float[Array, "B heads T left+T"],
    ) -> tuple[Float[Array, "B left V"], Float[Array, "B T D"]]:
        cached, value = extend_cache(cached, self.in_proj(x))
        return cached, self._mix(value, weights)

    def _mix(self, value: Float[Array, "B keys V"], weights: Float[Array, "B heads T keys"]) -> Float[Array, "B T D"]:
        mixed = batched_product(weights, split_heads(value, self.heads))  # (B, heads, T, v)
        return self.out_proj(mixed.swapaxes(1, 2).reshape(mixed.shape[0], mixed.shape[2], self.value_dim))


class NonlinAttention(nnx.Module):
    """Gated values mixed by the first head's weights: x (B, T, D), weights (B, T, keys) -> (B, T, D)."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.hidden = hidden
        self.in_proj = Linear(dim, 3 * hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, initial_scale=0.05, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], weights: Float[Array, "B T T"]) -> Float[Array, "B T D"]:
        value, gate = self._project(x)
        return self.out_proj(batched_product(weights, value) * gate)

    def step(
        self, cached: Float[Array, "B left V"], x: Float[Array, "B T D"], weights: Float[Array, "B T left+T"]
    ) -> tuple[Float[Array, "B left V"], Float[Array, "B T D"]]:
        value, gate = self._project(x)
        cached, value = extend_cache(cached, value)
        return cached, self.out_proj(batched_product(weights, value) * gate)

    def _project(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T V"], Float[Array, "B T V"]]:
        s, value, gate = jnp.split(self.in_proj(x), 3, axis=-1)
        return value * jnp.tanh(s), gate


class FeedForward(nnx.Module):
    """Linear, SwooshL, Linear."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, initial_scale=0.1, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.out_proj(swoosh_l(self.in_proj(x)))


class ConvModule(nnx.Module):
    """Gated depthwise convolution: x (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, width: int, causal: bool, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, 2 * dim, rngs=rngs)
        kind: type[ChunkCausalDepthwiseConv1d | SameDepthwiseConv1d]
        kind = ChunkCausalDepthwiseConv1d if causal else SameDepthwiseConv1d
        self.depthwise = kind(dim, width, rngs=rngs)
        self.out_proj = Linear(dim, dim, initial_scale=0.05, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
        scale_lengths: Int[Array, " B"],
        chunk: int | None,
    ) -> Float[Array, "B T D"]:
        x = self._gate(x)
        x = jnp.where(length_mask(lengths, x.shape[1])[..., None], x, 0)
        return self.out_proj(swoosh_r(self.depthwise(x, scale_lengths, chunk)))

    def initial_state(self, batch: int, dtype: DTypeLike) -> Float[Array, "{batch} half D"]:
        return self._causal.initial_state(batch, dtype)

    def step(
        self,
        state: Float[Array, "B half D"],
        x: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
        scale_lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "B half D"], Float[Array, "B T D"]]:
        state, x = self._causal.step(state, zero_beyond(self._gate(x), lengths), scale_lengths)
        return state, self.out_proj(swoosh_r(x))

    @property
    def _causal(self) -> ChunkCausalDepthwiseConv1d:
        if not isinstance(self.depthwise, ChunkCausalDepthwiseConv1d):
            raise ValueError("only a causal Zipformer has a step form")
        return self.depthwise

    def _gate(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x, gate = jnp.split(self.in_proj(x), 2, axis=-1)
        return x * jax.nn.sigmoid(gate)


class SameDepthwiseConv1d(nnx.Module):
    """Depthwise convolution that sees half a kernel on either side; x (B, T, C) is zero beyond its length."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.half = width // 2
        self.conv = DepthwiseConv1d(features, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"], chunk: int | None) -> Float[Array, "B T C"]:
        return self.conv(jnp.pad(x, ((0, 0), (self.half, self.half), (0, 0))))


class ChunkCausalDepthwiseConv1d(nnx.Module):
    """A causal convolution plus one that sees its whole chunk and nothing beyond, scaled near the chunk's edges.

    The result is causal(x) + within_chunk(x) * (1 + left edge + right edge): the first row of `edge_scale` (2, width,
    C) counts from a chunk's begin, the last entry of the second row belongs to its end (icefall, scaling.py).
    """

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.width, self.half = width, width // 2
        self.causal = DepthwiseConv1d(features, self.half + 1, rngs=rngs)
        self.chunkwise = DepthwiseConv1d(features, width, rngs=rngs)
        self.edge_scale = nnx.Param(jnp.zeros((2, width, features), jnp.float32))

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"], chunk: int | None) -> Float[Array, "B T C"]:
        """x (B, T, C) zero beyond its length, lengths (B,): where each row ends, chunk in frames or None for none."""
        batch, steps, features = x.shape
        causal = self.causal(jnp.pad(x, ((0, 0), (self.half, 0), (0, 0))))
        chunk = steps if chunk is None else min(chunk, steps)
        chunks = ceil_div(steps, chunk)
        pieces = jnp.pad(x, ((0, 0), (0, chunks * chunk - steps), (0, 0))).reshape(batch * chunks, chunk, features)
        within = self.chunkwise(jnp.pad(pieces, ((0, 0), (self.half, self.half), (0, 0))))
        within = within.reshape(batch, chunks * chunk, features)[:, :steps]
        # A row shorter than a chunk is a chunk of its own length.
        sizes = jnp.minimum(lengths, chunk)
        return causal + within * self._scale(steps, chunk, sizes).astype(x.dtype)

    def initial_state(self, batch: int, dtype: DTypeLike) -> Float[Array, "{batch} half C"]:
        return jnp.zeros((batch, self.half, self.edge_scale.shape[-1]), dtype)

    def step(
        self, state: Float[Array, "B half C"], x: Float[Array, "B chunk C"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B half C"], Float[Array, "B chunk C"]]:
        """One chunk: state (B, width // 2, C), x (B, chunk, C), lengths (B,): its end -> state, (B, chunk, C)."""
        chunk = x.shape[1]
        extended = jnp.concatenate([state, x], axis=1)
        within = self.chunkwise(jnp.pad(x, ((0, 0), (self.half, self.half), (0, 0))))
        scale = self._scale(chunk, chunk, lengths)
        return extended[:, extended.shape[1] - self.half :], self.causal(extended) + within * scale.astype(x.dtype)

    def _scale(self, steps: int, chunk: int, sizes: Int[Array, " B"]) -> Float[Array, "B {steps} C"]:
        """1 + left edge + right edge for every frame: (B or 1, steps, C); sizes (B,) is each row's chunk size."""
        from_begin = jnp.arange(steps) % chunk  # (steps,)
        to_end = sizes[:, None] - 1 - from_begin[None, :]  # (B, steps), negative beyond the row's end
        edges = jnp.pad(self.edge_scale[...], ((0, 0), (1, 1), (0, 0)))  # a zero on either side for "no edge here"
        left = edges[0][jnp.where(from_begin < self.width, from_begin + 1, 0)]
        right = edges[1][jnp.where((to_end >= 0) & (to_end < self.width), self.width - to_end, 0)]
        return 1 + left[None] + right


class Bypass(nnx.Module):
    """original + (x - original) * scale, per channel; the scale is used as stored, also outside [0, 1]."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.full((dim,), 0.5, jnp.float32))

    def __call__(self, original: Float[Array, "B T D"], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return original + (x - original) * self.scale[...].astype(x.dtype)


class BiasNorm(nnx.Module):
    """x / rms(x - bias) * e^log_scale over the last axis (Zipformer, section 3.3).

    The bias enters the statistic only, never the output, and there is no epsilon.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        self.bias = nnx.Param(jnp.full((features,), 1e-4, jnp.float32))
        self.log_scale = nnx.Param(jnp.zeros((), jnp.float32))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        centred = x.astype(jnp.float32) - self.bias[...].astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True))
        return x * (scale * jnp.exp(self.log_scale[...].astype(jnp.float32))).astype(x.dtype)


def _softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # log(1 + e^x) without overflow; the plain logarithm is off by one rounding of 1 at most, which the sum hides,
    # and vectorises on every device where log1p and logaddexp do not.
    return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


def swoosh_l(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """SwooshL (Zipformer, section 3.4): log(1 + e^(x-4)) - 0.08 x - 0.035, element-wise."""
    return _softplus(x - 4.0) - 0.08 * x - 0.035


def swoosh_r(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """SwooshR (Zipformer, section 3.4): log(1 + e^(x-1)) - 0.08 x - 0.313261687, element-wise."""
    return _softplus(x - 1.0) - 0.08 * x - 0.313261687
