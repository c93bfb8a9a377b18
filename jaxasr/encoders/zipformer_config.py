"""Sizes of a Zipformer, and how many frames it makes of how many."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxasr.arrays import Count, at_least_zero, ceil_div

# The 7 x 7 window of the ConvNeXt block reaches this many frames to either side.
REACH = 3


def subsampled_length(frames: Count) -> Count:
    """Frames at 100 Hz to frames at 50 Hz, for integers and arrays: (T - 7) // 2, never below 0."""
    return at_least_zero((frames - 7) // 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZipformerConfig:
    """Sizes of a Zipformer; every tuple has one entry a stack, but embed_channels, the front end's three widths.

    `chunk_size` and `left_context` are in frames at 50 Hz; -1 means no chunks (every frame sees every frame) and
    unlimited left context. They matter for causal models only. `whole_chunks`: a model with chunks decodes full chunks
    only, and a chunk only while more feature frames are ready than it reads (sherpa-onnx's online recogniser).
    `padding`: what stands after the shorter rows of a batch, see encoders/zipformer.py. `stored_positions`: each layer
    holds its products with the relative positions of one chunk and its left context, instead of a matrix that gives
    them for any (exports to ONNX for fixed sizes).
    """

    kind: Literal["zipformer"] = "zipformer"
    num_layers: tuple[int, ...]
    downsampling: tuple[int, ...]
    encoder_dim: tuple[int, ...]
    feedforward_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    query_head_dim: tuple[int, ...]
    value_head_dim: tuple[int, ...]
    pos_head_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    pos_dim: int = 48
    input_dim: int = 80
    embed_channels: tuple[int, int, int] = (8, 32, 128)
    output_downsampling: int = 2
    causal: bool = False
    chunk_size: int = -1
    left_context: int = -1
    whole_chunks: bool = False
    padding: Literal["isolated", "publisher"] = "isolated"
    stored_positions: bool = False

    def __post_init__(self) -> None:
        if min(self.embed_channels) < 1:
            raise ValueError("embed_channels must be positive")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "embed_channels":
                continue
            if isinstance(value, tuple) and (len(value) != len(self.num_layers) or min(value, default=0) < 1):
                raise ValueError(f"{field.name} needs one positive number for each of {len(self.num_layers)} stacks")
        if any(width % 2 == 0 for width in self.conv_kernel):
            raise ValueError("conv_kernel must be odd")
        if self.causal and self.chunk_size > 0:
            steps = (*self.downsampling, self.output_downsampling)
            if any(self.chunk_size % step for step in steps):
                raise ValueError(f"chunk_size {self.chunk_size} is not divisible by every downsampling factor {steps}")
            if self.left_context >= 0 and any(self.left_context % step for step in self.downsampling):
                raise ValueError(f"left_context {self.left_context} is not divisible by every downsampling factor")
        if self.stored_positions and (self.chunk is None or self.left_context < 1 or self.left_context % self.chunk):
            raise ValueError("stored_positions needs a chunk_size and a left_context of whole chunks")

    @property
    def chunk(self) -> int | None:
        """Frames at 50 Hz that are attended to, and convolved, together; None where that is the whole utterance."""
        return self.chunk_size if self.causal and self.chunk_size > 0 else None

    @property
    def encoded_chunk(self) -> int | None:
        """Encoded frames of a chunk, None where there are no chunks."""
        return None if self.chunk is None else self.chunk // self.output_downsampling

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames: that of the widest stack."""
        return max(self.encoder_dim)

    @property
    def subsampling(self) -> int:
        """Feature frames from one encoded frame to the next."""
        return 2 * self.output_downsampling

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays."""
        return ceil_div(subsampled_length(frames), self.output_downsampling)

    def decoded_length(self, frames: Count) -> Count:
        """Those of the encoded frames that a search is given, for integers and arrays: see `whole_chunks`."""
        if not (self.whole_chunks and self.chunk_size > 0):
            return self.encoded_length(frames)
        chunks = ceil_div(at_least_zero(frames - self.frames_per_step), self.shift_per_step)
        return chunks * (self.chunk_size // self.output_downsampling)

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of a Zipformer."""
        return {"causal": self.causal, "chunk_size": self.chunk_size, "left_context": self.left_context}

    @property
    def streamable(self) -> bool:
        """Whether steps give what the whole utterance gives: with chunks and a limited left context."""
        chunked = self.causal and self.chunk_size > 0 and self.left_context >= 0
        return chunked and (self.whole_chunks or self.padding == "isolated")

    @property
    def first_frame(self) -> int:
        """The feature frame with which the first step begins."""
        return 0

    @property
    def frames_per_step(self) -> int:
        """Feature frames that one streaming step reads: 2 chunk_size + 13, the last 13 being look-ahead."""
        return 2 * self.chunk_size + 7 + 2 * REACH

    @property
    def shift_per_step(self) -> int:
        """Feature frames by which one streaming step moves on: 2 chunk_size."""
        return 2 * self.chunk_size

    @property
    def encoded_per_step(self) -> int:
        """Encoded frames that one streaming step gives."""
        return self.chunk_size // self.output_downsampling

    def ready_steps(self, frames: int) -> int:
        """Steps that so many feature frames suffice for: see `whole_chunks`."""
        if self.whole_chunks:
            return self.decoded_length(frames) // self.encoded_per_step
        return max((frames - self.frames_per_step) // self.shift_per_step + 1, 0)

    def ending(self, frames: int, known: int) -> tuple[int, int]:
        """Steps of a stream of so many feature frames, and those frames."""
        return ceil_div(self.decoded_length(frames), self.encoded_per_step), frames

    def counted(self, step: int, frames: int) -> int:
        """Encoded frames of a step that a search is given; a last chunk may have fewer, see `whole_chunks`."""
        if self.whole_chunks:
            return self.encoded_per_step
        return min(self.encoded_length(frames) - step * self.encoded_per_step, self.encoded_per_step)
