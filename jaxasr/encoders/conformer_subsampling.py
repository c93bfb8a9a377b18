"""The Conformer's front end: each of its convolutions halves the frame rate and the number of mel bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.layers.convolution import Conv2d, DepthwiseConv2d
from jaxasr.layers.linear import Linear
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

WINDOW, STRIDES = (3, 3), (2, 2)
# Rows of zeros before and after the frames, and columns around the bins likewise: a causal front end pads both axes so.
PADDING, CAUSAL_PADDING = (1, 1), (2, 1)


class Subsampling(nnx.Module):
    """Convolutions of 3 x 3 with ReLU, then a linear layer over channels x bins: (B, T, bins) -> (B, T', D)."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        channels = config.front_end_channels
        padding = CAUSAL_PADDING if config.causal_front_end else PADDING
        self.convs = nnx.List(
            [Conv2d(1, channels, WINDOW, strides=STRIDES, padding=(padding, padding), rngs=rngs)]
            + [_later_conv(config, padding, rngs) for _ in range(1, config.stages)]
        )
        columns = config.input_dim
        for _ in range(config.stages):
            columns = config.halved(columns)
        self.out = Linear(columns * channels, config.dim, rngs=rngs)

    def __call__(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], starts: Int[Array, " B"] | None = None
    ) -> Float[Array, "B _ D"]:
        """frames (B, T, bins), of which those from starts (B,), by default 0, up to lengths (B,) exist -> (B, T', D).

        Each convolution sees zeros in the place of the others: what pads a single utterance. `starts` is in encoded
        frames, since the window of a stream begins between them.
        """
        x = frames[..., None]
        rate = self.config.subsampling
        for conv in self.convs:
            index = jnp.arange(x.shape[1])[None, :]
            exists = index < lengths[:, None]
            if starts is not None:
                exists &= index >= starts[:, None] * rate
            lengths, rate = self.config.halved(lengths), rate // 2
            x = jnp.where(exists[..., None, None], x, 0)
            x = jax.nn.relu(conv(x, lengths) if isinstance(conv, SeparableConv2d) else conv(x))
        # The window of a stream's step begins before its chunk.
        with ranges_over(lengths, self.config.encoded_chunk if starts is None else None):
            return self.out(x.reshape(*x.shape[:2], -1))


def _later_conv(config: ConformerConfig, padding: tuple[int, int], rngs: nnx.Rngs) -> Conv2d | SeparableConv2d:
    channels = config.front_end_channels
    if config.front_end == "separable":
        return SeparableConv2d(channels, padding, rngs=rngs)
    return Conv2d(channels, channels, WINDOW, strides=STRIDES, padding=(padding, padding), rngs=rngs)


class SeparableConv2d(nnx.Module):
    """A depthwise convolution that halves both axes, then a linear layer: (B, T, F, C) -> (B, T', F', C).

    Of the result the first `lengths` (B,) frames exist.
    """

    def __init__(self, channels: int, padding: tuple[int, int], *, rngs: nnx.Rngs) -> None:
        self.padding = padding
        self.depthwise = DepthwiseConv2d(channels, *WINDOW, strides=STRIDES, rngs=rngs)
        self.pointwise = Linear(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B T F C"], lengths: Int[Array, " B"]) -> Float[Array, "B _ _ C"]:
        x = self.depthwise(jnp.pad(x, ((0, 0), self.padding, self.padding, (0, 0))))
        with ranges_over(lengths):
            return self.pointwise(x)
