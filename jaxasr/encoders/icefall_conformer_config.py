"""The configuration of icefall's Conformer, which counts frames without the module (encoders/icefall_conformer.py)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxasr.arrays import Count, at_least_zero, ceil_div

SUBSAMPLING = 4  # of the front end, in every recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class IcefallConformerConfig:
    """Sizes of an icefall Conformer; `embed_channels` are the widths of the front end's three convolutions.

    `causal`: the convolutions see no later frame. `chunk_size`, `left_context` and `right_context` are in encoded
    frames: a chunk sees `left_context` frames before it and, in a stream, `right_context` after it; -1 means no chunks
    and unlimited left context. `whole_chunks`: an utterance is taken chunk by chunk as a stream is, full chunks only,
    and a chunk only while more feature frames are ready than it reads (sherpa-onnx's online recogniser).

    `processed`: in which frames a stream counts what it has seen, which uncovers the cached frames of the attention.
    sherpa-onnx hands the graph feature frames, four times as many, so that empty caches are attended to from the
    second chunk on; "encoded" is what icefall's own streaming does. `padding`: what stands after the shorter rows of a
    batch, nothing ("isolated") or log(1e-10), which reaches the last frame of some (icefall and sherpa-onnx).
    """

    kind: Literal["icefall_conformer"] = "icefall_conformer"
    num_layers: int
    encoder_dim: int
    feedforward_dim: int
    num_heads: int
    conv_kernel: int = 31
    input_dim: int = 80
    embed_channels: tuple[int, int, int] = (8, 32, 128)
    causal: bool = False
    chunk_size: int = -1
    left_context: int = -1
    right_context: int = 0
    whole_chunks: bool = False
    processed: Literal["features", "encoded"] = "features"
    padding: Literal["isolated", "publisher"] = "isolated"

    def __post_init__(self) -> None:
        sizes = ("num_layers", "encoder_dim", "feedforward_dim", "num_heads", "conv_kernel")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if min(self.embed_channels) < 1:
            raise ValueError("embed_channels must be positive")
        if self.input_dim < 7:
            raise ValueError(f"input_dim is {self.input_dim}, but the front end takes 7 bins at least")
        if self.conv_kernel % 2 == 0:
            raise ValueError("conv_kernel must be odd")
        if self.encoder_dim % self.num_heads or self.encoder_dim % 2:
            raise ValueError(f"encoder_dim {self.encoder_dim} must be even and divisible by num_heads {self.num_heads}")
        if self.right_context < 0:
            raise ValueError("right_context must not be negative")
        if self.chunk_size > 0:
            if not self.causal:
                raise ValueError("chunk_size is for causal convolutions")
            if self.left_context >= 0 and self.left_context % self.chunk_size:
                raise ValueError(
                    f"left_context {self.left_context} must be a whole number of chunks of {self.chunk_size} frames"
                )
        if self.whole_chunks and not self.streams:
            raise ValueError("whole_chunks needs a chunk_size and a limited left_context")

    @property
    def streams(self) -> bool:
        """Whether the encoder has a `step`: chunks, and a limited left context to keep."""
        return self.chunk_size > 0 and self.left_context >= 0

    @property
    def encoded_chunk(self) -> int | None:
        """Encoded frames of a chunk, None where there are no chunks."""
        return self.chunk_size if self.chunk_size > 0 else None

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames."""
        return self.encoder_dim

    @property
    def subsampling(self) -> int:
        """Feature frames from one encoded frame to the next."""
        return SUBSAMPLING

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays: ((T - 1) // 2 - 1) // 2."""
        return at_least_zero(((frames - 1) // 2 - 1) // 2)

    def decoded_length(self, frames: Count) -> Count:
        """Those of the encoded frames that a search is given, for integers and arrays: see `whole_chunks`."""
        if not self.whole_chunks:
            return self.encoded_length(frames)
        return ceil_div(at_least_zero(frames - self.frames_per_step), self.shift_per_step) * self.chunk_size

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of an icefall Conformer."""
        return {"causal": self.causal, "chunk_size": self.chunk_size, "left_context": self.left_context}

    @property
    def streamable(self) -> bool:
        """Whether steps give what the whole utterance gives."""
        return self.whole_chunks

    @property
    def first_frame(self) -> int:
        """The feature frame with which the first step begins."""
        return 0

    @property
    def frames_per_step(self) -> int:
        """Feature frames that one streaming step reads; an encoded frame is dropped at either end."""
        return SUBSAMPLING * (self.chunk_size + self.right_context + 2) + 3

    @property
    def shift_per_step(self) -> int:
        """Feature frames by which one streaming step moves on."""
        return SUBSAMPLING * self.chunk_size

    @property
    def encoded_per_step(self) -> int:
        """Encoded frames that one streaming step gives."""
        return self.chunk_size

    def ready_steps(self, frames: int) -> int:
        """Steps that so many feature frames suffice for: see `whole_chunks`."""
        return self.decoded_length(frames) // self.chunk_size

    def ending(self, frames: int, known: int) -> tuple[int, int]:
        """Steps of a stream of so many feature frames, and those frames."""
        return self.decoded_length(frames) // self.chunk_size, frames

    def counted(self, step: int, frames: int) -> int:
        """Encoded frames of a step that a search is given: all."""
        return self.chunk_size
