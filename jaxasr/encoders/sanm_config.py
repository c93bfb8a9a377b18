"""Sizes of a SAN-M encoder, and what they tell about lengths; needs no network."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxasr.arrays import Count
from jaxasr.layers.overlapped import Overlapped
from jaxasr.layers.sliding import Sliding


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanmConfig:
    """Sizes of a SAN-M encoder; the defaults are those of Paraformer-large.

    `input_dim`: width of the features, from which the first layer maps to `dim`. `kernel`, `shift`: frames of each
    memory's window, and by how many it is moved into the past. `chunks`: the utterance is encoded in overlapping
    chunks, whose rows come out one after another, gaps included. `window`: that in which a stream is encoded.
    """

    kind: Literal["sanm"] = "sanm"
    num_layers: int = 50
    dim: int = 512
    num_heads: int = 4
    feedforward_dim: int = 2048
    kernel: int = 11
    shift: int = 0
    input_dim: int = 560
    chunks: Overlapped | None = None
    window: Sliding | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "dim", "num_heads", "feedforward_dim", "kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be divisible by {self.num_heads} heads")
        if self.input_dim < 4 or self.input_dim % 2:
            raise ValueError(f"input_dim {self.input_dim} must be even and at least 4")
        if self.shift < 0:
            raise ValueError(f"shift must not be negative, not {self.shift}")

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames."""
        return self.dim

    @property
    def subsampling(self) -> int:
        """Every feature frame is encoded."""
        return 1

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays; of chunks, their rows."""
        return frames if self.chunks is None else self.chunks.length(frames)

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of a SAN-M encoder."""
        chunked = {} if self.chunks is None else {"chunk": self.chunks.size, "chunk_stride": self.chunks.stride}
        return {"causal": self.streamable, **chunked}

    @property
    def streamable(self) -> bool:
        """Whether there is a window to take streams in."""
        return self.window is not None

    @property
    def first_frame(self) -> int:
        """The feature frame with which the first step begins."""
        return 0

    @property
    def frames_per_step(self) -> int:
        """Feature frames that are new to a step."""
        return self.sliding.current

    @property
    def shift_per_step(self) -> int:
        """Feature frames by which a step moves on: no frame is read twice, since the state keeps those it needs."""
        return self.sliding.current

    @property
    def encoded_per_step(self) -> int:
        """Encoded frames of a step: its whole window."""
        return self.sliding.size

    def ready_steps(self, frames: int) -> int:
        """Steps whose frames are all known: one more ends the stream."""
        return frames // self.sliding.current

    def ending(self, frames: int, known: int) -> tuple[int, int]:
        """Steps of a stream that has ended after so many frames, `known` of them before it did; frames that they read.

        The last step may have no new frame, or as many as any other. The publisher has none where `known` frames fill
        steps.
        """
        steps, rest = divmod(known, self.sliding.current)
        return steps + 1, known if rest == 0 and self.sliding.tail == "publisher" else frames

    def counted(self, step: int, frames: int) -> int:
        """Encoded frames of a step's window that exist: those that were kept, and the new ones."""
        window = self.sliding
        if frames == 0 and window.tail == "whole":
            return 0
        return window.kept + min(frames - step * window.current, window.current)

    @property
    def sliding(self) -> Sliding:
        """The window, which must be there."""
        if self.window is None:
            raise ValueError("a SAN-M encoder without a window takes no stream")
        return self.window
