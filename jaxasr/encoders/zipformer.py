"""The Zipformer encoder, version 2 (Yao et al., 2023, arXiv 2310.11230; icefall, egs/librispeech/ASR/zipformer).

Stacks of layers run at different frame rates: each stack shortens its input by its factor, runs its layers, stretches
the result back and mixes it with its input. Frames are (B, T, D) at 50 Hz between the stacks and (B, T', D) at 25 Hz
after the last. The front end stands in zipformer_frontend.py, a layer and its modules in zipformer_layer.py.

A batch gives what its single utterances give: values beyond a row's length never reach a valid frame.
`ZipformerConfig.padding = "publisher"` switches to what icefall and sherpa-onnx compute in a padded batch.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import ceil_div, length_mask, repeat_last
from jaxasr.encoders.zipformer_attention import attention_mask
from jaxasr.encoders.zipformer_config import ZipformerConfig, subsampled_length
from jaxasr.encoders.zipformer_frontend import ConvEmbed
from jaxasr.encoders.zipformer_layer import Bypass, Layer, LayerConfig, State
from jaxasr.encoders.zipformer_positions import compact_relative_positions
from jaxasr.layers.dropout import Dropout
from jaxasr.layers.repeated import run_layer

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# With this icefall and sherpa-onnx pad the shorter rows of a batch of features: log(1e-10).
PUBLISHER_PADDING = -23.025850


class Zipformer(nnx.Module):
    """Feature frames (B, T, bins) at 100 Hz to encoded frames (B, ((T - 7) // 2 + 1) // 2, D) at 25 Hz."""

    def __init__(self, config: ZipformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = ConvEmbed(config.input_dim, config.embed_channels, config.encoder_dim[0], config.chunk, rngs=rngs)
        self.stacks = nnx.List([Stack(config, index, rngs=rngs) for index in range(len(config.num_layers))])
        self.downsample_output = Downsample(config.output_downsampling, rngs=rngs)

    def __call__(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "B _ D"], Int[Array, " B"]]:
        """frames (B, T, bins), lengths (B,) in frames -> encoded (B, T', D), lengths (B,) to decode; T >= 9.

        A causal model attends and convolves within chunks of `chunk_size`, as its streaming form does. `dropout` is for
        training: it acts on what each module adds to its layer's residual stream.
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

    def initial_state(self, batch: int, dtype: DTypeLike = jnp.float32) -> State:
        """The state before the first step: zeros, batch axis first everywhere."""
        return {
            "embed": self.embed.initial_state(batch, dtype),
            "stacks": [stack.initial_state(batch, dtype) for stack in self.stacks],
            "processed": jnp.zeros((batch,), jnp.int32),
        }

    def step(
        self,
        state: State,
        frames: Float[Array, "B T bins"],
        lengths: Int[Array, " B"] | None = None,
        final: Bool[Array, " B"] | None = None,
    ) -> tuple[State, Float[Array, "B _ D"]]:
        """One chunk of a stream: frames (B, frames_per_step, bins) -> state, encoded (B, chunk_size // 2, D).

        The next call's frames begin shift_per_step later. lengths (B,): frames of the window that exist, where the
        utterance ends within it; the last chunk is then as short as in the whole utterance (padding "isolated").
        `final` changes nothing. Causal models with a chunk size only.
        """
        if lengths is None:
            lengths = jnp.full((frames.shape[0],), frames.shape[1], jnp.int32)
        embed, x = self.embed.step(state["embed"], frames, lengths)
        left, before = self.config.left_context, state["processed"]
        lengths = jnp.minimum(subsampled_length(lengths), self.config.chunk_size)
        # The oldest cached frames are not filled before `left_context` frames have gone by.
        filled = jnp.arange(left)[None, :] >= left - before[:, None]  # (B, left)
        outputs, stacks = [], []
        for stack, cache in zip(self.stacks, state["stacks"], strict=True):
            cache, x = stack.step(cache, x, filled, lengths, before == 0)
            stacks.append(cache)
            outputs.append(x)
        encoded = self.downsample_output(repeat_last(self._widest(outputs), lengths))
        return {"embed": embed, "stacks": stacks, "processed": before + self.config.chunk_size}, encoded

    def _widest(self, outputs: list[Float[Array, "B T _"]]) -> Float[Array, "B T D"]:
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
        layer = layer_config(config, index)
        self.layers = nnx.List([Layer(layer, rngs=rngs) for _ in range(config.num_layers[index])])
        self.downsample = Downsample(self.factor, rngs=rngs) if self.factor > 1 else None
        self.combiner = Bypass(dim, rngs=rngs) if self.factor > 1 else None
        # In frames of this stack.
        self.chunk = layer.chunk
        self.left = config.left_context // self.factor if config.left_context >= 0 else None

    def __call__(
        self, x: Float[Array, "B T _"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> Float[Array, "B T D"]:
        """x (B, T, D), lengths (B,) in frames at 50 Hz; `dropout` is for training and this stack's own."""
        x = match_channels(x, self.dim)
        original, steps = x, x.shape[1]
        if self.downsample is not None:
            if self.config.padding == "isolated":
                x = repeat_last(x, lengths)
            x, lengths = self.downsample(x), ceil_div(lengths, self.factor)
        positions = compact_relative_positions(x.shape[1], 0, self.config.pos_dim)
        mask = attention_mask(lengths, x.shape[1], self.chunk, self.left)
        scale_lengths = lengths if self.config.padding == "isolated" else jnp.full_like(lengths, x.shape[1])
        for index, layer in enumerate(self.layers):
            own = dropout.within(index) if dropout else None
            x = run_layer(layer, x, positions, mask, lengths, scale_lengths, own)
        return self._restore(original, x, steps)

    def initial_state(self, batch: int, dtype: DTypeLike) -> list[State]:
        """One dictionary of caches a layer."""
        return [layer.initial_state(batch, self._cached, dtype) for layer in self.layers]

    def step(
        self,
        state: list[State],
        x: Float[Array, "B T _"],
        filled: Bool[Array, "B left"],
        lengths: Int[Array, " B"],
        first: Bool[Array, " B"],
    ) -> tuple[list[State], Float[Array, "B T D"]]:
        """x (B, chunk, D) at 50 Hz -> state, (B, chunk, D_i).

        filled (B, left context) bool: cached frames, and lengths (B,): those of the chunk, that exist, both at 50 Hz;
        first (B,): it is the stream's first chunk.
        """
        x = match_channels(x, self.dim)
        original, steps = x, x.shape[1]
        keys = jnp.concatenate([filled, length_mask(lengths, steps)], axis=1)[:, :: self.factor]
        if self.downsample is not None:
            x, lengths = self.downsample(repeat_last(x, lengths)), ceil_div(lengths, self.factor)
        positions = compact_relative_positions(x.shape[1], self._cached, self.config.pos_dim)
        mask = keys[:, None, None, :]  # (B, 1, 1, left + chunk)
        # An utterance shorter than a chunk is a chunk of its own length; a last chunk that is shorter is none.
        scale_lengths = jnp.where(first, lengths, x.shape[1])
        caches = []
        for layer, cache in zip(self.layers, state, strict=True):
            cache, x = layer.step(cache, x, positions, mask, lengths, scale_lengths)
            caches.append(cache)
        return caches, self._restore(original, x, steps)

    @property
    def _cached(self) -> int:
        """Frames of this stack that a stream keeps."""
        if self.left is None:
            raise ValueError("a Zipformer with unlimited left context has no step form")
        return self.left

    def _restore(
        self, original: Float[Array, "B {steps} D"], x: Float[Array, "B T D"], steps: int
    ) -> Float[Array, "B {steps} D"]:
        if self.combiner is None:
            return x
        return self.combiner(original, jnp.repeat(x, self.factor, axis=1)[:, :steps])


def layer_config(config: ZipformerConfig, index: int) -> LayerConfig:
    """Sizes of the layers of the stack with this index."""
    factor = config.downsampling[index]
    return LayerConfig(
        dim=config.encoder_dim[index],
        feedforward_dim=config.feedforward_dim[index],
        num_heads=config.num_heads[index],
        query_head_dim=config.query_head_dim[index],
        value_head_dim=config.value_head_dim[index],
        pos_head_dim=config.pos_head_dim[index],
        conv_kernel=config.conv_kernel[index],
        pos_dim=config.pos_dim,
        causal=config.causal,
        chunk=None if config.chunk is None else max(config.chunk // factor, 1),
        stored_positions=(config.left_context + 2 * config.chunk_size) // factor - 1 if config.stored_positions else 0,
    )


class Downsample(nnx.Module):
    """Softmax-weighted sum over groups of `factor` frames; the last frame fills up the last group."""

    def __init__(self, factor: int, *, rngs: nnx.Rngs) -> None:
        self.factor = factor
        self.bias = nnx.Param(jnp.zeros((factor,), jnp.float32))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B groups D"]:
        """x (B, T, D) -> (B, ceil(T / factor), D)."""
        groups = ceil_div(x.shape[1], self.factor)
        x = jnp.pad(x, ((0, 0), (0, groups * self.factor - x.shape[1]), (0, 0)), mode="edge")
        x = x.reshape(x.shape[0], groups, self.factor, x.shape[2])
        weights = jax.nn.softmax(self.bias[...]).astype(x.dtype)
        # Written out: a reduction over a short axis is slow on CPU (docs/decisions.md).
        return functools.reduce(operator.add, (x[:, :, k] * weights[k] for k in range(self.factor)))


def match_channels(x: Float[Array, "B T D"], channels: int) -> Float[Array, "B T {channels}"]:
    """Cut the last axis to `channels`, or fill it up with zeros."""
    if x.shape[-1] >= channels:
        return x[..., :channels]
    return jnp.pad(x, ((0, 0), (0, 0), (0, channels - x.shape[-1])))
