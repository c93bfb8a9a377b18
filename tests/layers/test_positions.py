from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers import positions
from jaxasr.layers.positions import compact_relative_positions, relative_bias


def encoding(offset: int, dim: int) -> list[float]:
    """One row of icefall's table, written out: zipformer.py, CompactRelPositionalEncoding."""
    root = math.sqrt(dim)
    compressed = root * (1 if offset > 0 else -1 if offset < 0 else 0) * (math.log(abs(offset) + root) - math.log(root))
    angle = math.atan(compressed * 2 * math.pi / dim)
    row = [f(k * angle) for k in range(1, dim // 2 + 1) for f in (math.cos, math.sin)]
    return [*row[:-1], 1.0]


@pytest.mark.parametrize(("queries", "cached", "dim"), [(1, 0, 8), (5, 0, 48), (4, 6, 10), (3000, 0, 8)])
def test_the_table(queries: int, cached: int, dim: int) -> None:
    """The last size is a minute at 50 Hz: the table has no longest utterance."""
    table = np.asarray(compact_relative_positions(queries, cached, dim))
    assert table.shape == (2 * queries - 1 + cached, dim)
    rows = np.linspace(0, len(table) - 1, min(len(table), 40)).astype(int)
    expected = [encoding(int(row) - (queries - 1) - cached, dim) for row in rows]
    # Angles up to dim / 2 * pi / 2 in float32, as the original computes them.
    np.testing.assert_allclose(table[rows], expected, atol=5e-6)


@pytest.mark.parametrize(("steps", "cached"), [(1, 0), (6, 0), (4, 7)])
def test_scores_meet_the_offset_between_key_and_query(steps: int, cached: int) -> None:
    rng = np.random.default_rng(0)
    keys = cached + steps
    queries = rng.standard_normal((2, 3, steps, 5)).astype(np.float32)
    encoded = rng.standard_normal((3, keys + steps - 1, 5)).astype(np.float32)
    bias = jax.jit(relative_bias, static_argnums=2)(queries, encoded, keys)
    assert bias.shape == (2, 3, steps, keys)
    for i in range(steps):
        for j in range(keys):
            expected = (queries[:, :, i] * encoded[None, :, steps - 1 - i + j]).sum(axis=-1)
            np.testing.assert_allclose(bias[:, :, i, j], expected, atol=1e-5)


@pytest.mark.parametrize(("steps", "keys"), [(1, 1), (2, 3), (7, 7), (8, 11), (16, 16), (5, 30)])
def test_what_tpus_do_is_what_others_do(steps: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.standard_normal((2, steps, keys)))
    row = jnp.asarray(rng.standard_normal((2, keys + steps - 1)))
    others = positions._by_offset(scores), positions._by_query(row, steps, keys)
    monkeypatch.setattr(positions.lax, "platform_dependent", lambda x, *, tpu, default: tpu(x))
    tpus = positions._by_offset(scores), positions._by_query(row, steps, keys)
    for one, other in zip(tpus, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_row_of_a_key_encodes_its_offset() -> None:
    """Table and scores agree on the order of rows: a query that asks for the offset's sign gets it."""
    steps, cached = 4, 3
    table = np.asarray(compact_relative_positions(steps, cached, 8))
    sine = jnp.asarray(table[:, 1:2])[None]  # (1, N, 1): sin(a), which has the sign of key - query
    bias = np.asarray(relative_bias(jnp.ones((1, 1, steps, 1)), sine, steps + cached))[0, 0]
    offsets = np.arange(steps + cached)[None, :] - (cached + np.arange(steps))[:, None]
    np.testing.assert_array_equal(np.sign(np.round(bias, 6)), np.sign(offsets))


@pytest.mark.parametrize(("steps", "cached"), [(1, 0), (1, 3), (6, 0), (4, 7)])
def test_gradients_are_those_of_the_scores_written_out(steps: int, cached: int) -> None:
    rng = np.random.default_rng(1)
    keys = cached + steps
    queries = rng.standard_normal((2, 3, steps, 5)).astype(np.float32)
    encoded = rng.standard_normal((3, keys + steps - 1, 5)).astype(np.float32)
    weights = rng.standard_normal((2, 3, steps, keys)).astype(np.float32)

    def total(queries: jax.Array, encoded: jax.Array) -> jax.Array:
        return jnp.sum(weights * relative_bias(queries, encoded, keys))

    dqueries, dencoded = jax.jit(jax.grad(total, (0, 1)))(queries, encoded)
    expected_queries, expected_encoded = np.zeros_like(queries), np.zeros_like(encoded)
    for i in range(steps):
        for j in range(keys):
            row, weight = steps - 1 - i + j, weights[:, :, i, j, None]
            expected_queries[:, :, i] += weight * encoded[:, row]
            expected_encoded[:, row] += (weight * queries[:, :, i]).sum(0)
    np.testing.assert_allclose(dqueries, expected_queries, atol=1e-5)
    np.testing.assert_allclose(dencoded, expected_encoded, atol=1e-5)
    narrow = jax.grad(total, (0, 1))(jnp.asarray(queries, jnp.bfloat16), jnp.asarray(encoded, jnp.bfloat16))
    assert {str(each.dtype) for each in narrow} == {"bfloat16"}
    np.testing.assert_allclose(np.asarray(narrow[1], np.float32), expected_encoded, atol=0.1)
