"""The Zipformer's relative positions: their encoding, and a table of what a layer makes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.layers.products import table_operands

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def compact_relative_positions(queries: int, cached: int, dim: int) -> Float[Array, "{cached}+2*{queries}-1 {dim}"]:
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


class StoredPositions(nnx.Module):
    """A table of what `linear_pos` gives for each offset from a chunk's query to a key: (N, heads * p).

    Row r is that of the offset r - (N - chunk), as in `compact_relative_positions` of a stream. No other offset is
    ever seen: the mask hides those keys.
    """

    def __init__(self, positions: int, width: int, chunk: int, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(0.05 * jax.random.normal(rngs.params(), (positions, width), jnp.float32))
        self.chunk = chunk

    def __call__(
        self, queries: Float[Array, "B T P"], keys: int
    ) -> tuple[Float[Array, "B T P"], Float[Array, "{keys}+T-1 P"], Float[Array, "B _ 1"] | None]:
        """queries (B, T, heads * p) -> what to multiply, queries and rows (keys + T - 1, heads * p), and the scale.

        Without a scale, products are the scores as they are; with one they are integers, to be multiplied by it.
        """
        queries, rows, scale = table_operands(queries, self.embedding[...])
        steps, count = queries.shape[1], rows.shape[0]
        before, after = keys - 1 - (count - self.chunk), steps - self.chunk  # offsets beyond those that are stored
        rows = jnp.pad(rows[max(-before, 0) : count + min(after, 0)], ((max(before, 0), max(after, 0)), (0, 0)))
        return queries, rows, scale
