"""What the attention of a Zipformer is made of: its masks, heads, and scores by relative position of narrow heads."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.arrays import length_mask
from jaxasr.layers.attention import shift_rows
from jaxasr.layers.products import batched_product

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def attention_mask(
    lengths: Int[Array, " B"], steps: int, chunk: int | None, left: int | None
) -> Bool[Array, "B 1 _ {steps}"]:
    """Which keys a frame may see: (B, 1, 1, T) without chunks, (B, 1, T, T) with them.

    With chunks, frame t sees chunks c - n to c of its own c = t // chunk, n = max(1, left // chunk).
    """
    keys = length_mask(lengths, steps)[:, None, None, :]
    if chunk is None:
        return keys
    index = jnp.arange(steps) // chunk
    visible = index[None, :] <= index[:, None]
    if left is not None:
        visible &= index[None, :] >= index[:, None] - max(1, left // chunk)
    return keys & visible[None, None]


def split_heads(x: Float[Array, "B T D"], heads: int) -> Float[Array, "B {heads} T D//{heads}"]:
    """(B, T, heads * d) -> (B, heads, T, d)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def relative_bias(
    queries: Float[Array, "B heads T p"], encoded: Float[Array, "heads {keys}+T-1 p"], keys: int
) -> Float[Array, "B heads T {keys}"]:
    """Scores by relative position: queries (B, heads, T, p), encoded (heads, keys + T - 1, p) -> (B, heads, T, keys).

    Query i's key j has row T - 1 - i + j of `encoded`. The rows are laid out by query and key once for the whole batch
    and multiplied channel by channel, p being small: scores of all offsets, twice as many, never exist. For wide heads
    there is `layers.attention.relative_scores`.
    """
    table = _by_query(encoded.swapaxes(1, 2), queries.shape[2], keys)  # (heads, p, T, keys)
    by_channel = (queries[..., channel, None] * table[None, :, channel] for channel in range(table.shape[1]))
    return functools.reduce(operator.add, by_channel)


def _relative_bias_forward(
    queries: jax.Array, encoded: jax.Array, keys: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return relative_bias(queries, encoded, keys), (queries, encoded)


def _relative_bias_backward(
    keys: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two products with the gradient by offset, where the transposed program would keep p arrays of all scores."""
    queries, encoded = saved
    by_offset = _by_offset(gradient)  # (B, heads, T, keys + T - 1)
    dqueries = batched_product(by_offset, encoded.astype(gradient.dtype))
    # Rows are added up in float32, whatever they came in.
    dencoded = batched_product(by_offset.swapaxes(-1, -2).astype(jnp.float32), queries.astype(jnp.float32)).sum(0)
    return dqueries.astype(queries.dtype), dencoded.astype(encoded.dtype)


relative_bias.defvjp(_relative_bias_forward, _relative_bias_backward)


def _by_query(rows: Float[Array, "*leading N"], steps: int, keys: int) -> Float[Array, "*leading {steps} {keys}"]:
    """(..., keys + T - 1) -> (..., T, keys): entry (i, j) is that of column T - 1 - i + j. T: `steps`."""

    def by_gather(rows: jax.Array) -> jax.Array:
        return rows[..., (steps - 1 - jnp.arange(steps))[:, None] + jnp.arange(keys)]

    def by_shifts(rows: jax.Array) -> jax.Array:
        repeated = jnp.broadcast_to(rows[..., None, :], (*rows.shape[:-1], steps, rows.shape[-1]))
        return shift_rows(repeated, jnp.arange(steps))[..., steps - 1 :]

    laid_out: jax.Array = lax.platform_dependent(rows, tpu=by_shifts, default=by_gather)
    return laid_out


def _by_offset(scores: Float[Array, "*leading T keys"]) -> Float[Array, "*leading T keys+T-1"]:
    """(..., T, keys) -> (..., T, keys + T - 1): entry (i, j) moves to column T - 1 - i + j, zeros around it."""

    def by_shifts(scores: jax.Array) -> jax.Array:
        steps = scores.shape[-2]
        padded = jnp.pad(scores, ((0, 0),) * (scores.ndim - 1) + ((0, steps - 1),))
        return shift_rows(padded, steps - 1 - jnp.arange(steps))

    by_offset: jax.Array = lax.platform_dependent(scores, tpu=by_shifts, default=_by_offset_in_memory)
    return by_offset


def _by_offset_in_memory(scores: Float[Array, "*leading T keys"]) -> Float[Array, "*leading T keys+T-1"]:
    """`_by_offset` on devices whose arrays are contiguous in memory.

    Each row is padded to one entry more than a row of the result has. The padded rows, written one after another and
    read back at the result's width, are each shifted by one place more than the row above. The rows are reversed
    before and after, since the last row is the one that is not shifted.
    """
    *leading, steps, keys = scores.shape
    offsets = keys + steps - 1
    rows = jnp.pad(scores[..., ::-1, :], ((0, 0),) * (scores.ndim - 1) + ((0, steps),))
    shifted = rows.reshape(*leading, steps * (offsets + 1))[..., : steps * offsets].reshape(*leading, steps, offsets)
    return shifted[..., ::-1, :]
