from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers.positions import relative_positions, sinusoids


def written_out(position: int, dim: int) -> list[float]:
    """Attention is all you need, section 3.5."""
    angles = [position / 10000 ** (2 * (column // 2) / dim) for column in range(dim)]
    return [np.cos(angle) if column % 2 else np.sin(angle) for column, angle in enumerate(angles)]


def test_absolute() -> None:
    np.testing.assert_allclose(
        sinusoids(jnp.arange(5.0), 6), [written_out(position, 6) for position in range(5)], atol=1e-6
    )


@pytest.mark.parametrize(("queries", "cached"), [(1, 0), (4, 0), (3, 5)])
def test_each_query_and_key_find_their_offset(queries: int, cached: int) -> None:
    table = relative_positions(queries, cached, 6)
    assert table.shape == (cached + 2 * queries - 1, 6)
    for query in range(queries):
        for key in range(cached + queries):
            offset = cached + query - key  # positive where the key is earlier
            np.testing.assert_allclose(table[queries - 1 - query + key], written_out(offset, 6), atol=1e-6)


def test_far_positions_are_right_in_float32() -> None:
    """5000 frames are more than three minutes: the fastest column turns by 1 a frame."""
    np.testing.assert_allclose(sinusoids(jnp.arange(5001.0), 8)[-1], written_out(5000, 8), atol=5e-4)
