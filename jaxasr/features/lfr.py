"""Stacked frames at a low rate, normalised by stored statistics: FunASR's front end around Kaldi's filterbank.

Source: FunASR, frontends/wav_frontend.py (apply_lfr, apply_cmvn).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import ceil_div, repeat_last, zero_beyond
from jaxasr.features.framing import overlapping_frames
from jaxasr.features.kaldi import KaldiFbank
from jaxasr.features.lfr_config import LfrConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Lfr(nnx.Module):
    """Waveforms to stacked frames. `offset` and `scale` (stacked * bins,) are constants of the checkpoint."""

    def __init__(self, config: LfrConfig, *, rngs: nnx.Rngs | None = None) -> None:
        self.config = config
        self.fbank = KaldiFbank(config.fbank)
        self.offset = nnx.Variable(jnp.zeros((config.output_dim,), jnp.float32))
        self.scale = nnx.Variable(jnp.ones((config.output_dim,), jnp.float32))

    def __call__(
        self, waveforms: Float[Array, "B S"], lengths: Int[Array, " B"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "B T F"], Int[Array, " B"]]:
        """waveforms (B, S) float32 in -1..1, lengths (B,) in samples -> frames (B, T, F) float32, lengths (B,).

        Frames are zero after the end of a row. `key` turns the filterbank's dither on.
        """
        frames, counts = self.fbank(waveforms, lengths, key=key)
        stacked, counts = self.stack(frames, counts)
        return self.normalize(stacked, counts), counts

    def stack(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B _ F"], Int[Array, " B"]]:
        """frames (B, T, bins), lengths (B,) -> stacked (B, ceil(T / shift), stacked * bins), lengths (B,).

        Stacked frame i holds the `stacked` frames around frame shift * i, that one being the middle; the first and the
        last frame of a row stand for those that do not exist.
        """
        size, shift = self.config.stacked, self.config.shift
        batch, steps, bins = frames.shape
        total = ceil_div(steps, shift)
        if total == 0:
            return jnp.zeros((batch, 0, size * bins), frames.dtype), lengths
        before, _ = self.config.context
        after = max(0, shift * (total - 1) + size - before - steps)
        frames = jnp.pad(repeat_last(frames, lengths), ((0, 0), (before, after), (0, 0)), mode="edge")
        stacked = overlapping_frames(frames.reshape(batch, -1), total, size * bins, shift * bins)
        return stacked, ceil_div(lengths, shift)

    def piece(
        self, samples: Float[Array, "B W"], begin: Int[Array, " B"], end: Int[Array, " B"]
    ) -> Float[Array, "B _ F"]:
        """Some frames of streams: samples (B, W), of which begin:end (B,) belong to the stream -> frames (B, T, F).

        W is reach[0] + (T - 1) * shift + reach[1] of the configuration, shift in samples.
        """
        config, fbank = self.config, self.config.fbank
        (before, after), hop = config.reach, fbank.frame_shift
        total = (samples.shape[1] - before - after) // (config.shift * hop) + 1
        count = (total - 1) * config.shift + config.stacked
        first, last = fbank.reach
        width = first + (count - 1) * hop + last
        frames = self.fbank.piece(samples[:, :width], begin, jnp.minimum(end, width))
        # The filterbank's frames in the row that the stream has; its first and its last stand for the others.
        oldest = ceil_div(begin - first, hop)
        newest = oldest + fbank.frame_count(end - first - oldest * hop) - 1
        places = jnp.clip(jnp.arange(count), oldest[:, None], jnp.maximum(oldest, newest)[:, None])
        frames = jnp.take_along_axis(frames, jnp.clip(places, 0, count - 1)[..., None], axis=1)
        size, shift = (number * fbank.output_dim for number in (config.stacked, config.shift))
        stacked = overlapping_frames(frames.reshape(frames.shape[0], -1), total, size, shift)
        return (stacked + self.offset[...]) * self.scale[...]

    def normalize(self, stacked: Float[Array, "B T F"], lengths: Int[Array, " B"]) -> Float[Array, "B T F"]:
        """(x + offset) * scale, and zeros beyond each row's length."""
        return zero_beyond((stacked + self.offset[...]) * self.scale[...], lengths)
