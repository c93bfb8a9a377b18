from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers import attention
from jaxasr.layers.attention import SelfAttention, extend_cache, relative_scores
from random_modules import build


def test_caches() -> None:
    """A cache keeps its size, also where more frames arrive than it holds."""
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.float32)
    for size in (0, 1, 5):
        cached = np.full((2, size, 4), -1, np.float32)
        kept, frames = extend_cache(jnp.asarray(cached), jnp.asarray(x))
        np.testing.assert_array_equal(frames, np.concatenate([cached, x], axis=1))
        np.testing.assert_array_equal(kept, np.concatenate([cached, x], axis=1)[:, 3:])


@pytest.mark.parametrize(("steps", "cached"), [(1, 0), (6, 0), (4, 7)])
def test_scores_meet_the_offset_between_key_and_query(steps: int, cached: int) -> None:
    rng = np.random.default_rng(0)
    keys = cached + steps
    queries = rng.standard_normal((3, 2, steps, 5)).astype(np.float32)
    encoded = rng.standard_normal((3, keys + steps - 1, 5)).astype(np.float32)
    scores = jax.jit(relative_scores, static_argnums=2)(queries, encoded, keys)
    assert scores.shape == (3, 2, steps, keys)
    for i in range(steps):
        for j in range(keys):
            expected = (queries[:, :, i] * encoded[:, None, steps - 1 - i + j]).sum(axis=-1)
            np.testing.assert_allclose(scores[:, :, i, j], expected, atol=1e-5)


@pytest.mark.parametrize(("steps", "keys"), [(1, 1), (2, 3), (7, 7), (8, 11), (16, 16), (5, 30)])
def test_what_tpus_do_is_what_others_do(steps: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = jnp.asarray(np.random.default_rng(2).standard_normal((2, steps, keys + steps - 1)))
    others = attention._by_key(offsets, keys)
    monkeypatch.setattr(attention.lax, "platform_dependent", lambda x, *, tpu, default: tpu(x))
    np.testing.assert_array_equal(attention._by_key(offsets, keys), others)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("cached", [0, 3])
def test_attention_as_it_is_written_in_the_paper(relative: bool, cached: int) -> None:
    """Transformer-XL, section 3.3: ((q + u) k + (q + v) W r(i - j)) / sqrt(d), each term written out."""
    heads, width, steps = 2, 3, 4
    dim, keys = heads * width, cached + steps
    module = build(lambda rngs: SelfAttention(dim, heads, relative=relative, rngs=rngs))
    rng = np.random.default_rng(3)
    seen = rng.standard_normal((2, keys, dim)).astype(np.float32)
    x = seen[:, cached:]
    positions = rng.standard_normal((keys + steps - 1, dim)).astype(np.float32)
    mask = rng.random((2, steps, keys)) < 0.6
    mask[..., 0] = True
    mask[1, 2] = False  # which sees nothing: the output's bias alone

    def numbers(parameter: object) -> np.ndarray:
        return np.asarray(parameter[...], np.float64)  # type: ignore[index]

    def apply(linear: object, x: np.ndarray) -> np.ndarray:
        bias = 0 if linear.bias is None else numbers(linear.bias)  # type: ignore[attr-defined]
        return x @ numbers(linear.kernel) + bias  # type: ignore[attr-defined]

    query, key, value = (apply(each, y) for each, y in ((module.query, x), (module.key, seen), (module.value, seen)))
    mixed = np.zeros((2, steps, dim))
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = np.zeros((2, steps, keys))
        for i in range(steps):
            for j in range(keys):
                if relative:
                    offset = apply(module.position, positions[steps - 1 - i + j])[own]
                    scores[:, i, j] = (query[:, i, own] + numbers(module.position_bias)[own]) @ offset
                bias = numbers(module.content_bias)[own] if relative else 0
                scores[:, i, j] += ((query[:, i, own] + bias) * key[:, j, own]).sum(-1)
        weights = softmax(np.where(mask, scores / np.sqrt(width), -1e9)) * mask
        mixed[..., own] = weights @ value[..., own]
    made = module(x, seen, jnp.asarray(mask), positions if relative else None)
    np.testing.assert_allclose(made, apply(module.out, mixed), atol=1e-5)
    gradient = jax.grad(lambda x: module(x, seen, jnp.asarray(mask), positions if relative else None).sum())(x)
    assert np.isfinite(gradient).all()
    narrow = module(
        x.astype(jnp.bfloat16), seen.astype(jnp.bfloat16), jnp.asarray(mask), positions if relative else None
    )
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), made, atol=0.1)
