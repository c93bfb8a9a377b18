"""Citrinet (Majumdar et al., 2021, arXiv 2104.01721), and Jasper, QuartzNet, MatchboxNet, made of the same blocks.

A block is a row of convolutions over time, each with a norm, the last of them followed by squeeze-excite; residuals of
earlier inputs join before the block's last activation (NeMo, conv_asr.py and jasper.py; Kriman et al., 2019, arXiv
1910.10261). Frames are (B, T, C). Each convolution hears zeros from an utterance's length on, so that a batch gives
what single utterances give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import ceil_div, zero_beyond
from jaxasr.encoders.citrinet_config import BlockConfig, CitrinetConfig
from jaxasr.layers.dropout import Dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.norms import BatchNorm
from jaxasr.layers.products import convolution_product, depthwise_product, linear_product
from jaxasr.layers.repeated import run_layer

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# NeMo's own for batch normalisation, PyTorch's default for group normalisation.
BATCH_EPSILON, GROUP_EPSILON = 1e-3, 1e-5

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "hardtanh": jax.nn.hard_tanh,
    "selu": jax.nn.selu,
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "identity": lambda x: x,
}


class Citrinet(nnx.Module):
    """Feature frames (B, T, bins) to encoded frames (B, T', filters of the last block)."""

    def __init__(self, config: CitrinetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.blocks = nnx.List([Block(config, index, rngs=rngs) for index in range(len(config.blocks))])

    def __call__(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "B _ D"], Int[Array, " B"]]:
        """frames (B, T, bins), lengths (B,) in frames -> encoded (B, T', D), lengths (B,).

        `dropout` is for training: it acts after every activation.
        """
        encoded = self.block_outputs(frames, lengths, dropout)[-1]
        if self.config.conv_mask:  # trailing frames that only statistics count are no encoded frames
            encoded = encoded[:, : self.config.encoded_length(frames.shape[1])]
        return encoded, self.config.encoded_length(lengths)

    def block_outputs(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> list[Float[Array, "B _ _"]]:
        """The output of each block, (B, T_i, C_i), with trailing frames where the configuration has them."""
        trailing = self.config.trailing_frames
        x = jnp.pad(zero_beyond(frames, lengths), ((0, 0), (0, trailing), (0, 0)))
        present = lengths + trailing
        valid = lengths if self.config.conv_mask else present
        inputs = [x]
        for index, (block, config) in enumerate(zip(self.blocks, self.config.blocks, strict=True)):
            sources = [inputs[index - back] for back in config.residual]
            drop = dropout.within(index) if dropout else None
            inputs.append(run_layer(block, inputs[-1], sources, valid, present, drop))
            valid, present = config.output_length(valid), config.output_length(present)
        return inputs[1:]


class Block(nnx.Module):
    """Convolutions with norms and activations, squeeze-excite, residuals: x (B, T, C) -> (B, T', filters)."""

    def __init__(self, whole: CitrinetConfig, index: int, *, rngs: nnx.Rngs) -> None:
        """Block `index` of the network `whole`."""
        config = self.config = whole.blocks[index]
        self.activation = whole.activation
        norm = functools.partial(_norm, whole, config.filters, rngs=rngs)
        widths = (whole.width(index), *([config.filters] * (config.repeat - 1)))
        pairs = zip(widths, config.strides, strict=True)
        self.units = nnx.List([Unit(config, width, stride, norm(), rngs=rngs) for width, stride in pairs])
        self.squeeze = SqueezeExcite(config, whole.activation, rngs=rngs) if config.squeeze else None
        # A residual strides once, by as much as all the block's convolutions together.
        stride = math.prod(config.strides)
        shortcut = BlockConfig(filters=config.filters, kernel=1, stride=stride, separable=False)
        sources = [whole.width(index - back) for back in config.residual]
        self.residuals = nnx.List([Unit(shortcut, width, stride, norm(), rngs=rngs) for width in sources])

    def __call__(
        self,
        x: Float[Array, "B T C"],
        sources: list[Float[Array, "B T _"]],
        valid: Int[Array, " B"],
        present: Int[Array, " B"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "B _ D"]:
        """x (B, T, C), the residuals' `sources`, lengths (B,) of x that convolutions hear and norms count."""
        before = valid, present
        for place, unit in enumerate(self.units):
            x = self._activate(x, dropout, place - 1) if place else x
            x = unit(x, valid, present)
            valid, present = unit.output_length(valid), unit.output_length(present)
        if self.squeeze is not None:
            x = self.squeeze(x, valid)
        combine = jnp.maximum if self.config.residual_mode == "max" else jnp.add
        for unit, source in zip(self.residuals, sources, strict=True):
            x = combine(x, unit(source, *before))
        return self._activate(x, dropout, len(self.units) - 1)

    def _activate(self, x: Float[Array, "B T C"], dropout: Dropout | None, place: int) -> Float[Array, "B T C"]:
        x = ACTIVATIONS[self.activation](x)
        return dropout(x, place) if dropout else x


class Unit(nnx.Module):
    """One convolution, separable or not, its norm and the shuffle of its groups: x (B, T, in) -> (B, T', filters)."""

    def __init__(
        self, config: BlockConfig, inputs: int, stride: int, norm: BatchNorm | GroupNorm, *, rngs: nnx.Rngs
    ) -> None:
        self.config, self.stride = config, stride
        self.depthwise = Depthwise(config, inputs, stride, rngs=rngs) if config.separable else None
        self.conv: Pointwise | Convolution
        if config.separable or config.is_pointwise:
            self.conv = Pointwise(inputs, config.filters, config.groups, 1 if config.separable else stride, rngs=rngs)
        else:
            self.conv = Convolution(config, inputs, stride, rngs=rngs)
        self.norm = norm

    def output_length(self, frames: Int[Array, " B"]) -> Int[Array, " B"]:
        """Frames after the convolution."""
        return self.config.convolved(frames, self.stride)

    def __call__(
        self, x: Float[Array, "B T C"], valid: Int[Array, " B"], present: Int[Array, " B"]
    ) -> Float[Array, "B _ D"]:
        """x (B, T, in), zeros beyond `valid` (B,) frames for the convolution; norms count `present` (B,) frames."""
        x = zero_beyond(x, valid)
        if self.depthwise is not None:
            x = zero_beyond(self.depthwise(x), self.output_length(valid))
        x = self.conv(x)
        x = self.norm(x, self.output_length(present))
        return shuffle_groups(x, self.config.groups) if self.config.groups > 1 else x


class Depthwise(nnx.Module):
    """Depthwise convolution over time, without bias: x (B, T, C) -> (B, T', C); kernel (width, 1, C or heads)."""

    def __init__(self, config: BlockConfig, features: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.stride = config, stride
        self.kernel = _kernel(rngs, config.kernel, 1, config.heads or features)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B _ C"]:
        frames, features = self.config.convolved(x.shape[1], self.stride), x.shape[-1]
        x = _folded(jnp.pad(x, ((0, 0), self.config.pads, (0, 0))), self.config.dilation)
        # Channels that share a kernel stand in columns, like the frames between a dilated kernel's taps.
        x = x.reshape(*x.shape[:2], -1, self.config.heads or features)
        y = depthwise_product(x, self.kernel[:, None], (self.stride, 1))
        return y.reshape(y.shape[0], -1, features)[:, :frames]


class Convolution(nnx.Module):
    """Ordinary convolution over time, without bias: x (B, T, in) -> (B, T', out); kernel (width, in / groups, out)."""

    def __init__(self, config: BlockConfig, inputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.stride = config, stride
        self.kernel = _kernel(rngs, config.kernel, inputs // config.groups, config.filters)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B _ D"]:
        frames, outputs = self.config.convolved(x.shape[1], self.stride), self.config.filters // self.config.groups
        x = _folded(jnp.pad(x, ((0, 0), self.config.pads, (0, 0))), self.config.dilation)
        strides, padding = (self.stride, 1), ((0, 0), (0, 0))
        groups = [
            convolution_product(part, self.kernel[:, None, :, n * outputs : (n + 1) * outputs], strides, padding)
            for n, part in enumerate(jnp.split(x, self.config.groups, axis=-1))
        ]
        y = jnp.concatenate(groups, axis=-1)
        return y.reshape(y.shape[0], -1, y.shape[-1])[:, :frames]


class Pointwise(nnx.Module):
    """Every `stride`-th frame times a kernel, without bias: x (B, T, in) -> (B, T', out); kernel (in / groups, out)."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.outputs, self.groups, self.stride = outputs // groups, groups, stride
        self.kernel = _kernel(rngs, inputs // groups, outputs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B _ D"]:
        x = x[:, :: self.stride]
        if self.groups == 1:
            return linear_product(x, self.kernel[...])
        groups = [
            linear_product(part, self.kernel[:, n * self.outputs : (n + 1) * self.outputs])
            for n, part in enumerate(jnp.split(x, self.groups, axis=-1))
        ]
        return jnp.concatenate(groups, axis=-1)


class SqueezeExcite(nnx.Module):
    """Channels scaled by a gate of their means over an utterance (Hu et al., 2018, arXiv 1709.01507): (B, T, C)."""

    def __init__(self, config: BlockConfig, activation: str, *, rngs: nnx.Rngs) -> None:
        self.activation = activation
        hidden = config.filters // config.squeeze
        self.in_proj = Linear(config.filters, hidden, use_bias=False, rngs=rngs)
        self.out_proj = Linear(hidden, config.filters, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> Float[Array, "B T C"]:
        total = zero_beyond(x, lengths).sum(1, dtype=jnp.float32)  # (B, C)
        mean = (total / jnp.maximum(lengths, 1)[:, None]).astype(x.dtype)
        gate = self.out_proj(ACTIVATIONS[self.activation](self.in_proj(mean)))
        return x * jax.nn.sigmoid(gate)[:, None]


class GroupNorm(nnx.Module):
    """Group normalisation over an utterance (Wu and He, 2018, arXiv 1803.08494): x (B, T, C) -> (B, T, C)."""

    def __init__(self, features: int, groups: int, epsilon: float, *, rngs: nnx.Rngs) -> None:
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> Float[Array, "B T C"]:
        """Mean and variance of each group are those of the first `lengths` (B,) frames."""
        grouped = x.astype(jnp.float32).reshape(*x.shape[:2], self.groups, -1)
        count = jnp.maximum(lengths, 1)[:, None, None, None] * grouped.shape[3]

        def mean_of(values: jax.Array) -> jax.Array:
            return zero_beyond(values, lengths).sum((1, 3), keepdims=True) / count  # (B, 1, groups, 1)

        centred = grouped - mean_of(grouped)
        y = (centred * jax.lax.rsqrt(mean_of(centred**2) + self.epsilon)).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def _norm(config: CitrinetConfig, features: int, *, rngs: nnx.Rngs) -> BatchNorm | GroupNorm:
    if config.normalization == "batch":
        return BatchNorm(features, BATCH_EPSILON, rngs=rngs)
    return GroupNorm(features, config.norm_groups or features, GROUP_EPSILON, rngs=rngs)


def _kernel(rngs: nnx.Rngs, *shape: int) -> nnx.Param[jax.Array]:
    """A kernel of this shape, outputs last, uniform within PyTorch's default bounds."""
    bound = math.prod(shape[:-1]) ** -0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


def _folded(x: Float[Array, "B T C"], columns: int) -> Float[Array, "B rows {columns} C"]:
    """Frames in rows of `columns`, the last row filled up with zeros."""
    rows = ceil_div(x.shape[1], columns)
    x = jnp.pad(x, ((0, 0), (0, rows * columns - x.shape[1]), (0, 0)))
    return x.reshape(x.shape[0], rows, columns, x.shape[2])


def shuffle_groups(x: Float[Array, "B T C"], groups: int) -> Float[Array, "B T C"]:
    """The first channel of every group, then the second of every group, and so on."""
    return x.reshape(*x.shape[:2], groups, -1).swapaxes(2, 3).reshape(x.shape)
