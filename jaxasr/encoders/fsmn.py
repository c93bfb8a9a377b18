"""Feed-forward sequential memory network: linear layers, and between them memories over neighbouring frames.

Zhang et al., 2018, Deep-FSMN, arXiv 1803.05030, as FunASR's voice activity detector has it (fsmn_vad_streaming/
encoder.py). A batch gives what its single utterances give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from flax import nnx

from jaxasr.arrays import length_mask
from jaxasr.encoders.fsmn_config import FsmnConfig
from jaxasr.layers.dropout import Dropout, no_dropout
from jaxasr.layers.linear import Linear
from jaxasr.layers.memory import Memory
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Fsmn(nnx.Module):
    """Feature frames (B, T, F) to encoded frames (B, T, D)."""

    def __init__(self, config: FsmnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.in_hidden = Linear(config.input_dim, config.input_hidden, rngs=rngs)
        self.in_proj = Linear(config.input_hidden, config.dim, rngs=rngs)
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.out_proj = Linear(config.dim, config.output_dim, rngs=rngs)

    def __call__(
        self, frames: Float[Array, "B T F"], lengths: Int[Array, " B"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
        """frames (B, T, F), lengths (B,) in frames -> encoded (B, T, D), lengths (B,).

        `dropout` is for training: it acts on what each block gives.
        """
        mask = length_mask(lengths, frames.shape[1])
        drop = dropout or no_dropout
        with ranges_over(mask):
            x = jax.nn.relu(self.in_proj(self.in_hidden(frames)))
            for index, layer in enumerate(self.layers):
                x = drop(layer(x, mask), index)
            return self.out_proj(x), lengths


class Block(nnx.Module):
    """(B, T, D), mask (B, T) -> (B, T, D): to a narrower width, the memory there, and back."""

    def __init__(self, config: FsmnConfig, *, rngs: nnx.Rngs) -> None:
        width = config.past + 1 + config.future
        self.narrow = Linear(config.dim, config.memory_dim, use_bias=False, rngs=rngs)
        self.memory = Memory(config.memory_dim, width, config.past - (width - 1) // 2, rngs=rngs)
        self.widen = Linear(config.memory_dim, config.dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return jax.nn.relu(self.widen(self.memory(self.narrow(x), mask)))
