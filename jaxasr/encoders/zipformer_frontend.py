"""The Zipformer's front end, which halves the frame rate before the first stack (icefall, subsampling.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import zero_beyond
from jaxasr.encoders.zipformer_config import REACH, subsampled_length
from jaxasr.encoders.zipformer_layer import BiasNorm, swoosh_l, swoosh_r
from jaxasr.layers.convolution import Conv2d, DepthwiseConv2d
from jaxasr.layers.linear import Linear
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# What the ConvNeXt block widens its channels by.
CONVNEXT_FACTOR = 3


class ConvNeXt(nnx.Module):
    """x + pointwise(SwooshL(pointwise(depthwise 7 x 7))) over (B, T, F, C); time is not padded here."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.depthwise = DepthwiseConv2d(features, 2 * REACH + 1, 7, rngs=rngs)
        self.pointwise1 = Linear(features, hidden, rngs=rngs)
        self.pointwise2 = Linear(hidden, features, initial_scale=0.01, rngs=rngs)

    def __call__(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T-6 F C"]:
        """x (B, T + 2 REACH, F, C) with REACH frames of context at either end -> (B, T, F, C)."""
        y = self.depthwise(jnp.pad(x, ((0, 0), (0, 0), (3, 3), (0, 0))))
        y = self.pointwise2(swoosh_l(self.pointwise1(y)))
        return x[:, REACH:-REACH] + y


class ConvEmbed(nnx.Module):
    """The Zipformer's front end: (B, T, bins) at 100 Hz -> (B, (T - 7) // 2, D) at 50 Hz.

    Three 3 x 3 convolutions with SwooshR, a ConvNeXt block, a linear layer over channels x frequencies, BiasNorm.
    `channels` are those after each of the three convolutions. `chunk`: that of a model that streams, at 50 Hz.
    """

    def __init__(
        self, bins: int, channels: tuple[int, ...], features: int, chunk: int | None = None, *, rngs: nnx.Rngs
    ) -> None:
        first, second, third = channels
        self.conv1 = Conv2d(1, first, (3, 3), padding=((0, 0), (1, 1)), rngs=rngs)
        self.conv2 = Conv2d(first, second, (3, 3), strides=(2, 2), rngs=rngs)
        self.conv3 = Conv2d(second, third, (3, 3), strides=(1, 2), rngs=rngs)
        self.convnext = ConvNeXt(third, CONVNEXT_FACTOR * third, rngs=rngs)
        self.frequencies = ((bins - 1) // 2 - 1) // 2
        self.channels = third
        self.out = Linear(self.frequencies * third, features, rngs=rngs)
        self.norm = BiasNorm(features, rngs=rngs)
        self.chunk = chunk

    def __call__(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], *, isolated: bool = True
    ) -> tuple[Float[Array, "B (T-7)//2 D"], Int[Array, " B"]]:
        """frames (B, T, bins), lengths (B,) -> (B, (T - 7) // 2, D), lengths (B,).

        `isolated` sets frames beyond each row's length to zero before the ConvNeXt block, whose window would reach
        them: a batch then gives the values of its single utterances. The publisher's code does not mask them.
        """
        x = self._convolve(frames)
        lengths = subsampled_length(lengths)
        if isolated:
            x = zero_beyond(x, lengths)
        with ranges_over(lengths, self.chunk):
            x = self.convnext(jnp.pad(x, ((0, 0), (REACH, REACH), (0, 0), (0, 0))))
            return self._project(x), lengths

    def initial_state(self, batch: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "{batch} 3 F C"]:
        """The ConvNeXt block's left context, (B, REACH, F, C) of zeros."""
        return jnp.zeros((batch, REACH, self.frequencies, self.channels), dtype)

    def step(
        self, state: Float[Array, "B 3 F C"], frames: Float[Array, "B T bins"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B 3 F C"], Float[Array, "B (T-13)//2 D"]]:
        """One chunk: frames (B, 2 c + 7 + 2 REACH, bins) -> state, (B, c, D); the last REACH frames are look-ahead.

        lengths (B,): feature frames that exist; none beyond them is seen, as in an isolated row.
        """
        x = zero_beyond(self._convolve(frames), subsampled_length(lengths))  # (B, c + REACH, F, C)
        x = jnp.concatenate([state, x], axis=1)
        consumed = x.shape[1] - REACH
        return x[:, consumed - REACH : consumed], self._project(self.convnext(x))

    def _convolve(self, frames: Float[Array, "B T bins"]) -> Float[Array, "B (T-7)//2 F C"]:
        x = swoosh_r(self.conv1(frames[..., None]))
        x = swoosh_r(self.conv2(x))
        return swoosh_r(self.conv3(x))  # (B, (T - 7) // 2, F, C)

    def _project(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T D"]:
        return self.norm(self.out(x.reshape(*x.shape[:2], -1)))
