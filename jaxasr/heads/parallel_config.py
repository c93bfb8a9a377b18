"""Sizes of a parallel head: one that counts the tokens of an utterance first, and then says all of them at once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxasr.encoders import EncoderConfig
from jaxasr.layers.overlapped import Overlapped
from jaxasr.layers.sliding import Sliding

# Into how many parts a step of a predictor's weights is divided by the publisher's times.
STEP_PARTS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeaksConfig:
    """The second head of a predictor, which places tokens in time at `upsampling` steps a frame.

    A step's weight is sigmoid * smooth_factor - noise_threshold, at least 0; `recurrent`: an LSTM in both directions
    reads the steps. `shares_convolution`: the steps are made of the first head's convolution, else of encoded frames.
    """

    upsampling: int = 3
    recurrent: bool = True
    smooth_factor: float = 0.25
    noise_threshold: float = 0.01
    shares_convolution: bool = False

    def __post_init__(self) -> None:
        if self.upsampling < 1:
            raise ValueError(f"upsampling must be positive, not {self.upsampling}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CIFConfig:
    """A predictor by continuous integrate-and-fire.

    `context`: frames that its convolution sees before and after each one. `convolution`: "full", or "depthwise" with a
    residual. A frame's weight is sigmoid * smooth_factor - noise_threshold, at least 0. `tail`: the weight of one more
    frame after the last one, a vector of zeros, with which the last token is completed. `peaks`: the second head.
    """

    context: tuple[int, int] = (1, 1)
    convolution: Literal["full", "depthwise"] = "full"
    smooth_factor: float = 1.0
    noise_threshold: float = 0.0
    tail: float = 0.45
    peaks: PeaksConfig | None = None

    def __post_init__(self) -> None:
        if min(self.context) < 0:
            raise ValueError(f"context must be two numbers of frames, not {self.context}")
        if not 0 < self.smooth_factor <= 1 or not 0 <= self.tail < 1:  # else one frame could complete two tokens
            raise ValueError(
                f"smooth_factor must lie in 0..1 and tail below 1, not {self.smooth_factor} and {self.tail}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of a parallel head; the defaults are those of Paraformer-large.

    `num_layers`: decoder layers with cross-attention. `memory_layers`: further ones without it. `final_layers`: last
    ones of a feed-forward alone. `kernel`, `shift`: of the memories of the layers with cross-attention; those of the
    others are centred. `silent_ids`: ids that are no tokens, beside the blank; `end_id`: the one that ends a text in
    training.
    `padding`: "publisher" computes what FunASR computes in a padded batch: the predictor reads what the encoder made of
    the padding after a row, and the tail's frame is that of the first frame of it.
    `times`: "own", a token has the frame at which its weight is complete; "publisher", tokens begin and last as FunASR
    states it (publisher_times.py).
    `chunks`: the encoded frames come in overlapping chunks, of which the predictor counts the new frames, and a token
    sees its own and some before it. `window`: that in which a stream is encoded.
    """

    vocabulary_size: int
    predictor: CIFConfig = CIFConfig()
    num_layers: int = 16
    memory_layers: int = 0
    final_layers: int = 1
    feedforward_dim: int = 2048
    num_heads: int = 4
    kernel: int = 11
    shift: int = 0
    blank_id: int = 0
    silent_ids: tuple[int, ...] = (1, 2)
    end_id: int = 2
    padding: Literal["isolated", "publisher"] = "isolated"
    times: Literal["own", "publisher"] = "own"
    chunks: Overlapped | None = None
    window: Sliding | None = None

    def __post_init__(self) -> None:
        for token_id in (self.blank_id, *self.silent_ids, self.end_id):
            if not 0 <= token_id < self.vocabulary_size:
                raise ValueError(
                    f"blank_id, silent_ids and end_id must lie in the vocabulary of {self.vocabulary_size}: {token_id}"
                )
        if self.num_layers < 1 or min(self.memory_layers, self.final_layers) < 0:
            raise ValueError("a decoder needs a layer with cross-attention, and no negative numbers of others")
        if self.predictor.peaks is not None and (self.chunks is not None or self.window is not None):
            raise ValueError("a predictor with peaks takes whole utterances: leave out chunks and window")
        if self.times == "publisher" and (self.chunks is not None or self.window is not None):
            raise ValueError("the publisher states times of whole utterances: leave out times, or chunks and window")
        if min(self.feedforward_dim, self.num_heads, self.kernel) < 1 or self.shift < 0:
            raise ValueError("feedforward_dim, num_heads and kernel must be positive, and shift not negative")

    def fault(self, encoder: EncoderConfig) -> str | None:
        """The encoder must give its frames in the same chunks, and take a stream in the same window, or in none."""
        for name in ("chunks", "window"):
            if getattr(self, name) != getattr(encoder, name, None):
                return f"{name}: the encoder's and the parallel head's differ"
        return None

    @property
    def frame_parts(self) -> int:
        """Parts of an encoded frame in which tokens are placed."""
        if self.times == "own":
            return 1
        return STEP_PARTS * (1 if self.predictor.peaks is None else self.predictor.peaks.upsampling)

    @property
    def sliding(self) -> Sliding:
        """The window, which must be there."""
        if self.window is None:
            raise ValueError("a parallel head without a window takes no stream")
        return self.window
