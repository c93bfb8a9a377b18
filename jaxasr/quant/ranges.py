"""Over which frames activations share a range, where a product quantizes them for more than one frame.

A batch gives what its single utterances give, and a whole utterance what its stream gives, if a range spans the frames
of one utterance, or of one of its chunks, and no padding. Who knows the lengths of its frames says them once:

    with ranges_over(lengths, chunk):
        y = self.out_proj(activation(self.in_proj(x)))

Products of floats do not ask. Outside of such a block a range spans all that a row of the batch holds, which in a
stream's step is a chunk; that is right too where zeros stand for what is no frame. A function that JAX traces once for
several callers, such as `run_layer`, begins its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxasr.arrays import ceil_div, length_mask

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class _Frames:
    """The frames that each row has, (B,) or a mask (B, T), and how many of them are a chunk; None where all are."""

    valid: jax.Array
    chunk: int | None


_FRAMES: contextvars.ContextVar[_Frames | None] = contextvars.ContextVar("frames", default=None)


@contextlib.contextmanager
def ranges_over(valid: Int[Array, " B"] | Bool[Array, "B T"], chunk: int | None = None) -> Iterator[None]:
    """In the block activations (B, T, ...) have these frames, and a range for each `chunk` of them.

    `valid`: how many frames each row has, or a mask of them. All activations of the block that a product may quantize
    for more than one frame have the same T.
    """
    token = _FRAMES.set(_Frames(valid, chunk))
    try:
        yield
    finally:
        _FRAMES.reset(token)


def row_extremes(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*_"], Float[Array, "*_"]]:
    """The least and the largest of each row's activations and 0: x (B, T, ...) -> twice (B, T or 1, 1, ...).

    (B, T, 1, ...) where each chunk has its own. x (B, D) has a range a row.
    """
    frames = _FRAMES.get()
    if frames is None or x.ndim < 3:
        axes = tuple(range(1, x.ndim))
        return jnp.minimum(x.min(axes, keepdims=True), 0), jnp.maximum(x.max(axes, keepdims=True), 0)
    steps = x.shape[1]
    mask = frames.valid if frames.valid.ndim == 2 else length_mask(frames.valid, steps)
    valid = jnp.where(mask.reshape(-1, steps, *(1,) * (x.ndim - 2)), x, 0)  # 0 widens no range: all ranges include it
    axes = tuple(range(2, x.ndim))
    chunk = steps if frames.chunk is None else min(frames.chunk, steps)
    low = _over_chunks(valid.min(axes, keepdims=True), chunk, jnp.min)
    high = _over_chunks(valid.max(axes, keepdims=True), chunk, jnp.max)
    return jnp.minimum(low, 0), jnp.maximum(high, 0)


def _over_chunks(
    x: Float[Array, "B T *ones"], chunk: int, extreme: Callable[..., jax.Array]
) -> Float[Array, "B _ *ones"]:
    """The extreme of each chunk at each of its frames; of one chunk once for all frames."""
    batch, steps, *ones = x.shape
    if chunk == steps:
        return extreme(x, axis=1, keepdims=True)
    chunks = ceil_div(steps, chunk)
    padded = jnp.pad(x, ((0, 0), (0, chunks * chunk - steps), *((0, 0),) * len(ones)))
    of_chunks = extreme(padded.reshape(batch, chunks, chunk, *ones), axis=2)
    return jnp.repeat(of_chunks, chunk, axis=1)[:, :steps]
