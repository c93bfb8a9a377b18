"""What the decoders of sound share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np

BLOCK: Final = 1 << 18  # values decoded at a time


class Undecodable(Exception):
    """A decoder refuses a file, or stops inside it: `reason`. `recognised`: it knows the format all the same."""

    def __init__(self, reason: str, *, recognised: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.recognised = reason, recognised


class Decoder(Protocol):
    """A file that is being decoded: `rate` (Hz), `channels`, and the sound in blocks (n, channels) float32.

    `floating`: its samples are stored as floating-point numbers.
    """

    rate: int
    channels: int
    floating: bool

    def blocks(self, start: int = 0) -> Iterator[np.ndarray]:
        """The sound from sample `start` on, full scale at 1."""
        ...
