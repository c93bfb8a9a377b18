"""Sizes of a feed-forward sequential memory network, and what they tell about lengths; needs no network."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxasr.arrays import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsmnConfig:
    """Sizes of a feed-forward sequential memory network; the defaults are those of FunASR's FSMN-VAD.

    `input_hidden`, `output_dim`: widths of the linear layers before and after the blocks, which have no activation
    between them and their neighbours'. `dim`: width between the blocks, `memory_dim` inside their memories. `past`,
    `future`: frames that a memory hears before and after each frame.
    """

    kind: Literal["fsmn"] = "fsmn"
    num_layers: int = 4
    dim: int = 250
    memory_dim: int = 128
    past: int = 19
    future: int = 0
    input_hidden: int = 140
    output_dim: int = 140
    input_dim: int = 400

    def __post_init__(self) -> None:
        for name in ("num_layers", "dim", "memory_dim", "input_hidden", "output_dim", "input_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")
        if self.past < 0 or self.future < 0:
            raise ValueError(f"past and future must not be negative, not {self.past} and {self.future}")

    @property
    def subsampling(self) -> int:
        """Every feature frame is encoded."""
        return 1

    @property
    def context(self) -> int:
        """Feature frames on either side that an encoded frame depends on."""
        return self.num_layers * max(self.past, self.future)

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames, for integers and arrays."""
        return frames

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of such a network."""
        return {"causal": self.future == 0, "memory_frames": self.past + 1 + self.future}
