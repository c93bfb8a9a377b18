"""The masks of a Zipformer, its heads, and its scores by relative position, against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.encoders import zipformer_attention
from jaxasr.encoders.zipformer_attention import attention_mask, relative_bias, split_heads
from jaxasr.layers.attention import relative_scores


@pytest.mark.parametrize(("chunk", "left"), [(4, 8), (4, 2), (4, None), (3, 7), (50, 8), (None, None)])
def test_chunk_masks(chunk: int | None, left: int | None) -> None:
    """Frame t sees chunks c - n to c, n = max(1, left // chunk), and nothing beyond its row's length."""
    lengths, steps = [17, 5], 17
    mask = np.broadcast_to(attention_mask(jnp.array(lengths), steps, chunk, left), (2, 1, steps, steps))
    for row, length in enumerate(lengths):
        for t in range(steps):
            for key in range(steps):
                seen = key < length
                if chunk is not None:
                    c, other = t // chunk, key // chunk
                    seen &= other <= c and (left is None or other >= c - max(1, left // chunk))
                assert mask[row, 0, t, key] == seen, (row, t, key)


def test_heads() -> None:
    """Head h has channels h d to (h + 1) d."""
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32)
    np.testing.assert_array_equal(split_heads(jnp.asarray(x), 2), np.stack([x[..., :2], x[..., 2:]], axis=1))


@pytest.mark.parametrize(("steps", "cached"), [(1, 0), (6, 0), (4, 7)])
def test_scores_meet_the_offset_between_key_and_query(steps: int, cached: int) -> None:
    rng = np.random.default_rng(0)
    keys = cached + steps
    queries = rng.standard_normal((2, 3, steps, 5)).astype(np.float32)
    encoded = rng.standard_normal((3, keys + steps - 1, 5)).astype(np.float32)
    bias = jax.jit(relative_bias, static_argnums=2)(queries, encoded, keys)
    assert bias.shape == (2, 3, steps, keys)
    # The form for wide heads, whose axis of heads is the first.
    wide = jax.jit(relative_scores, static_argnums=2)(queries.swapaxes(0, 1), encoded, keys)
    np.testing.assert_allclose(wide.swapaxes(0, 1), bias, atol=1e-5)
    for i in range(steps):
        for j in range(keys):
            expected = (queries[:, :, i] * encoded[None, :, steps - 1 - i + j]).sum(axis=-1)
            np.testing.assert_allclose(bias[:, :, i, j], expected, atol=1e-5)


@pytest.mark.parametrize(("steps", "keys"), [(1, 1), (2, 3), (7, 7), (8, 11), (16, 16), (5, 30)])
def test_what_tpus_do_is_what_others_do(steps: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.standard_normal((2, steps, keys)))
    row = jnp.asarray(rng.standard_normal((2, keys + steps - 1)))
    others = zipformer_attention._by_offset(scores), zipformer_attention._by_query(row, steps, keys)
    monkeypatch.setattr(zipformer_attention.lax, "platform_dependent", lambda x, *, tpu, default: tpu(x))
    tpus = zipformer_attention._by_offset(scores), zipformer_attention._by_query(row, steps, keys)
    for one, other in zip(tpus, others, strict=True):
        np.testing.assert_array_equal(one, other)


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
