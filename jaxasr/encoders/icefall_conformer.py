"""icefall's Conformer (egs/librispeech/ASR/pruned_transducer_stateless2 to 5, conformer.py; arXiv 2005.08100).

It differs from the paper's, and from NeMo's (encoders/conformer.py), in its front end, in one norm a layer instead of
five, in whole instead of half feed-forward steps, and in its activation. Frames are (B, T, D), one for four feature
frames.

A batch gives what its single utterances give. `padding = "publisher"` of the configuration switches to what icefall
and sherpa-onnx compute in a padded batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.encoders.icefall_conformer_config import IcefallConformerConfig
from jaxasr.layers.attention import SelfAttention
from jaxasr.layers.convolution import Conv2d, DepthwiseConv1d
from jaxasr.layers.dropout import Dropout, no_dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.positions import relative_positions
from jaxasr.layers.repeated import run_layer
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

State = dict[str, Any]
# With this icefall and sherpa-onnx pad the shorter rows of a batch of features: log(1e-10).
PUBLISHER_PADDING = -23.025850
# What a new BasicNorm adds to the mean of squares.
INITIAL_EPSILON = 0.25


class IcefallConformer(nnx.Module):
    """Feature frames (B, T, bins) at 100 Hz to encoded frames (B, ((T - 1) // 2 - 1) // 2, D) at 25 Hz."""

    def __init__(self, config: IcefallConformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = ConvEmbed(config.input_dim, config.embed_channels, config.encoder_dim, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])

    def __call__(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "B _ D"], Int[Array, " B"]]:
        """frames (B, T, bins), lengths (B,) in frames -> encoded (B, T', D), lengths (B,) to decode; T >= 7.

        Under `whole_chunks` each row is a stream, and T' is filled up with zeros; `dropout` is for training, on whole
        utterances only.
        """
        decoded = self.config.decoded_length(lengths)
        if self.config.padding == "isolated":
            frames = zero_beyond(frames, lengths)  # what the first convolution sees beyond the end of a single one
        else:
            frames = jnp.where(length_mask(lengths, frames.shape[1])[..., None], frames, PUBLISHER_PADDING)
        if self.config.whole_chunks:
            return self._by_chunks(self.embed.convolve(frames), self.config.decoded_length(frames.shape[1])), decoded
        lengths = self.config.encoded_length(lengths)
        with ranges_over(lengths, self.config.encoded_chunk):
            x = self.embed(frames)  # (B, T', D)
        steps = x.shape[1]
        mask = length_mask(lengths, steps)[:, None, :]  # (B, 1, T)
        if self.config.chunk_size > 0:
            mask = mask & chunk_mask(steps, self.config.chunk_size, self.config.left_context)
        positions = relative_positions(steps, 0, self.config.encoder_dim)
        for index, layer in enumerate(self.layers):
            own = dropout.within(index) if dropout else None
            x = run_layer(layer, x, positions, mask, lengths, own)
        return x, decoded

    def initial_state(self, batch: int, dtype: DTypeLike = jnp.float32) -> State:
        """The state before the first step: caches (B, layers, frames, D) of zeros, and the frames seen so far (B,)."""
        if not self.config.streams:
            raise ValueError("only a Conformer with chunks and a limited left context has a step form")
        count, dim = self.config.num_layers, self.config.encoder_dim
        return {
            "attention": jnp.zeros((batch, count, self.config.left_context, dim), dtype),
            "convolution": jnp.zeros((batch, count, self.config.conv_kernel - 1, dim), dtype),
            "processed": jnp.zeros((batch,), jnp.int32),
        }

    def step(
        self,
        state: State,
        frames: Float[Array, "B T bins"],
        lengths: Int[Array, " B"] | None = None,
        final: Bool[Array, " B"] | None = None,
    ) -> tuple[State, Float[Array, "B _ D"]]:
        """One chunk of a stream: frames (B, frames_per_step, bins) -> state, encoded (B, chunk_size, D).

        The next call's frames begin shift_per_step later. A last piece may be shorter, and then gives fewer frames.
        The first and the last frame of the front end see beyond the piece and are dropped: streams begin at the second
        frame of the whole utterance. `lengths` and `final` change nothing, since chunks are whole.
        """
        return self._advance(state, self.embed.convolve(frames)[:, 1:-1])

    def _by_chunks(self, convolved: Float[Array, "B T C"], decoded: int) -> Float[Array, "B T D"]:
        """The steps over a whole utterance; the convolutions, which keep no state, have seen it in one piece."""
        chunk, reach = self.config.chunk_size, self.config.chunk_size + self.config.right_context

        def advance(state: State, start: jax.Array) -> tuple[State, jax.Array]:
            return self._advance(state, lax.dynamic_slice_in_dim(convolved, start, reach, axis=1))

        batch, steps, _ = convolved.shape
        starts = 1 + chunk * jnp.arange(decoded // chunk)
        _, pieces = lax.scan(advance, self.initial_state(batch, convolved.dtype), starts)  # (chunks, B, chunk, D)
        encoded = pieces.swapaxes(0, 1).reshape(batch, decoded, self.config.encoder_dim)
        return jnp.pad(encoded, ((0, 0), (0, steps - decoded), (0, 0)))

    def _advance(self, state: State, convolved: Float[Array, "B T C"]) -> tuple[State, Float[Array, "B _ D"]]:
        """Frames (B, T, C) of the convolutions, the last `right_context` being look-ahead -> state, the others."""
        x = self.embed.project(convolved)  # (B, T, D)
        left, ahead = self.config.left_context, self.config.right_context
        # The oldest cached frames are not filled before so many frames have gone by.
        filled = jnp.arange(left)[None, :] >= left - state["processed"][:, None]  # (B, left)
        mask = jnp.concatenate([filled, jnp.ones(x.shape[:2], bool)], axis=1)[:, None]
        positions = relative_positions(x.shape[1], left, self.config.encoder_dim)
        attention, convolution = [], []
        for index, layer in enumerate(self.layers):
            caches = {name: state[name][:, index] for name in ("attention", "convolution")}
            caches, x = run_step(*nnx.split(layer), caches, x, positions, mask, ahead)
            attention.append(caches["attention"])
            convolution.append(caches["convolution"])
        passed = x.shape[1] - ahead
        counted = passed * (self.config.subsampling if self.config.processed == "features" else 1)
        new = {
            "attention": jnp.stack(attention, axis=1),
            "convolution": jnp.stack(convolution, axis=1),
            "processed": state["processed"] + counted,
        }
        return new, x[:, :passed]


@functools.partial(jax.jit, static_argnums=(0, 6))
def run_step(
    graph: nnx.GraphDef[Layer],
    state: nnx.State[Any, Any],
    caches: State,
    x: Float[Array, "B T D"],
    positions: Float[Array, "N D"],
    mask: Bool[Array, "B 1 keys"],
    ahead: int,
) -> tuple[State, Float[Array, "B T D"]]:
    """A layer's step, traced once for all layers."""
    return nnx.merge(graph, state).step(caches, x, positions, mask, ahead)


class ConvEmbed(nnx.Module):
    """The front end: (B, T, bins) at 100 Hz -> (B, ((T - 1) // 2 - 1) // 2, D) at 25 Hz.

    Three 3 x 3 convolutions with DoubleSwish, of which the first alone is padded, a linear layer over frequencies x
    channels, BasicNorm. Frame j sees the feature frames 4j - 1 to 4j + 7.
    """

    def __init__(self, bins: int, channels: tuple[int, int, int], features: int, *, rngs: nnx.Rngs) -> None:
        first, second, third = channels
        self.conv1 = Conv2d(1, first, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)
        self.conv2 = Conv2d(first, second, (3, 3), strides=(2, 2), rngs=rngs)
        self.conv3 = Conv2d(second, third, (3, 3), strides=(2, 2), rngs=rngs)
        self.out = Linear((((bins - 1) // 2 - 1) // 2) * third, features, rngs=rngs)
        self.norm = BasicNorm(rngs=rngs)

    def __call__(self, frames: Float[Array, "B T bins"]) -> Float[Array, "B _ D"]:
        return self.project(self.convolve(frames))

    def convolve(self, frames: Float[Array, "B T bins"]) -> Float[Array, "B _ C"]:
        """The convolutions: frames (B, T, bins) -> (B, T', frequencies * channels)."""
        x = double_swish(self.conv1(frames[..., None]))
        x = double_swish(self.conv2(x))
        x = double_swish(self.conv3(x))  # (B, T', F, C)
        return x.reshape(*x.shape[:2], -1)

    def project(self, x: Float[Array, "B T C"]) -> Float[Array, "B T D"]:
        """The linear layer and its norm: (B, T', frequencies * channels) -> (B, T', D)."""
        return self.norm(self.out(x))


class Layer(nnx.Module):
    """Feed-forward, attention, convolution, feed-forward on one residual stream, then the only norm."""

    def __init__(self, config: IcefallConformerConfig, *, rngs: nnx.Rngs) -> None:
        dim = config.encoder_dim
        self.feed_forward_macaron = FeedForward(dim, config.feedforward_dim, rngs=rngs)
        self.attention = SelfAttention(dim, config.num_heads, rngs=rngs)
        self.conv = ConvModule(dim, config.conv_kernel, config.causal, rngs=rngs)
        self.feed_forward = FeedForward(dim, config.feedforward_dim, rngs=rngs)
        self.norm = BasicNorm(rngs=rngs)
        self.chunk = config.encoded_chunk

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Float[Array, "2*T-1 D"],
        mask: Bool[Array, "#B #T T"],
        lengths: Int[Array, " B"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "B T D"]:
        """x (B, T, D), positions (2T - 1, D), mask (B, T or 1, T) True where a key may be seen, lengths (B,).

        `dropout` is for training and this layer's own: it acts on what each module adds to the stream.
        """
        drop = no_dropout if dropout is None else dropout.__call__
        with ranges_over(lengths, self.chunk):
            return self._residual_stream(
                x, lambda x: self.attention(x, x, mask, positions), lambda x: self.conv(x, lengths), drop
            )

    def step(
        self,
        caches: State,
        x: Float[Array, "B T D"],
        positions: Float[Array, "N D"],
        mask: Bool[Array, "B 1 N-T+1"],
        ahead: int,
    ) -> tuple[State, Float[Array, "B T D"]]:
        """x (B, T, D), positions (left + 2T - 1, D), mask (B, 1, left + T); caches end before the last `ahead`."""
        new: State = {}

        def attend(x: jax.Array) -> jax.Array:
            keys = jnp.concatenate([caches["attention"], x], axis=1)
            new["attention"] = before_the_last(keys, ahead, caches["attention"].shape[1])
            return self.attention(x, keys, mask, positions)

        def convolve(x: jax.Array) -> jax.Array:
            new["convolution"], y = self.conv.step(caches["convolution"], x, ahead)
            return y

        return new, self._residual_stream(x, attend, convolve, no_dropout)

    def _residual_stream(
        self,
        x: Float[Array, "B T D"],
        attend: Callable[[jax.Array], jax.Array],
        convolve: Callable[[jax.Array], jax.Array],
        drop: Callable[[jax.Array, int], jax.Array],
    ) -> Float[Array, "B T D"]:
        """The modules in their order; `attend` and `convolve` see other frames than their own."""
        x = x + drop(self.feed_forward_macaron(x), 0)
        x = x + drop(attend(x), 1)
        x = x + drop(convolve(x), 2)
        x = x + drop(self.feed_forward(x), 3)
        return self.norm(x)


class FeedForward(nnx.Module):
    """Linear, DoubleSwish, Linear."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, hidden, rngs=rngs)
        self.out_proj = Linear(hidden, dim, initial_scale=0.25, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.out_proj(double_swish(self.in_proj(x)))


class ConvModule(nnx.Module):
    """Gated depthwise convolution without a norm: x (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, width: int, causal: bool, *, rngs: nnx.Rngs) -> None:
        self.context = (width - 1, 0) if causal else (width // 2, width // 2)
        self.in_proj = Linear(dim, 2 * dim, rngs=rngs)
        self.depthwise = DepthwiseConv1d(dim, width, rngs=rngs)
        self.out_proj = Linear(dim, dim, initial_scale=0.25, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
        x = zero_beyond(self._gate(x), lengths)
        return self._convolve(jnp.pad(x, ((0, 0), self.context, (0, 0))))

    def step(
        self, cache: Float[Array, "B N D"], x: Float[Array, "B T D"], ahead: int
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B T D"]]:
        """cache (B, width - 1, D), x (B, T, D) -> the cache before the last `ahead` frames, (B, T, D)."""
        x = jnp.concatenate([cache, self._gate(x)], axis=1)
        return before_the_last(x, ahead, cache.shape[1]), self._convolve(x)

    def _gate(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x, gate = jnp.split(self.in_proj(x), 2, axis=-1)
        return x * jax.nn.sigmoid(gate)

    def _convolve(self, x: Float[Array, "B N D"]) -> Float[Array, "B _ D"]:
        return self.out_proj(double_swish(self.depthwise(x)))


class BasicNorm(nnx.Module):
    """x / sqrt(mean(x^2) + e^log_epsilon) over the last axis; the epsilon is learnt (icefall, scaling.py)."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.log_epsilon = nnx.Param(jnp.full((), math.log(INITIAL_EPSILON), jnp.float32))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        squares = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(squares + jnp.exp(self.log_epsilon[...].astype(jnp.float32))).astype(x.dtype)


def double_swish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(x - 1), element-wise (icefall, scaling.py)."""
    return x * jax.nn.sigmoid(x - 1)


def chunk_mask(steps: int, chunk: int, left: int) -> Bool[Array, "{steps} {steps}"]:
    """Which keys a frame sees: those of its own chunk and of the `left` frames before it, all of them where -1."""
    own = jnp.arange(steps) // chunk
    ago = own[:, None] - own[None, :]  # chunks from the key's to the query's
    visible = ago >= 0
    return visible if left < 0 else visible & (ago <= left // chunk)


def before_the_last(x: Float[Array, "B N D"], ahead: int, count: int) -> Float[Array, "B {count} D"]:
    """The `count` frames of x (B, N, D) before its last `ahead`."""
    return x[:, x.shape[1] - ahead - count : x.shape[1] - ahead]
