"""Relative positions: tables of encodings and the shift from offsets to keys."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


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


def relative_bias(queries: jax.Array, encoded: jax.Array, keys: int) -> jax.Array:
    """Scores by relative position: queries (B, heads, T, p), encoded (heads, keys + T - 1, p) -> (B, heads, T, keys).

    Query i's key j has row T - 1 - i + j of `encoded`. The rows are laid out by query and key once for the whole batch
    and multiplied channel by channel, p being small: scores of all offsets, twice as many, never exist.
    """
    table = _by_query_and_key(encoded.swapaxes(1, 2), queries.shape[2], keys)  # (heads, p, T, keys)
    return sum(queries[..., channel, None] * table[None, :, channel] for channel in range(table.shape[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _by_query_and_key(offsets: jax.Array, steps: int, keys: int) -> jax.Array:
    """(..., keys + steps - 1) by offset -> (..., steps, keys), entry (i, j) being offset steps - 1 - i + j."""
    return offsets[..., (steps - 1 - jnp.arange(steps))[:, None] + jnp.arange(keys)]


def _by_query_and_key_forward(offsets: jax.Array, steps: int, keys: int) -> tuple[jax.Array, None]:
    return _by_query_and_key(offsets, steps, keys), None


def _by_query_and_key_backward(steps: int, keys: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    """Sums along the diagonals, (..., steps, keys) -> (..., keys + steps - 1), without a transposed gather's scatter.

    Rows that are one entry too long, written one after another and read back at their right length, are each shifted by
    one more place than the row above.
    """
    offsets = keys + steps - 1
    leading = gradient.shape[:-2]
    rows = jnp.pad(gradient[..., ::-1, :], ((0, 0),) * (gradient.ndim - 1) + ((0, steps),))
    shifted = rows.reshape(*leading, steps * (offsets + 1))[..., : steps * offsets].reshape(*leading, steps, offsets)
    return (shifted.sum(-2),)


_by_query_and_key.defvjp(_by_query_and_key_forward, _by_query_and_key_backward)
