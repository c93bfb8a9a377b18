"""A signal as overlapping frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxasr.arrays import ceil_div

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def overlapping_frames(
    signal: Float[Array, "B S"], total: int, length: int, shift: int
) -> Float[Array, "B {total} {length}"]:
    """The first `total` frames (B, T, length) of signal (B, S), `shift` samples apart, with zeros beyond its end.

    By slices of whole shifts instead of a gather.
    """
    pieces = ceil_div(length, shift)
    needed = (total + pieces - 1) * shift
    signal = jnp.pad(signal, ((0, 0), (0, max(0, needed - signal.shape[1]))))[:, :needed]
    blocks = signal.reshape(signal.shape[0], -1, shift)
    widths = [min(shift, length - piece * shift) for piece in range(pieces)]
    return jnp.concatenate([blocks[:, i : i + total, :width] for i, width in enumerate(widths)], axis=-1)
