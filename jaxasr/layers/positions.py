"""Relative positions: tables of encodings and the shift from offsets to keys."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.layers.products import batched_product


def compact_relative_positions(queries: int, cached: int, dim: int) -> jax.Array:
    """The Zipformer's CompactRelPositionalEncoding: (cached + 2 * queries - 1, dim) float32.

    Row r encodes the offset key - query = r - (queries - 1) - cached: for query i and key j (cached keys first) that
    is row queries - 1 - i + j. Offsets are compressed by c = sqrt(D) sign(x) (ln(|x| + sqrt D) - ln sqrt D), then
    a = atan(2 pi c / D); even columns cos(k a), odd columns sin(k a), k = 1..D/2, and the last column is 1
    (icefall, zipformer.py).
    """
    offsets = jnp.arange(cached + 2 * queries - 1, dtype=jnp.float32) - (queries - 1 + cached)
    root = math.sqrt(dim)
    compressed = root * jnp.sign(offsets) * (jnp.log(jnp.abs(offsets) + root) - math.log(root))
    angles = jnp.arctan(compressed * (2 * math.pi / dim))[:, None] * jnp.arange(1, dim // 2 + 1, dtype=jnp.float32)
    table = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1).reshape(offsets.shape[0], dim)
    return table.at[:, -1].set(1.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def relative_bias(queries: jax.Array, encoded: jax.Array, keys: int) -> jax.Array:
    """Scores by relative position: queries (B, heads, T, p), encoded (heads, keys + T - 1, p) -> (B, heads, T, keys).

    Query i's key j has row T - 1 - i + j of `encoded`. The rows are laid out by query and key once for the whole batch
    and multiplied channel by channel, p being small: scores of all offsets, twice as many, never exist.
    """
    table = _by_query(encoded.swapaxes(1, 2), queries.shape[2], keys)  # (heads, p, T, keys)
    return sum(queries[..., channel, None] * table[None, :, channel] for channel in range(table.shape[1]))


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


def _by_query(rows: jax.Array, steps: int, keys: int) -> jax.Array:
    """(..., keys + T - 1) -> (..., T, keys): entry (i, j) is that of column T - 1 - i + j. T: `steps`."""

    def gathered(rows: jax.Array) -> jax.Array:
        return rows[..., (steps - 1 - jnp.arange(steps))[:, None] + jnp.arange(keys)]

    def moved(rows: jax.Array) -> jax.Array:
        laid_out = jnp.broadcast_to(rows[..., None, :], (*rows.shape[:-1], steps, rows.shape[-1]))
        return _moved(laid_out, jnp.arange(steps))[..., steps - 1 :]

    return lax.platform_dependent(rows, tpu=moved, default=gathered)


def _by_offset(scores: jax.Array) -> jax.Array:
    """(..., T, keys) -> (..., T, keys + T - 1): entry (i, j) moves to column T - 1 - i + j, zeros around it."""

    def moved(scores: jax.Array) -> jax.Array:
        steps = scores.shape[-2]
        padded = jnp.pad(scores, ((0, 0),) * (scores.ndim - 1) + ((0, steps - 1),))
        return _moved(padded, steps - 1 - jnp.arange(steps))

    return lax.platform_dependent(scores, tpu=moved, default=_by_offset_in_memory)


def _moved(x: jax.Array, places: jax.Array) -> jax.Array:
    """x (..., T, W) with row i moved right by places[i] < T, zeros behind it.

    All rows move by powers of two, and each keeps the moves of its number's bits: whole arrays in their tiles, where a
    gather or other rows of the same memory would take TPUs apart (docs/decisions.md).
    """
    size = 1
    while size < x.shape[-2]:
        further = jnp.pad(x[..., :-size], ((0, 0),) * (x.ndim - 1) + ((size, 0),))
        x = jnp.where((places & size > 0)[:, None], further, x)
        size *= 2
    return x


def _by_offset_in_memory(scores: jax.Array) -> jax.Array:
    """`_by_offset` where memory is a line.

    Rows that are one entry too long, written one after another and read back at their right length, are each shifted by
    one more place than the row above; the rows are upside down for it, since the last one is not shifted.
    """
    *leading, steps, keys = scores.shape
    offsets = keys + steps - 1
    rows = jnp.pad(scores[..., ::-1, :], ((0, 0),) * (scores.ndim - 1) + ((0, steps),))
    shifted = rows.reshape(*leading, steps * (offsets + 1))[..., : steps * offsets].reshape(*leading, steps, offsets)
    return shifted[..., ::-1, :]
