"""Continuous integrate-and-fire: how many tokens an utterance has, and a vector for each (arXiv 1905.11235).

Each frame has a weight in 0..1. Weights are added up frame by frame; wherever the sum reaches a whole number a token is
complete, and its vector is the weighted sum of the frames since the one before. The frame that completes a token gives
the rest of its weight to the next one.

All tokens are found at once (running_sums.py). Source: FunASR, models/paraformer/cif_predictor.py;
models/bicif_paraformer/cif_predictor.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.heads.parallel_config import CIFConfig, PeaksConfig
from jaxasr.heads.publisher_times import Steps
from jaxasr.heads.running_sums import PEAK, Running, fire_places, running_sum
from jaxasr.layers.convolution import Conv2d, DepthwiseConv1d
from jaxasr.layers.linear import Linear
from jaxasr.layers.products import batched_product
from jaxasr.layers.recurrent import LSTMLayer
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Fired(NamedTuple):
    """What a predictor found in each row.

    `vectors` (B, L, D): of its tokens, zeros after the last. `counts` (B,): how many there are. `frames` (B, L): the
    encoded frame at which each is complete, the tail being the one after a row's last. `weights` (B, T + 1): of its
    frames and of the tail. `running`: their sum. `steps`: of what the publisher makes times, where those are asked for.
    """

    vectors: Float[Array, "B L D"]
    counts: Int[Array, " B"]
    frames: Int[Array, "B L"]
    weights: Float[Array, "B T1"]
    running: Running
    steps: Steps | None = None

    def first(self, size: int) -> Fired:
        """Without the positions from number `size` on, which hold no tokens."""
        return self._replace(vectors=self.vectors[:, :size], frames=self.frames[:, :size])


class Carried(NamedTuple):
    """The open token of a stream: the weight (B,) that it has so far, the mean (B, D) of the frames that gave it."""

    weight: Float[Array, " B"]
    vector: Float[Array, "B D"]


class Peaks(NamedTuple):
    """The second head's weights (B, T * upsampling), which add up to the number of tokens; their running sum."""

    weights: Float[Array, "B S"]
    running: Running


