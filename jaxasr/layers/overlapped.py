"""Overlapping chunks of an utterance, one after another with zeros between them, and what may be seen of which.

FunASR's streaming encoders are trained, and decode whole utterances, in this form (models/scama/chunk_utilis.py): each
chunk of `size` frames begins `stride` frames after the one before, and `gap` rows of zeros stand before it, so that a
memory's window reaches into no other chunk. Needs no network.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxasr.arrays import Count, ceil_div, length_mask

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlapped:
    """Chunks of `size` frames, of which the first `stride` are new and the others are to come; `gap` rows before each.

    `encoder_look_back`, `decoder_look_back`: earlier chunks that a frame, or a token, sees the new frames of.
    """

    size: int
    stride: int
    gap: int
    encoder_look_back: int
    decoder_look_back: int

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.size:
            raise ValueError(f"stride {self.stride} must lie in 1..size, which is {self.size}")
        if min(self.gap, self.encoder_look_back, self.decoder_look_back) < 0:
            raise ValueError("gap and look-backs must not be negative")

    @property
    def rows(self) -> int:
        """Rows from chunk to chunk."""
        return self.size + self.gap

    def length(self, frames: Count) -> Count:
        """Rows of so many frames, for integers and arrays: those of whole chunks up to the last frame."""
        before = ceil_div(frames, self.stride) - 1
        return (before * (self.rows - self.stride) + self.gap + frames) * (frames > 0)

    def places(self, rows: int) -> tuple[Int[Array, " {rows}"], Int[Array, " {rows}"]]:
        """The chunk of each row, and its place among the chunk's frames: below 0 in the gap."""
        row = jnp.arange(rows)
        return row // self.rows, row % self.rows - self.gap

    def split(self, frames: Float[Array, "B T F"], lengths: Int[Array, " B"]) -> Float[Array, "B _ F"]:
        """frames (B, T, F), lengths (B,) -> rows (B, length(T), F), zeros in gaps and for frames that are not there."""
        chunk, place = self.places(self.length(frames.shape[1]))
        source = chunk * self.stride + place
        there = length_mask(lengths, frames.shape[1])[:, jnp.minimum(source, frames.shape[1] - 1)]
        there &= (place >= 0) & (source < frames.shape[1])
        return jnp.where(there[..., None], frames[:, jnp.clip(source, 0, frames.shape[1] - 1)], 0)

    def inside(self, rows: int) -> Bool[Array, " {rows}"]:
        """Which rows are frames, and no gap."""
        return self.places(rows)[1] >= 0

    def new(self, rows: int) -> Bool[Array, " {rows}"]:
        """Which rows are frames that no earlier chunk has as its own."""
        place = self.places(rows)[1]
        return (place >= 0) & (place < self.stride)

    def encoder_mask(self, rows: int) -> Bool[Array, "{rows} {rows}"]:
        """Which row sees which: its whole chunk, and a new frame also those of earlier chunks."""
        chunk, _ = self.places(rows)
        own = (chunk[:, None] == chunk) & self.inside(rows)
        ago = chunk[:, None] - chunk
        earlier = (ago > 0) & (ago <= self.encoder_look_back) & self.new(rows) & self.new(rows)[:, None]
        return (own | earlier) & self.inside(rows)[:, None]

    def decoder_mask(self, fired: Int[Array, "B L"], rows: int) -> Bool[Array, "B L {rows}"]:
        """Which rows a token sees that is complete at row `fired`: that row's chunk, and new frames of earlier ones."""
        chunk, _ = self.places(rows)
        ago = (fired // self.rows)[..., None] - chunk
        own = (ago == 0) & self.inside(rows)
        return own | ((ago > 0) & (ago <= self.decoder_look_back) & self.new(rows))

    def frame(self, row: Int[Array, "B L"]) -> Int[Array, "B L"]:
        """The frame that stands in a row; in a gap the next one."""
        return row // self.rows * self.stride + jnp.maximum(row % self.rows - self.gap, 0)
