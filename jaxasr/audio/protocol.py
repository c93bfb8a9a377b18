"""What the decoders of sound share."""

from __future__ import annotations

from typing import Final

import numpy as np

BLOCK: Final = 1 << 18  # values decoded at a time


class Undecodable(Exception):
    """A decoder refuses a file, or stops inside it: `reason`. `recognised`: it knows the format all the same."""

    def __init__(self, reason: str, *, recognised: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.recognised = reason, recognised


def with_channels(block: np.ndarray, channels: int) -> np.ndarray:
    """A block (n, any) as (n, channels): where a stream's number changes, the mean of all in each."""
    if block.shape[1] == channels:
        return block
    return np.repeat(block.mean(axis=1, keepdims=True), channels, axis=1)
