"""Relative positions: tables of encodings and the shift from offsets to keys."""

from __future__ import annotations

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


def relative_shift(scores: jax.Array, keys: int) -> jax.Array:
    """From offsets to keys: scores (..., queries, N) with N = keys + queries - 1 -> (..., queries, keys).

    Query i's key j stands in column queries - 1 - i + j. Dropping the first queries - 1 numbers of the flattened
    rows and cutting them again into rows of N - 1 puts it in column j: one slice and no gather.
    """
    *batch, queries, offsets = scores.shape
    flat = scores.reshape(*batch, queries * offsets)[..., queries - 1 : queries - 1 + queries * (offsets - 1)]
    return flat.reshape(*batch, queries, offsets - 1)[..., :keys]
