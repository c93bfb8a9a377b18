"""A layer of the Conformer (Gulati et al., 2020, section 2): two half feed-forwards around attention and convolution.

Every module has a norm before it and adds to the residual stream; a norm ends the layer. Shapes are (B, T, D). In a
stream T is a chunk, and attention sees the cached frames and the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import zero_beyond
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.layers.attention import SelfAttention, extend_cache
from jaxasr.layers.convolution import DepthwiseConv1d
from jaxasr.layers.dropout import Dropout, no_dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.norms import BatchNorm, LayerNorm
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

State = dict[str, jax.Array]
BATCH_EPSILON = 1e-5  # of the batch norms, PyTorch's default


class Layer(nnx.Module):
    """x + FF/2, + attention, + convolution, + FF/2, norm."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        dim, use_bias = config.dim, config.use_bias
        self.norm_feed_forward1 = LayerNorm(dim, rngs=rngs)
        self.feed_forward1 = FeedForward(dim, config.feedforward_dim, use_bias, rngs=rngs)
        self.norm_attention = LayerNorm(dim, rngs=rngs)
        self.attention = SelfAttention(
            dim, config.num_heads, relative=config.positions == "relative", use_bias=use_bias, rngs=rngs
        )
        self.norm_conv = LayerNorm(dim, rngs=rngs)
        self.conv = ConvModule(config, rngs=rngs)
        self.norm_feed_forward2 = LayerNorm(dim, rngs=rngs)
        self.feed_forward2 = FeedForward(dim, config.feedforward_dim, use_bias, rngs=rngs)
        self.norm_out = LayerNorm(dim, rngs=rngs)
        self.chunk = config.encoded_chunk

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #T T"],
        positions: Float[Array, "2*T-1 D"] | None,
        lengths: Int[Array, " B"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "B T D"]:
        """x (B, T, D), mask (B, T or 1, T) True where a key may be seen, positions (2T - 1, D), lengths (B,).

        `dropout` is for training and this layer's own: it acts on what each module adds to the stream.
        """
        drop = no_dropout if dropout is None else dropout.__call__
        with ranges_over(lengths, self.chunk):
            return self._residual_stream(
                x, lambda x: self.attention(x, x, mask, positions), lambda x: self.conv(x, lengths), drop
            )

    def initial_state(self, batch: int, left: int, dtype: DTypeLike) -> State:
        """The attention's input at the last `left` frames, and that of the depthwise convolution."""
        dim = self.norm_out.scale.shape[0]
        return {
            "attention": jnp.zeros((batch, left, dim), dtype),
            "conv": jnp.zeros((batch, self.conv.padding[0], dim), dtype),
        }

    def step(
        self,
        state: State,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #T keys"],
        positions: Float[Array, "keys+T-1 D"],
        lengths: Int[Array, " B"],
    ) -> tuple[State, Float[Array, "B T D"]]:
        """x (B, chunk, D), mask (B, 1, left + chunk), positions (left + 2 chunk - 1, D), lengths (B,) in the chunk."""
        new: State = {}

        def attend(x: jax.Array) -> jax.Array:
            new["attention"], seen = extend_cache(state["attention"], x)
            return self.attention(x, seen, mask, positions)

        def convolve(x: jax.Array) -> jax.Array:
            new["conv"], y = self.conv.step(state["conv"], x, lengths)
            return y

        return new, self._residual_stream(x, attend, convolve, no_dropout)

    def _residual_stream(
        self,
        x: Float[Array, "B T D"],
        attend: Callable[[jax.Array], jax.Array],
        convolve: Callable[[jax.Array], jax.Array],
        drop: Callable[[jax.Array, int], jax.Array],
    ) -> Float[Array, "B T D"]:
        """The modules in their order; `attend` and `convolve` run those that see other frames than their own."""
        x = x + 0.5 * drop(self.feed_forward1(self.norm_feed_forward1(x)), 0)
        x = x + drop(attend(self.norm_attention(x)), 1)
        x = x + drop(convolve(self.norm_conv(x)), 2)
        x = x + 0.5 * drop(self.feed_forward2(self.norm_feed_forward2(x)), 3)
        return self.norm_out(x)


class FeedForward(nnx.Module):
    """Linear, Swish, Linear."""

    def __init__(self, dim: int, hidden: int, use_bias: bool, *, rngs: nnx.Rngs) -> None:
        self.in_proj = Linear(dim, hidden, use_bias=use_bias, rngs=rngs)
        self.out_proj = Linear(hidden, dim, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.out_proj(jax.nn.silu(self.in_proj(x)))


class ConvModule(nnx.Module):
    """Gate, depthwise convolution, norm, Swish: x (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        dim, use_bias = config.dim, config.use_bias
        self.padding = config.conv_padding
        self.in_proj = Linear(dim, 2 * dim, use_bias=use_bias, rngs=rngs)
        self.depthwise = DepthwiseConv1d(dim, config.conv_kernel, use_bias=use_bias, rngs=rngs)
        self.norm = (
            BatchNorm(dim, BATCH_EPSILON, rngs=rngs) if config.conv_norm == "batch" else LayerNorm(dim, rngs=rngs)
        )
        self.out_proj = Linear(dim, dim, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
        x = zero_beyond(self._gate(x), lengths)
        return self._convolve(jnp.pad(x, ((0, 0), self.padding, (0, 0))), lengths)

    def step(
        self, state: Float[Array, "B left D"], x: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> tuple[Float[Array, "B left D"], Float[Array, "B T D"]]:
        """One chunk: state (B, width - 1, D), the frames before x, of a causal convolution."""
        state, x = extend_cache(state, zero_beyond(self._gate(x), lengths))
        return state, self._convolve(x, lengths)

    def _gate(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x, gate = jnp.split(self.in_proj(x), 2, axis=-1)
        return x * jax.nn.sigmoid(gate)

    def _convolve(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B _ D"]:
        x = self.depthwise(x)
        x = self.norm(x, lengths) if isinstance(self.norm, BatchNorm) else self.norm(x)
        return self.out_proj(jax.nn.silu(x))
