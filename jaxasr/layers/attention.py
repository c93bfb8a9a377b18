"""Attention and what it is made of: heads, caches of a stream, and scores by relative position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxasr.arrays import LOG_ZERO
from jaxasr.layers.linear import Linear
from jaxasr.layers.products import batched_product

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class SelfAttention(nnx.Module):
    """Scaled dot-product attention with several heads: (B, T, D), which sees (B, keys, D) -> (B, T, D).

    With `relative`, a score adds what the query, by a bias of its own, makes of the offset between query and key
    (Transformer-XL, Dai et al., 2019, section 3.3; Conformer, Gulati et al., 2020, section 2.1).
    A query that sees no key gets the output's bias alone.
    """

    def __init__(self, dim: int, heads: int, *, relative: bool = True, use_bias: bool = True, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = Linear(dim, dim, use_bias=use_bias, rngs=rngs)
        self.key = Linear(dim, dim, use_bias=use_bias, rngs=rngs)
        self.value = Linear(dim, dim, use_bias=use_bias, rngs=rngs)
        self.out = Linear(dim, dim, use_bias=use_bias, rngs=rngs)
        self.position = Linear(dim, dim, use_bias=False, rngs=rngs) if relative else None
        # One row of each a head, as they are added to the queries: all heads in one row.
        self.content_bias = nnx.Param(jnp.zeros((dim,), jnp.float32)) if relative else None
        self.position_bias = nnx.Param(jnp.zeros((dim,), jnp.float32)) if relative else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seen: Float[Array, "B keys D"],
        mask: Bool[Array, "#B #T keys"],
        positions: Float[Array, "keys+T-1 D"] | None = None,
    ) -> Float[Array, "B T D"]:
        """x (B, T, D), seen (B, keys, D): x itself, or the cached frames of a stream and x after them.

        mask (B or 1, T or 1, keys): True where a key may be seen. positions (keys + T - 1, D) float32: the table of
        `positions.relative_positions`, for relative ones.
        """
        query, key, value = self.query(x), self.key(seen), self.value(seen)
        if self.position is None or self.content_bias is None or self.position_bias is None or positions is None:
            scores = self._content_scores(query, key)
        else:
            encoded = _heads_first(self.position(positions.astype(x.dtype))[None], self.heads)[:, 0]  # (heads, N, d)
            position_query = _heads_first(query + self.position_bias[...].astype(x.dtype), self.heads)
            scores = self._content_scores(query + self.content_bias[...].astype(x.dtype), key)
            scores = scores + relative_scores(position_query, encoded, key.shape[1])
        scores = scores.astype(jnp.float32) * (x.shape[-1] // self.heads) ** -0.5
        return self.out(_mix(jnp.where(mask, scores, -jnp.inf), _heads_first(value, self.heads)))

    def _content_scores(
        self, query: Float[Array, "B T D"], key: Float[Array, "B keys D"]
    ) -> Float[Array, "heads B T keys"]:
        return batched_product(_heads_first(query, self.heads), _heads_first(key, self.heads).swapaxes(-1, -2))


def attend(
    query: Float[Array, "B T D"],
    key: Float[Array, "B keys D"],
    value: Float[Array, "B keys D"],
    mask: Bool[Array, "#B #T keys"],
    heads: int,
) -> Float[Array, "B T D"]:
    """Scaled dot-product attention of projected frames: query (B, T, D), key and value (B, keys, D) -> (B, T, D).

    mask (B or 1, T or 1, keys): True where a key may be seen. A query that sees no key gets zeros.
    """
    keys = _heads_first(key, heads).swapaxes(-1, -2)
    scores = batched_product(_heads_first(query, heads), keys).astype(jnp.float32)
    scores = scores * (query.shape[-1] // heads) ** -0.5
    return _mix(jnp.where(mask, scores, -jnp.inf), _heads_first(value, heads))


def _mix(scores: Float[Array, "heads B T keys"], value: Float[Array, "heads B keys d"]) -> Float[Array, "B T D"]:
    """The values, weighted by the softmax of the scores, which is divided by its sum after the product."""
    peak = jnp.maximum(lax.stop_gradient(scores.max(axis=-1, keepdims=True)), LOG_ZERO)
    weights = jnp.exp(scores - peak)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = batched_product(weights.astype(value.dtype), value)
    mixed = (mixed / jnp.where(total > 0, total, 1)).astype(value.dtype)
    return mixed.transpose(1, 2, 0, 3).reshape(*mixed.shape[1:3], -1)


def _heads_first(x: Float[Array, "B T D"], heads: int) -> Float[Array, "{heads} B T D//{heads}"]:
    """(B, T, heads * d) -> (heads, B, T, d): where a table is one a head, the batch is rows of one product."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(2, 0, 1, 3)


def relative_scores(
    queries: Float[Array, "heads B T d"], encoded: Float[Array, "heads {keys}+T-1 d"], keys: int
) -> Float[Array, "heads B T {keys}"]:
    """Scores by relative position: queries (heads, B, T, d), encoded (heads, keys + T - 1, d) -> (heads, B, T, keys).

    Query i's key j has row T - 1 - i + j of `encoded`. All offsets are multiplied, one large product a head, and each
    row takes its own, which suits wide heads.
    """
    heads, batch, steps, width = queries.shape
    by_offset = batched_product(queries.reshape(heads, batch * steps, width), encoded.swapaxes(-1, -2))
    return _by_key(by_offset.reshape(heads, batch, steps, -1), keys)


def _by_key(scores: Float[Array, "*leading T N"], keys: int) -> Float[Array, "*leading T {keys}"]:
    """(..., T, keys + T - 1) -> (..., T, keys): entry (i, j) is that of column T - 1 - i + j."""
    *leading, steps, offsets = scores.shape

    def by_shifts(scores: jax.Array) -> jax.Array:
        return shift_rows(scores, jnp.arange(steps))[..., steps - 1 :]

    def in_memory(scores: jax.Array) -> jax.Array:
        # Read at one entry less a row, each row begins one place earlier than the row above.
        flat = scores.reshape(*leading, steps * offsets)[..., steps - 1 : steps - 1 + steps * (offsets - 1)]
        return flat.reshape(*leading, steps, offsets - 1)[..., :keys]

    if steps == 1:
        return scores
    by_key: jax.Array = lax.platform_dependent(scores, tpu=by_shifts, default=in_memory)
    return by_key


def extend_cache(
    cached: Float[Array, "B N D"], new: Float[Array, "B T D"]
) -> tuple[Float[Array, "B N D"], Float[Array, "B N+T D"]]:
    """Append new frames (B, T, D) to cached ones (B, N, D): (the last N frames, all N + T frames)."""
    frames = jnp.concatenate([cached, new], axis=1)
    return frames[:, frames.shape[1] - cached.shape[1] :], frames


def shift_rows(x: Float[Array, "*leading T W"], places: Int[Array, " T"]) -> Float[Array, "*leading T W"]:
    """x (..., T, W) with row i shifted right by places[i] < T; zeros fill its left.

    Row i is shifted by places[i] bit by bit: the whole array is shifted by 1, 2, 4, ..., and a mask keeps the shift for
    the rows whose place has that bit. A gather, or a reshape across tiles, is slow on a TPU (docs/decisions.md).
    """
    size = 1
    while size < x.shape[-2]:
        shifted = jnp.pad(x[..., :-size], ((0, 0),) * (x.ndim - 1) + ((size, 0),))
        x = jnp.where((places & size > 0)[:, None], shifted, x)
        size *= 2
    return x
