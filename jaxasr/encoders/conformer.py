"""The Conformer (Gulati et al., 2020, arXiv 2005.08100) and the FastConformer (Rekesh et al., 2023, arXiv 2305.05084).

Both as NVIDIA NeMo publishes them: a front end of strided convolutions, then equal layers at one frame rate. The front
end stands in conformer_subsampling.py, a layer and its modules in conformer_layer.py, sizes in conformer_config.py.

A batch gives what its single utterances give: values beyond a row's length never reach a valid frame. With a limited
context and causal convolutions `step` runs a stream chunk by chunk and gives what the whole utterance gives
(Noroozi et al., 2023, arXiv 2312.17279).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import length_mask
from jaxasr.encoders.conformer_config import UNLIMITED, ConformerConfig
from jaxasr.encoders.conformer_layer import Layer
from jaxasr.encoders.conformer_subsampling import Subsampling
from jaxasr.layers.dropout import Dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.positions import relative_positions, sinusoids
from jaxasr.layers.repeated import run_layer
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

State = dict[str, Any]
# Encoded frames at the begin of a stream's window that come out for its padding, and are dropped: two windows of the
# front end's last convolution.
DROPPED = 2


class Conformer(nnx.Module):
    """Feature frames (B, T, bins) to encoded frames (B, T', D), T' = config.encoded_length(T)."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.subsample = Subsampling(config, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.out_proj = Linear(config.dim, config.projected_dim, rngs=rngs) if config.projected_dim else None

    def __call__(
        self, frames: Float[Array, "B T bins"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "B _ D"], Int[Array, " B"]]:
        """frames (B, T, bins), lengths (B,) in frames -> encoded (B, T', D), lengths (B,).

        `dropout` is for training: it acts on what each module adds to its layer's residual stream.
        """
        x = self._scaled(self.subsample(frames, lengths))
        lengths = self.config.encoded_length(lengths)
        steps = x.shape[1]
        positions = None
        if self.config.positions == "relative":
            positions = relative_positions(steps, 0, self.config.dim)
        else:
            x = x + sinusoids(jnp.arange(steps, dtype=jnp.float32), self.config.dim).astype(x.dtype)
        mask = self.mask(lengths, steps)
        for index, layer in enumerate(self.layers):
            own = dropout.within(index) if dropout else None
            x = run_layer(layer, x, mask, positions, lengths, own)
        with ranges_over(lengths, self.config.encoded_chunk):
            return self._projected(x), lengths

    def mask(self, lengths: Int[Array, " B"], steps: int) -> Bool[Array, "B _ {steps}"]:
        """Which keys a query sees: those within its row's length and its context, (B, T or 1, T)."""
        return length_mask(lengths, steps)[:, None, :] & context_mask(self.config, steps)

    def initial_state(self, batch: int, dtype: DTypeLike = jnp.float32) -> State:
        """The state before the first step: zeros, batch axis first everywhere. `processed` counts encoded frames."""
        left = self.config.context[0]
        return {
            "layers": [layer.initial_state(batch, left, dtype) for layer in self._streaming_layers],
            "processed": jnp.zeros((batch,), jnp.int32),
        }

    def step(
        self,
        state: State,
        frames: Float[Array, "B T bins"],
        lengths: Int[Array, " B"] | None = None,
        final: Bool[Array, " B"] | None = None,
    ) -> tuple[State, Float[Array, "B _ D"]]:
        """One chunk of a stream: frames (B, frames_per_step, bins) -> state, encoded (B, chunk, D).

        The window's last shift_per_step frames are new, and the next call's window begins shift_per_step later. The
        first window ends with feature frame shift_per_step - subsampling: frames before the utterance are ignored.
        lengths (B,): frames of the window that exist, where the utterance ends within it; of the encoded frames as many
        are valid as `encoded_length` of the utterance counts. `final` changes nothing. Configurations that `streams`
        only.
        """
        if lengths is None:
            lengths = jnp.full((frames.shape[0],), frames.shape[1], jnp.int32)
        before = state["processed"]
        starts = DROPPED - before
        if self.config.padding == "publisher":
            starts = jnp.where(before == 0, starts, 0)
        x = self._scaled(self.subsample(frames, lengths, starts)[:, DROPPED:])
        lengths = self.config.encoded_length(lengths) - DROPPED
        steps, left = x.shape[1], self.config.context[0]
        filled = jnp.arange(left)[None, :] >= left - before[:, None]  # (B, left)
        mask = jnp.concatenate([filled, length_mask(lengths, steps)], axis=1)[:, None, :]  # (B, 1, left + T)
        positions = relative_positions(steps, left, self.config.dim)
        layers = []
        for layer, cache in zip(self._streaming_layers, state["layers"], strict=True):
            cache, x = layer.step(cache, x, mask, positions, lengths)
            layers.append(cache)
        return {"layers": layers, "processed": before + steps}, self._projected(x)

    @property
    def _streaming_layers(self) -> nnx.List[Layer]:
        if not self.config.streams:
            raise ValueError(
                "only a Conformer with causal convolutions and a limited context of chunks has a step form"
            )
        return self.layers

    def _scaled(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x * math.sqrt(self.config.dim) if self.config.scale_inputs else x

    def _projected(self, x: Float[Array, "B T _"]) -> Float[Array, "B T D"]:
        return x if self.out_proj is None else self.out_proj(x)


def context_mask(config: ConformerConfig, steps: int) -> Bool[Array, "1 _ {steps}"]:
    """Which keys a query sees for the context alone: (1, T, T), or (1, 1, T) where it is unlimited."""
    left, right = config.context
    if left == right == UNLIMITED:
        return jnp.ones((1, 1, steps), bool)
    index = jnp.arange(steps)
    if config.context_style == "chunked" and right != UNLIMITED:
        ago = index[:, None] // config.chunk - index[None, :] // config.chunk  # chunks from the key's to the query's
        visible = ago >= 0
        if left != UNLIMITED:
            visible &= ago <= left // config.chunk
        return visible[None]
    offset = index[None, :] - index[:, None]  # from query to key
    visible = jnp.ones((steps, steps), bool)
    if left != UNLIMITED:
        visible &= offset >= -left
    if right != UNLIMITED:
        visible &= offset <= right
    return visible[None]
