"""Sizes of a Conformer, and what they tell about lengths and streams; needs no network."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxasr.arrays import Count, ceil_div

UNLIMITED = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """Sizes of a Conformer or FastConformer.

    `subsampling`: feature frames to an encoded frame, a power of two. `front_end`: how they are joined, by ordinary
    convolutions of `front_end_channels` or by separable ones after the first; `causal_front_end`: they see no frame to
    come.
    `positions`: relative ones enter the attention, absolute ones are added to its input; `scale_inputs`: the front
    end's frames are multiplied by sqrt(dim) (NeMo's xscaling).
    `context`: encoded frames that attention sees before and after its own, -1 for all. In the style "regular" each
    frame counts them from itself. In the style "chunked" frames stand in chunks of context[1] + 1, a frame sees its own
    chunk and context[0] // (context[1] + 1) chunks before.
    `conv_context`: frames that the layers' convolutions see before and after; None for half the kernel on either side.
    `conv_norm`: the norm of the layers' convolutions. `use_bias`: whether the layers' linear layers and convolutions
    have biases (the front end's always have). `projected_dim`: width of a last linear layer, None for no such layer.
    `padding`: "publisher" feeds zeros before the beginning of a stream where NeMo's streaming program does. That
    changes the second chunk of a stream whose chunks have one frame.
    """

    kind: Literal["conformer"] = "conformer"
    num_layers: int
    dim: int
    num_heads: int
    feedforward_dim: int
    conv_kernel: int
    input_dim: int = 80
    subsampling: int = 4
    front_end: Literal["ordinary", "separable"] = "ordinary"
    front_end_channels: int
    causal_front_end: bool = False
    positions: Literal["relative", "absolute"] = "relative"
    scale_inputs: bool = True
    context: tuple[int, int] = (UNLIMITED, UNLIMITED)
    context_style: Literal["regular", "chunked"] = "regular"
    conv_context: tuple[int, int] | None = None
    conv_norm: Literal["batch", "layer"] = "batch"
    use_bias: bool = True
    projected_dim: int | None = None
    padding: Literal["isolated", "publisher"] = "isolated"

    def __post_init__(self) -> None:
        for name in ("num_layers", "dim", "num_heads", "feedforward_dim", "conv_kernel", "input_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")
        if self.front_end_channels < 1 or (self.projected_dim is not None and self.projected_dim < 1):
            raise ValueError("front_end_channels and projected_dim must be positive")
        if self.dim % self.num_heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and divisible by {self.num_heads} heads")
        if self.subsampling < 2 or self.subsampling & (self.subsampling - 1):
            raise ValueError(f"subsampling {self.subsampling} must be 2, 4, 8 or a higher power of two")
        if min(self.context) < UNLIMITED:
            raise ValueError(f"context {self.context} must be numbers of frames, or -1 for all")
        if self.context_style == "chunked" and min(self.context) >= 0 and self.context[0] % self.chunk:
            raise ValueError(f"context {self.context}: {self.context[0]} frames are no number of {self.chunk}s")
        if self.conv_context is None and self.conv_kernel % 2 == 0:
            raise ValueError("conv_kernel must be odd")
        if self.conv_context is not None and (
            min(self.conv_context) < 0 or sum(self.conv_context) + 1 != self.conv_kernel
        ):
            raise ValueError(f"conv_context {self.conv_context} must add up to conv_kernel - 1")

    @property
    def conv_padding(self) -> tuple[int, int]:
        """Frames that the layers' convolutions see before and after their own."""
        return self.conv_context or (self.conv_kernel // 2, self.conv_kernel // 2)

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames."""
        return self.projected_dim or self.dim

    @property
    def stages(self) -> int:
        """Convolutions of the front end that halve the frame rate."""
        return self.subsampling.bit_length() - 1

    def halved(self, size: Count) -> Count:
        """Frames, or columns, after one of the front end's convolutions: for integers and arrays."""
        if self.causal_front_end:
            return (size // 2 + 1) * (size > 0)
        return (size - 1) // 2 + 1

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays."""
        for _ in range(self.stages):
            frames = self.halved(frames)
        return frames

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of a Conformer."""
        return {"causal": self.streams, "context": self.context, "context_style": self.context_style}

    @property
    def chunk(self) -> int:
        """Encoded frames of a chunk: those that attention sees at once."""
        return self.context[1] + 1

    @property
    def streams(self) -> bool:
        """Whether the encoder has a step form: no layer sees beyond its chunk, and attention sees a limited past."""
        whole_chunks = self.context_style == "chunked" or self.context[1] == 0
        limited = whole_chunks and min(self.context) >= 0 and self.positions == "relative"
        return limited and self.causal_front_end and self.conv_padding[1] == 0

    @property
    def encoded_chunk(self) -> int | None:
        """Encoded frames of a chunk, None where there are no chunks."""
        return self.chunk if self.streams else None

    @property
    def streamable(self) -> bool:
        """Whether steps give what the whole utterance gives."""
        return self.streams

    @property
    def first_frame(self) -> int:
        """The feature frame with which the first step's window begins: its last is shift_per_step - subsampling."""
        return -2 * self.subsampling

    @property
    def frames_per_step(self) -> int:
        """Feature frames that one streaming step reads: those of its chunk after subsampling + 1 earlier ones."""
        return self.shift_per_step + self.subsampling + 1

    @property
    def shift_per_step(self) -> int:
        """Feature frames by which one streaming step moves on."""
        return self.subsampling * self.chunk

    @property
    def encoded_per_step(self) -> int:
        """Encoded frames that one streaming step gives."""
        return self.chunk

    def ready_steps(self, frames: int) -> int:
        """Steps whose whole window lies within so many feature frames."""
        return max((frames - self.first_frame - self.frames_per_step) // self.shift_per_step + 1, 0)

    def ending(self, frames: int, known: int) -> tuple[int, int]:
        """Steps of a stream of so many feature frames, the last chunk being shorter, and those frames."""
        return ceil_div(self.encoded_length(frames), self.chunk), frames

    def counted(self, step: int, frames: int) -> int:
        """Encoded frames of a step that exist."""
        return min(self.encoded_length(frames) - step * self.chunk, self.chunk)