class CIF(nnx.Module):
    """Encoded frames to tokens' vectors, in float32 whatever the encoder computes in."""

    def __init__(self, config: CIFConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.dim = config, dim
        width = sum(config.context) + 1
        self.conv: Conv2d | DepthwiseConv1d
        if config.convolution == "full":
            self.conv = Conv2d(dim, dim, (1, width), padding=((0, 0), config.context), rngs=rngs)
        else:
            self.conv = DepthwiseConv1d(dim, width, rngs=rngs)
        self.output = Linear(dim, 1, rngs=rngs)
        self.second = SecondHead(config.peaks, dim, rngs=rngs) if config.peaks else None

    def __call__(
        self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], counted: Bool[Array, " T"] | None = None
    ) -> Fired:
        """encoded (B, T, D) as the convolution and the tail shall see it, lengths (B,): at most T tokens a row.

        `counted` (T,): the frames whose weights count, all by default.
        """
        batch, steps, _ = encoded.shape
        encoded = encoded.astype(jnp.float32)
        weights = self.weights(self.convolved(encoded), lengths)
        weights = weights if counted is None else jnp.where(counted, weights, 0)
        tail = self.config.tail * (jnp.arange(steps + 1) == lengths[:, None])
        weights = jnp.pad(weights, ((0, 0), (0, 1))) + tail  # (B, T + 1)
        with_tail = jnp.pad(encoded, ((0, 0), (0, 1), (0, 0)))
        running = running_sum(weights)
        counts = jnp.minimum(running.counts, steps)
        vectors = zero_beyond(integrate(with_tail, running, steps), counts)
        frames = jnp.minimum(fire_places(running, steps), lengths[:, None])
        return Fired(vectors, counts, frames, weights, running)

    def known(
        self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], counts: Int[Array, " B"], most: int
    ) -> tuple[Fired, Float[Array, " B"]]:
        """The vectors of `counts` (B,) tokens, at most `most`, as training knows them; and the weights' sum (B,).

        The weights are scaled so that their sum is the count, and there is no tail.
        """
        encoded = encoded.astype(jnp.float32)
        weights = self.weights(self.convolved(encoded), lengths)
        total = weights.sum(axis=-1)
        weights = weights * (counts / jnp.where(total > 0, total, 1.0))[:, None]
        running = running_sum(weights)
        vectors = zero_beyond(integrate(encoded, running, most), counts)
        frames = jnp.minimum(fire_places(running, most), jnp.maximum(lengths - 1, 0)[:, None])
        return Fired(vectors, counts, frames, weights, running), total

    def initial_state(self, batch: int) -> Carried:
        """Nothing carried."""
        return Carried(jnp.zeros((batch,), jnp.float32), jnp.zeros((batch, self.dim), jnp.float32))

    def step(
        self,
        carried: Carried,
        encoded: Float[Array, "B T D"],
        lengths: Int[Array, " B"],
        counted: Bool[Array, "B T"],
        final: Bool[Array, " B"],
        most: int,
    ) -> tuple[Carried, Fired]:
        """One window of a stream: encoded (B, T, D), lengths (B,) -> at most `most` tokens a row.

        `counted` (B, T): the frames whose weights count. The tail is added to rows that are `final`. `weights` and
        `running` of what is returned have one frame in front, (B, T + 2), which is what was carried.
        """
        encoded = zero_beyond(encoded.astype(jnp.float32), lengths)
        weights = jnp.where(counted, self.weights(self.convolved(encoded), lengths), 0)
        tail = jnp.where(final, self.config.tail, 0.0)[:, None] * (jnp.arange(encoded.shape[1] + 1) == lengths[:, None])
        weights = jnp.concatenate([carried.weight[:, None], jnp.pad(weights, ((0, 0), (0, 1))) + tail], axis=1)
        frames = jnp.concatenate([carried.vector[:, None], jnp.pad(encoded, ((0, 0), (0, 1), (0, 0)))], axis=1)
        running = running_sum(weights)
        counts = running.counts
        vectors = integrate(frames, running, most + 1)
        left = running.fraction[:, -1]
        opened = jnp.take_along_axis(vectors, counts[:, None, None], axis=1)[:, 0]  # of the token that is not complete
        mean = opened / jnp.where(left > 0, left, 1.0)[:, None]
        places = jnp.minimum(fire_places(running, most) - 1, lengths[:, None])
        fired = Fired(zero_beyond(vectors[:, :most], counts), counts, places, weights, running)
        return Carried(left, mean), fired

    def convolved(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The convolution over encoded frames (B, T, D), before its ReLU."""
        if isinstance(self.conv, Conv2d):
            return self.conv(encoded[:, None])[:, 0]
        return self.conv(jnp.pad(encoded, ((0, 0), self.config.context, (0, 0)))) + encoded

    def weights(self, convolved: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T"]:
        """The weight of each frame: (B, T), zeros beyond `lengths` (B,)."""
        config = self.config
        with ranges_over(lengths):
            likely = jax.nn.sigmoid(self.output(jax.nn.relu(convolved))[..., 0])
        return zero_beyond(jax.nn.relu(likely * config.smooth_factor - config.noise_threshold), lengths)

    def peaks(self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], counts: Int[Array, " B"]) -> Peaks:
        """Where the second head places the `counts` tokens of each row. ValueError where there is none."""
        if self.second is None or self.config.peaks is None:
            raise ValueError("this predictor has no second head")
        encoded = encoded.astype(jnp.float32)
        seen = jax.nn.relu(self.convolved(encoded)) if self.config.peaks.shares_convolution else encoded
        weights = self.second(seen, lengths)
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights * (counts[:, None] / jnp.where(total > 0, total, 1.0))
        return Peaks(weights, running_sum(weights / PEAK))


class SecondHead(nnx.Module):
    """Frames (B, T, D), lengths (B,) -> weights (B, T * upsampling) of shorter steps.

    The LSTM of the backward direction begins at the end of each row.
    """

    def __init__(self, config: PeaksConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        # A transposed convolution whose windows do not overlap: a product for all steps of a frame, and one bias.
        self.upsample = Linear(dim, config.upsampling * dim, use_bias=False, rngs=rngs)
        self.upsample_bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
        self.forward = LSTMLayer(dim, dim, rngs=rngs) if config.recurrent else None
        self.backward = LSTMLayer(dim, dim, rngs=rngs) if config.recurrent else None
        self.output = Linear(2 * dim if config.recurrent else dim, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B S"]:
        batch, frames, dim = x.shape
        with ranges_over(lengths):
            upsampled = self.upsample(x)
        steps = upsampled.reshape(batch, frames * self.config.upsampling, dim) + self.upsample_bias[...]
        lengths = lengths * self.config.upsampling
        with ranges_over(lengths):
            if self.forward is not None and self.backward is not None:
                back = reverse_rows(self.backward(reverse_rows(steps, lengths)), lengths)
                steps = jnp.concatenate([self.forward(steps), back], axis=-1)
            likely = jax.nn.sigmoid(self.output(steps)[..., 0])
        return zero_beyond(jax.nn.relu(likely * self.config.smooth_factor - self.config.noise_threshold), lengths)


def reverse_rows(x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
    """The first `lengths` (B,) frames of each row in reverse; what comes after them stays."""
    places = jnp.arange(x.shape[1])
    source = jnp.where(length_mask(lengths, x.shape[1]), lengths[:, None] - 1 - places, places)
    return jnp.take_along_axis(x, source[..., None], axis=1)


def integrate(frames: Float[Array, "B T D"], running: Running, most: int) -> Float[Array, "B {most} D"]:
    """The vectors (B, most, D) of the first `most` tokens: what each frame's weight gives to each, times the frame.

    A share is the overlap of two intervals near 0..1, so that it is as exact in frame 5,000 as in the first; FunASR
    takes differences of long sums instead, and is off by 3e-4 there.
    """
    token = jnp.arange(most)[:, None]

    def within(whole: Int[Array, "B T"], fraction: Float[Array, "B T"]) -> Float[Array, "B most T"]:
        """How much of each token is complete after each frame."""
        return jnp.clip((whole[:, None] - token).astype(jnp.float32) + fraction[:, None], 0.0, 1.0)

    before = ((0, 0), (1, 0))
    shares = within(*running) - within(*(jnp.pad(each, before)[:, :-1] for each in running))
    return batched_product(shares, frames)
