"""The memory block of feed-forward sequential memory networks (Zhang et al., 2015, arXiv 1512.08301)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxasr.arrays import length_mask
from jaxasr.layers.convolution import DepthwiseConv1d

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Memory(nnx.Module):
    """x (B, T, D), mask (B, T) -> (B, T, D): each frame plus a depthwise convolution over its neighbours.

    Frames out of the mask count as zeros, and are zeros in the result. `shift` moves the window of `kernel`
    frames into the past: with (kernel - 1) / 2 a frame sees no later one. Source: FunASR, models/sanm/attention.py.
    """

    def __init__(self, features: int, kernel: int, shift: int = 0, *, rngs: nnx.Rngs) -> None:
        self.kernel = kernel
        self.before = (kernel - 1) // 2 + shift
        self.after = kernel - 1 - self.before
        self.conv = DepthwiseConv1d(features, kernel, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        x = jnp.where(mask[..., None], x, 0)
        # lax.pad, since a shift of more than half a window takes frames off the end: `after` is negative then.
        around = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (self.before, self.after, 0), (0, 0, 0)))
        return jnp.where(mask[..., None], self.conv(around) + x, 0)

    def step(
        self,
        history: Float[Array, "B N D"],
        begun: Bool[Array, " B"],
        x: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B T D"]]:
        """The next frames x (B, T, D) of a stream, lengths (B,) -> the history after them, (B, T, D).

        history (B, kernel - 1, D): the frames before. Rows that have not `begun` (B,) are padded as whole ones are; all
        later steps see no frame to come, whatever the shift is, and take that padding for frames. So FunASR does.
        """
        mask = length_mask(lengths, x.shape[1])
        x = jnp.where(mask[..., None], x, 0)
        later = jnp.concatenate([history, x], axis=1)
        first = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (self.before, self.after, 0), (0, 0, 0)))
        around = jnp.where(begun[:, None, None], later, first)
        last = lengths[:, None] + jnp.arange(self.kernel - 1)
        history = jnp.take_along_axis(around, last[..., None], axis=1)
        return history, jnp.where(mask[..., None], self.conv(around) + x, 0)
