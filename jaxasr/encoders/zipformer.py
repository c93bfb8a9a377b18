"""The Zipformer encoder, version 2 (Yao et al., 2023, arXiv 2310.11230; icefall, egs/librispeech/ASR/zipformer).

Stacks of layers run at different frame rates: each stack shortens its input by its factor, runs its layers, stretches
the result back and mixes it with its input. A layer computes its attention weights once and uses them three times.
Frames are (B, T, D) at 50 Hz between the stacks and (B, T', D) at 25 Hz behind the last.

A batch gives what its single utterances give: whatever stands behind a row's length never reaches a valid frame.
`ZipformerConfig.padding = "publisher"` switches to what icefall and sherpa-onnx compute in a padded batch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import Count, at_least_zero, ceil_div, length_mask, repeat_last
from jaxasr.layers.activations import swoosh_l, swoosh_r
from jaxasr.layers.convolution import DepthwiseConv1d
from jaxasr.layers.dropout import Dropout, keep_all
from jaxasr.layers.linear import Linear
from jaxasr.layers.norms import BiasNorm
from jaxasr.layers.positions import compact_relative_positions, relative_bias
from jaxasr.layers.products import batched_product
from jaxasr.layers.subsampling import REACH, Conv2dSubsampling, subsampled_length

State = dict[str, Any]
# Kept from the original: masked scores are set to this, not to minus infinity.
MASKED = -1000.0
# What icefall and sherpa-onnx put behind the shorter rows of a batch of features: log(1e-10).
PUBLISHER_PADDING = -23.025850


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZipformerConfig:
    """Sizes of a Zipformer; every tuple has one entry a stack, but embed_channels, the front end's three widths.

    `chunk_size` and `left_context` are in frames at 50 Hz; -1 means no chunks (every frame sees every frame) and
    unlimited left context. They matter for causal models only. `whole_chunks`: a model with chunks decodes full chunks
    only, and a chunk only while more feature frames are ready than it reads (sherpa-onnx's online recogniser).
    `padding`: what stands after the shorter rows of a batch, see the head of this file.
    """

    kind: Literal["zipformer"] = "zipformer"
    num_layers: tuple[int, ...]
    downsampling: tuple[int, ...]
    encoder_dim: tuple[int, ...]
    feedforward_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    query_head_dim: tuple[int, ...]
    value_head_dim: tuple[int, ...]
    pos_head_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    pos_dim: int = 48
    input_dim: int = 80
    embed_channels: tuple[int, int, int] = (8, 32, 128)
    output_downsampling: int = 2
    causal: bool = False
    chunk_size: int = -1
    left_context: int = -1
    whole_chunks: bool = False
    padding: Literal["isolated", "publisher"] = "isolated"

    def __post_init__(self) -> None:
        if len(self.embed_channels) != 3 or min(self.embed_channels) < 1:
            raise ValueError("embed_channels needs three positive numbers")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "embed_channels":
                continue
            if isinstance(value, tuple) and (len(value) != len(self.num_layers) or min(value, default=0) < 1):
                raise ValueError(f"{field.name} needs one positive number for each of {len(self.num_layers)} stacks")
        if any(width % 2 == 0 for width in self.conv_kernel):
            raise ValueError("conv_kernel must be odd")
        if self.causal and self.chunk_size > 0:
            steps = (*self.downsampling, self.output_downsampling)
            if any(self.chunk_size % step for step in steps):
                raise ValueError(f"chunk_size {self.chunk_size} is not divisible by every downsampling factor {steps}")
            if self.left_context >= 0 and any(self.left_context % step for step in self.downsampling):
                raise ValueError(f"left_context {self.left_context} is not divisible by every downsampling factor")

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames: that of the widest stack."""
        return max(self.encoder_dim)

    @property
    def subsampling(self) -> int:
        """Feature frames from one encoded frame to the next."""
        return 2 * self.output_downsampling

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays."""
        return ceil_div(subsampled_length(frames), self.output_downsampling)

    def decoded_length(self, frames: Count) -> Count:
        """Those of the encoded frames that a search is given, for integers and arrays: see `whole_chunks`."""
        if not (self.whole_chunks and self.chunk_size > 0):
            return self.encoded_length(frames)
        chunks = ceil_div(at_least_zero(frames - self.frames_per_step), self.shift_per_step)
        return chunks * (self.chunk_size // self.output_downsampling)

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of a Zipformer."""
        return {"causal": self.causal, "chunk_size": self.chunk_size, "left_context": self.left_context}

    @property
    def frames_per_step(self) -> int:
        """Feature frames that one streaming step reads: 2 chunk_size + 13, the last 13 being look-ahead."""
        return 2 * self.chunk_size + 7 + 2 * REACH

    @property
    def shift_per_step(self) -> int:
        """Feature frames by which one streaming step moves on: 2 chunk_size."""
        return 2 * self.chunk_size


class Zipformer(nnx.Module):
    """Feature frames (B, T, bins) at 100 Hz to encoded frames (B, ((T - 7) // 2 + 1) // 2, D) at 25 Hz."""

    def __init__(self, config: ZipformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = Conv2dSubsampling(config.input_dim, config.embed_channels, config.encoder_dim[0], rngs=rngs)
        self.stacks = nnx.List([Stack(config, index, rngs=rngs) for index in range(len(config.num_layers))])
        self.downsample_output = Downsample(config.output_downsampling, rngs=rngs)

    def __call__(
        self, frames: jax.Array, lengths: jax.Array, dropout: Dropout | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """frames (B, T, bins), lengths (B,) in frames -> encoded (B, T', D), lengths (B,) to decode; T >= 9.

        A causal model attends and convolves within chunks of `chunk_size`, as its streaming form does. `dropout`, of
        training, is that of every module's share in its residual stream.
        """
        isolated = self.config.padding == "isolated"
        decoded = self.config.decoded_length(lengths)
        if not isolated:
            frames = jnp.where(length_mask(lengths, frames.shape[1])[..., None], frames, PUBLISHER_PADDING)
        x, lengths = self.embed(frames, lengths, isolated=isolated)  # (B, T, D0) at 50 Hz
        outputs = []
        for index, stack in enumerate(self.stacks):
            x = stack(x, lengths, dropout.within(index) if dropout else None)
            outputs.append(x)
        x = self._widest(outputs)
        if isolated:
            x = repeat_last(x, lengths)
        return self.downsample_output(x), decoded

    def initial_state(self, batch: int, dtype: jnp.dtype = jnp.float32) -> State:
        """The state before the first step: zeros, batch axis first everywhere."""
        return {
            "embed": self.embed.initial_state(batch, dtype),
            "stacks": [stack.initial_state(batch, dtype) for stack in self.stacks],
            "processed": jnp.zeros((batch,), jnp.int32),
        }

    def step(self, state: State, frames: jax.Array) -> tuple[State, jax.Array]:
        """One chunk of a stream: frames (B, frames_per_step, bins) -> state, encoded (B, chunk_size // 2, D).

        The next call's frames begin shift_per_step later. Causal models with a chunk size only.
        """
        embed, x = self.embed.step(state["embed"], frames)
        left = self.config.left_context
        # The oldest cached frames are not filled before `left_context` frames have gone by.
        filled = jnp.arange(left)[None, :] >= left - state["processed"][:, None]  # (B, left)
        outputs, stacks = [], []
        for stack, cache in zip(self.stacks, state["stacks"], strict=True):
            cache, x = stack.step(cache, x, filled)
            stacks.append(cache)
            outputs.append(x)
        encoded = self.downsample_output(self._widest(outputs))
        processed = state["processed"] + self.config.chunk_size
        return {"embed": embed, "stacks": stacks, "processed": processed}, encoded

    def _widest(self, outputs: list[jax.Array]) -> jax.Array:
        """The last stack's channels, then from each earlier, wider stack those that are not covered yet."""
        parts, covered = [outputs[-1]], self.config.encoder_dim[-1]
        for output in reversed(outputs[:-1]):
            if output.shape[-1] > covered:
                parts.append(output[..., covered:])
                covered = output.shape[-1]
        return jnp.concatenate(parts, axis=-1)


class Stack(nnx.Module):
    """Equal layers at one frame rate, with the change of rate around them: (B, T, D) at 50 Hz -> (B, T, D_i)."""

    def __init__(self, config: ZipformerConfig, index: int, *, rngs: nnx.Rngs) -> None:
        dim, self.factor = config.encoder_dim[index], config.downsampling[index]
        self.dim, self.config = dim, config
        self.layers = nnx.List([Layer(config, index, rngs=rngs) for _ in range(config.num_layers[index])])
        self.downsample = Downsample(self.factor, rngs=rngs) if self.factor > 1 else None
        self.combiner = Bypass(dim, rngs=rngs) if self.factor > 1 else None
        # Lengths in frames of this stack.
        self.chunk = max(config.chunk_size // self.factor, 1) if config.causal and config.chunk_size > 0 else None
        self.left = config.left_context // self.factor if config.left_context >= 0 else None

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """x (B, T, D), lengths (B,) in frames at 50 Hz; `dropout`, of training, is this stack's own."""
        x = match_channels(x, self.dim)
        original, steps = x, x.shape[1]
        if self.factor > 1:
            if self.config.padding == "isolated":
                x = repeat_last(x, lengths)
            x, lengths = self.downsample(x), ceil_div(lengths, self.factor)
        positions = compact_relative_positions(x.shape[1], 0, self.config.pos_dim)
        mask = attention_mask(lengths, x.shape[1], self.chunk, self.left)
        scale_lengths = lengths if self.config.padding == "isolated" else jnp.full_like(lengths, x.shape[1])
        for index, layer in enumerate(self.layers):
            own = dropout.within(index) if dropout else None
            x = run_layer(*nnx.split(layer), x, positions, mask, lengths, scale_lengths, own)
        return self._restore(original, x, steps)

    def initial_state(self, batch: int, dtype: jnp.dtype) -> list[State]:
        """One dictionary of caches a layer."""
        return [layer.initial_state(batch, self.left, dtype) for layer in self.layers]

    def step(self, state: list[State], x: jax.Array, filled: jax.Array) -> tuple[list[State], jax.Array]:
        """x (B, chunk, D) at 50 Hz, filled (B, left context) bool at 50 Hz -> state, (B, chunk, D_i)."""
        x = match_channels(x, self.dim)
        original, steps = x, x.shape[1]
        if self.factor > 1:
            x = self.downsample(x)
        positions = compact_relative_positions(x.shape[1], self.left, self.config.pos_dim)
        keys = jnp.concatenate([filled, jnp.ones((x.shape[0], steps), bool)], axis=1)[:, :: self.factor]
        mask = keys[:, None, None, :]  # (B, 1, 1, left + chunk)
        caches = []
        for layer, cache in zip(self.layers, state, strict=True):
            cache, x = layer.step(cache, x, positions, mask)
            caches.append(cache)
        return caches, self._restore(original, x, steps)

    def _restore(self, original: jax.Array, x: jax.Array, steps: int) -> jax.Array:
        if self.factor == 1:
            return x
        return self.combiner(original, jnp.repeat(x, self.factor, axis=1)[:, :steps])


class Layer(nnx.Module):
    """One Zipformer layer: attention weights once, then four kinds of modules on one residual stream."""

    def __init__(self, config: ZipformerConfig, index: int, *, rngs: nnx.Rngs) -> None:
        dim, hidden = config.encoder_dim[index], config.feedforward_dim[index]
        heads, value = config.num_heads[index], config.value_head_dim[index]
        self.attention_weights = AttentionWeights(config, index, rngs=rngs)
        self.attention1 = SelfAttention(dim, heads, value, rngs=rngs)
        self.attention2 = SelfAttention(dim, heads, value, rngs=rngs)
        self.feed_forward1 = FeedForward(dim, hidden * 3 // 4, rngs=rngs)
        self.feed_forward2 = FeedForward(dim, hidden, rngs=rngs)
        self.feed_forward3 = FeedForward(dim, hidden * 5 // 4, rngs=rngs)
        self.nonlin_attention = NonlinAttention(dim, dim * 3 // 4, rngs=rngs)
        self.conv1 = ConvModule(dim, config.conv_kernel[index], config.causal, rngs=rngs)
        self.conv2 = ConvModule(dim, config.conv_kernel[index], config.causal, rngs=rngs)
        self.norm = BiasNorm(dim, rngs=rngs)
        self.bypass_mid = Bypass(dim, rngs=rngs)
        self.bypass = Bypass(dim, rngs=rngs)
        self.chunk = None
        if config.causal and config.chunk_size > 0:
            self.chunk = max(config.chunk_size // config.downsampling[index], 1)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        lengths: jax.Array,
        scale_lengths: jax.Array,
        dropout: Dropout | None = None,
    ) -> jax.Array:
        """x (B, T, D), positions (2T - 1, pos_dim), mask (B or 1, 1, T or 1, T) True where a key may be seen.

        `scale_lengths` (B,): where the causal convolution takes a row to end (its own length, or the padded one).
        `dropout`, of training, is this layer's own: it acts on what each module adds to the stream.
        """
        drop = dropout or keep_all
        original = x
        weights = self.attention_weights(x, positions, mask)  # (B, heads, T, T)
        x = x + drop(self.feed_forward1(x), 0)
        x = x + drop(self.nonlin_attention(x, weights[:, 0]), 1)
        x = x + drop(self.attention1(x, weights), 2)
        x = x + drop(self.conv1(x, lengths, scale_lengths, self.chunk), 3)
        x = x + drop(self.feed_forward2(x), 4)
        x = self.bypass_mid(original, x)
        x = x + drop(self.attention2(x, weights), 5)
        x = x + drop(self.conv2(x, lengths, scale_lengths, self.chunk), 6)
        x = x + drop(self.feed_forward3(x), 7)
        return self.bypass(original, self.norm(x))

    def initial_state(self, batch: int, left: int, dtype: jnp.dtype) -> State:
        """Caches of `left` frames for the attention and of half a kernel for the convolutions."""
        return {
            "key": jnp.zeros((batch, left, self.attention_weights.query_dim), dtype),
            "nonlin": jnp.zeros((batch, left, self.nonlin_attention.hidden), dtype),
            "value1": jnp.zeros((batch, left, self.attention1.value_dim), dtype),
            "value2": jnp.zeros((batch, left, self.attention2.value_dim), dtype),
            "conv1": self.conv1.initial_state(batch, dtype),
            "conv2": self.conv2.initial_state(batch, dtype),
        }

    def step(self, state: State, x: jax.Array, positions: jax.Array, mask: jax.Array) -> tuple[State, jax.Array]:
        """x (B, chunk, D), positions (left + 2 chunk - 1, pos_dim), mask (B, 1, 1, left + chunk)."""
        new: State = {}
        original = x
        new["key"], weights = self.attention_weights.step(state["key"], x, positions, mask)
        x = x + self.feed_forward1(x)
        new["nonlin"], y = self.nonlin_attention.step(state["nonlin"], x, weights[:, 0])
        x = x + y
        new["value1"], y = self.attention1.step(state["value1"], x, weights)
        x = x + y
        new["conv1"], y = self.conv1.step(state["conv1"], x)
        x = x + y
        x = x + self.feed_forward2(x)
        x = self.bypass_mid(original, x)
        new["value2"], y = self.attention2.step(state["value2"], x, weights)
        x = x + y
        new["conv2"], y = self.conv2.step(state["conv2"], x)
        x = x + y
        x = x + self.feed_forward3(x)
        return new, self.bypass(original, self.norm(x))


class AttentionWeights(nnx.Module):
    """softmax(q k + p W pos) without 1/sqrt(d): x (B, T, D) -> (B, heads, T, keys)."""

    def __init__(self, config: ZipformerConfig, index: int, *, rngs: nnx.Rngs) -> None:
        self.heads = config.num_heads[index]
        self.query_dim = self.heads * config.query_head_dim[index]
        self.position_dim = self.heads * config.pos_head_dim[index]
        # Scores are not divided by sqrt(d): queries and keys begin small instead.
        scale = config.query_head_dim[index] ** -0.25
        outputs = 2 * self.query_dim + self.position_dim
        self.in_proj = Linear(config.encoder_dim[index], outputs, initial_scale=scale, rngs=rngs)
        self.linear_pos = Linear(config.pos_dim, self.position_dim, use_bias=False, initial_scale=0.05, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        query, key, position_query = self._project(x)
        return self._weights(query, key, position_query, positions, mask)

    def step(
        self, cached: jax.Array, x: jax.Array, positions: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        query, key, position_query = self._project(x)
        cached, key = extend(cached, key)
        return cached, self._weights(query, key, position_query, positions, mask)

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        query, key, position_query = jnp.split(self.in_proj(x), [self.query_dim, 2 * self.query_dim], axis=-1)
        return query, key, position_query

    def _weights(
        self, query: jax.Array, key: jax.Array, position_query: jax.Array, positions: jax.Array, mask: jax.Array
    ) -> jax.Array:
        query, key, position_query = (split_heads(each, self.heads) for each in (query, key, position_query))
        encoded = self.linear_pos(positions.astype(query.dtype))  # (N, heads * p)
        encoded = split_heads(encoded[None], self.heads)[0]  # (heads, N, p)
        scores = batched_product(query, key.swapaxes(-1, -2))  # (B, heads, T, keys)
        scores = scores + relative_bias(position_query, encoded, key.shape[2])
        scores = jnp.where(mask, scores.astype(jnp.float32), MASKED)
        return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


class SelfAttention(nnx.Module):
    """Values mixed by given weights: x (B, T, D), weights (B, heads, T, keys) -> (B, T, D)."""

    def __init__(self, dim: int, heads: int, value_head_dim: int, *, rngs: nnx.Rngs) -> None:
        self.heads, self.value_dim = heads, heads * value_head_dim
        self.in_proj = Linear(dim, self.value_dim, rngs=rngs)
        self.out_proj = Linear(self.value_dim, dim, initial_scale=0.05, rngs=rngs)

    def __call__(self, x: jax.Array, weights: jax.Array) -> jax.Array:
        return self._mix(self.in_proj(x), weights)

    def step(self, cached: jax.Array, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        cached, value = extend(cached, self.in_proj(x))
        return cached, self._mix(value, weights)

    def _mix(self, value: jax.Array, weights: jax.Array) -> jax.Array:
        mixed = batched_product(weights, split_heads(value, self.heads))  # (B, heads, T, v)
        return self.out_proj(mixed.swapaxes(1, 2).reshape(mixed.shape[0], mixed.shape[2], self.value_dim))


class NonlinAttention(nnx.Module):
    """Gated values mixed by the first head's weights: x (B, T, D), weights (B, T, keys) -> (B, T, D)."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.hidden = hidden
        self.in_proj = Linear(dim, 3 * hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, initial_scale=0.05, rngs=rngs)

    def __call__(self, x: jax.Array, weights: jax.Array) -> jax.Array:
        value, gate = self._project(x)
        return self.out_proj(batched_product(weights, value) * gate)

    def step(self, cached: jax.Array, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gate = self._project(x)
        cached, value = extend(cached, value)
        return cached, self.out_proj(batched_product(weights, value) * gate)

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        s, value, gate = jnp.split(self.in_proj(x), 3, axis=-1)
        return value * jnp.tanh(s), gate


class FeedForward(nnx.Module):
    """Linear, SwooshL, Linear."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, initial_scale=0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out_proj(swoosh_l(self.in_proj(x)))


class ConvModule(nnx.Module):
    """Gated depthwise convolution: x (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, width: int, causal: bool, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, 2 * dim, rngs=rngs)
        kind = ChunkCausalDepthwiseConv1d if causal else SameDepthwiseConv1d
        self.depthwise = kind(dim, width, rngs=rngs)
        self.out_proj = Linear(dim, dim, initial_scale=0.05, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array, scale_lengths: jax.Array, chunk: int | None) -> jax.Array:
        x = self._gate(x)
        x = jnp.where(length_mask(lengths, x.shape[1])[..., None], x, 0)
        return self.out_proj(swoosh_r(self.depthwise(x, scale_lengths, chunk)))

    def initial_state(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        return self.depthwise.initial_state(batch, dtype)

    def step(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, x = self.depthwise.step(state, self._gate(x))
        return state, self.out_proj(swoosh_r(x))

    def _gate(self, x: jax.Array) -> jax.Array:
        x, gate = jnp.split(self.in_proj(x), 2, axis=-1)
        return x * jax.nn.sigmoid(gate)


class SameDepthwiseConv1d(nnx.Module):
    """Depthwise convolution that sees half a kernel on either side; x (B, T, C) is zero behind its length."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.half = width // 2
        self.conv = DepthwiseConv1d(features, width, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array, chunk: int | None) -> jax.Array:
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

    def __call__(self, x: jax.Array, lengths: jax.Array, chunk: int | None) -> jax.Array:
        """x (B, T, C) zero behind its length, lengths (B,): where each row ends, chunk in frames or None for none."""
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

    def initial_state(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((batch, self.half, self.causal.bias.shape[0]), dtype)

    def step(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One chunk: state (B, width // 2, C), x (B, chunk, C) -> state, (B, chunk, C)."""
        chunk = x.shape[1]
        extended = jnp.concatenate([state, x], axis=1)
        within = self.chunkwise(jnp.pad(x, ((0, 0), (self.half, self.half), (0, 0))))
        scale = self._scale(chunk, chunk, jnp.full((1,), chunk))
        return extended[:, extended.shape[1] - self.half :], self.causal(extended) + within * scale.astype(x.dtype)

    def _scale(self, steps: int, chunk: int, sizes: jax.Array) -> jax.Array:
        """1 + left edge + right edge for every frame: (B or 1, steps, C); sizes (B,) is each row's chunk size."""
        from_begin = jnp.arange(steps) % chunk  # (steps,)
        to_end = sizes[:, None] - 1 - from_begin[None, :]  # (B, steps), negative behind the row's end
        edges = jnp.pad(self.edge_scale[...], ((0, 0), (1, 1), (0, 0)))  # a zero on either side for "no edge here"
        left = edges[0][jnp.where(from_begin < self.width, from_begin + 1, 0)]
        right = edges[1][jnp.where((to_end >= 0) & (to_end < self.width), self.width - to_end, 0)]
        return 1 + left[None] + right


class Bypass(nnx.Module):
    """original + (x - original) * scale, per channel; the scale is used as stored, also outside [0, 1]."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.full((dim,), 0.5, jnp.float32))

    def __call__(self, original: jax.Array, x: jax.Array) -> jax.Array:
        return original + (x - original) * self.scale[...].astype(x.dtype)


class Downsample(nnx.Module):
    """Softmax-weighted sum over groups of `factor` frames; the last frame fills up the last group."""

    def __init__(self, factor: int, *, rngs: nnx.Rngs) -> None:
        self.factor = factor
        self.bias = nnx.Param(jnp.zeros((factor,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, T, D) -> (B, ceil(T / factor), D)."""
        groups = ceil_div(x.shape[1], self.factor)
        x = jnp.pad(x, ((0, 0), (0, groups * self.factor - x.shape[1]), (0, 0)), mode="edge")
        x = x.reshape(x.shape[0], groups, self.factor, x.shape[2])
        weights = jax.nn.softmax(self.bias[...]).astype(x.dtype)
        # Written out: a reduction over a short axis is slow on CPU (docs/decisions.md).
        return sum(x[:, :, k] * weights[k] for k in range(self.factor))


@functools.partial(jax.jit, static_argnums=0)
def run_layer(graph: nnx.GraphDef, state: nnx.State, *inputs: jax.Array | Dropout | None) -> jax.Array:
    """A layer's call, traced once for all layers of a stack; XLA then inlines it."""
    return nnx.merge(graph, state)(*inputs)


def attention_mask(lengths: jax.Array, steps: int, chunk: int | None, left: int | None) -> jax.Array:
    """Which keys a frame may see: (B, 1, 1, T) without chunks, (B, 1, T, T) with them.

    With chunks, frame t sees chunks c - n to c of its own c = t // chunk, n = max(1, left // chunk).
    """
    keys = length_mask(lengths, steps)[:, None, None, :]
    if chunk is None:
        return keys
    index = jnp.arange(steps) // chunk
    visible = index[None, :] <= index[:, None]
    if left is not None:
        visible &= index[None, :] >= index[:, None] - max(1, left // chunk)
    return keys & visible[None, None]


def match_channels(x: jax.Array, channels: int) -> jax.Array:
    """Cut the last axis to `channels`, or fill it up with zeros."""
    if x.shape[-1] >= channels:
        return x[..., :channels]
    return jnp.pad(x, ((0, 0), (0, 0), (0, channels - x.shape[-1])))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, heads * d) -> (B, heads, T, d)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).swapaxes(1, 2)


def extend(cached: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Append new frames to cached ones: (the last frames, as many as were cached), (all frames)."""
    frames = jnp.concatenate([cached, new], axis=1)
    return frames[:, frames.shape[1] - cached.shape[1] :], frames
