"""Sinusoids that tell positions apart (Vaswani et al., 2017, section 3.5), absolute and relative."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def relative_positions(queries: int, cached: int, dim: int) -> Float[Array, "{cached}+2*{queries}-1 {dim}"]:
    """The table of all offsets query - key, from the highest down: (cached + 2 * queries - 1, dim) float32.

    Query i's key j, cached keys first, has row queries - 1 - i + j, as `attention.relative_scores` takes them
    (Transformer-XL, Dai et al., 2019, appendix B; NeMo and icefall, RelPositionalEncoding).
    """
    return sinusoids(cached + queries - 1 - jnp.arange(cached + 2 * queries - 1, dtype=jnp.float32), dim)


def sinusoids(positions: Float[Array, " N"], dim: int) -> Float[Array, "N {dim}"]:
    """Sines of position / 10000^(2k / dim) in the even columns 2k, cosines in the odd ones."""
    rates = np.exp(np.arange(0, dim, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / dim))
    angles: jax.Array = positions[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(positions.shape[0], dim)
