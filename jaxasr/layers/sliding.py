"""The window in which a stream is encoded, step by step: frames seen before, new ones, and some that are to come.

FunASR's streaming loop (chunk_size, encoder_chunk_look_back, decoder_chunk_look_back of its model cards). Needs no
network.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sliding:
    """A window of `past`, `current` and `ahead` frames, which moves on by `current` frames a step.

    The frames of `past` were current before, those of `ahead` will be: tokens are counted in the current ones. A stream
    begins with zeros in the place of the frames that do not exist, `ahead` of which are current once.
    `encoder_look_back`, `decoder_look_back`: how many times `current` frames before the window a frame, or a token,
    sees through caches. Caches have a fixed size, so that -1, FunASR's word for an encoder's look-back without a limit,
    is refused: one that holds all of the longest stream computes the same. `tail`: "publisher" ends a stream as FunASR
    does, whose last window is scaled twice where no frame is new.
    """

    past: int = 0
    current: int = 10
    ahead: int = 5
    encoder_look_back: int = 4
    decoder_look_back: int = 1
    tail: Literal["whole", "publisher"] = "whole"

    def __post_init__(self) -> None:
        if self.current < 1:
            raise ValueError(f"current must be positive, not {self.current}")
        if self.encoder_look_back == -1:
            # Each step leaves all of its window but `ahead` in the cache, frames of `past` once more.
            each = -(-(self.past + self.current) // self.current)
            raise ValueError(
                "encoder_look_back -1, unlimited, needs a state that grows with its stream, but the size of states is "
                f"fixed: give {each} for each step of the longest stream"
            )
        if self.decoder_look_back == -1:
            raise ValueError("decoder_look_back -1 is no look-back for FunASR: give 0, which computes the same")
        if min(self.past, self.ahead, self.encoder_look_back, self.decoder_look_back) < 0:
            raise ValueError("past, ahead and look-backs must not be negative")

    @property
    def size(self) -> int:
        """Frames of the window."""
        return self.past + self.current + self.ahead

    @property
    def kept(self) -> int:
        """Frames that a step hands on to the next one's window."""
        return self.past + self.ahead

    @property
    def encoder_cache(self) -> int:
        """Frames of a layer's cache: what the first step leaves is not cut to the look-back, by the publisher."""
        return max(self.encoder_look_back * self.current, self.past + self.current) if self.encoder_look_back else 0

    @property
    def decoder_cache(self) -> int:
        """Frames of a decoder layer's cache."""
        return self.decoder_look_back * self.current

    @property
    def most_tokens(self) -> int:
        """Tokens that a step can find at most: a frame weighs up to 1, and less than 1 is open before it."""
        return self.current + self.ahead + 1
