"""Sizes of an LSTM predictor."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """An LSTM predictor: `dim` channels of the embedding and of each of its `layers`.

    `begin`: what the layers hear before the first token, a vector of zeros or the blank's row of the embedding.
    """

    kind: Literal["lstm"] = "lstm"
    dim: int = 640
    layers: int = 1
    begin: Literal["zeros", "blank"] = "zeros"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.layers < 1:
            raise ValueError(f"dim and layers must be positive, not {self.dim} and {self.layers}")

    @property
    def output_dim(self) -> int:
        """Width of the predictor's output."""
        return self.dim
