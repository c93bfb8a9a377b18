"""The modules of a Zipformer layer against formulas written out in numpy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from golden_models import quick_jit
from jaxasr.encoders.zipformer_attention import attention_mask, relative_bias
from jaxasr.encoders.zipformer_layer import (
    MASKED,
    AttentionWeights,
    BiasNorm,
    Bypass,
    ChunkCausalDepthwiseConv1d,
    ConvModule,
    Layer,
    LayerConfig,
    NonlinAttention,
    SelfAttention,
    swoosh_l,
    swoosh_r,
)
from jaxasr.encoders.zipformer_positions import compact_relative_positions
from jaxasr.layers.linear import Linear
from jaxasr.quant.array import quantize_array
from jaxasr.quant.rules import Rule
from random_modules import build

CONFIG = LayerConfig(
    dim=16,
    feedforward_dim=12,
    num_heads=4,
    query_head_dim=2,
    value_head_dim=4,
    pos_head_dim=1,
    conv_kernel=5,
    pos_dim=6,
    causal=False,
    chunk=None,
)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numbers(parameter: Any) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def linear(module: Any, x: np.ndarray) -> np.ndarray:
    return x @ numbers(module.kernel) + (0 if module.bias is None else numbers(module.bias))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("steps", "cached"), [(6, 0), (4, 5)])
def test_attention_weights(steps: int, cached: int) -> None:
    """softmax of q·k + p·(W pe[key - query]), without 1/√d, masked scores at -1000."""
    module = build(AttentionWeights, CONFIG)
    heads, query_dim, position_dim = 4, 2, 1
    x, cache = random(0, 2, steps, 16), random(1, 2, cached, heads * query_dim)
    table = np.asarray(compact_relative_positions(steps, cached, CONFIG.pos_dim), np.float64)
    mask = np.ones((2, 1, 1, cached + steps), bool)
    mask[1, ..., -2:] = False
    mask[0, ..., :1] = cached == 0
    projected = linear(module.in_proj, x.astype(np.float64))
    query, key, position = np.split(projected, [heads * query_dim, 2 * heads * query_dim], axis=-1)
    keys = np.concatenate([cache, key], axis=1)
    encoded = linear(module.linear_pos, table).reshape(-1, heads, position_dim)
    scores = np.zeros((2, heads, steps, cached + steps))
    for head in range(heads):
        q = query.reshape(2, steps, heads, -1)[:, :, head]
        k = keys.reshape(2, cached + steps, heads, -1)[:, :, head]
        p = position.reshape(2, steps, heads, -1)[:, :, head]
        for i in range(steps):
            for j in range(cached + steps):
                row = (j - cached - i) + (steps - 1) + cached
                scores[:, head, i, j] = (q[:, i] * k[:, j]).sum(-1) + (p[:, i] * encoded[row, head]).sum(-1)
    expected = softmax(np.where(mask, scores, MASKED))
    if cached:
        new, weights = module.step(cache, x, table.astype(np.float32), mask)
        np.testing.assert_allclose(new, keys[:, -cached:], atol=1e-5)
    else:
        weights = module(x, table.astype(np.float32), mask)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert not np.asarray(weights)[1, ..., -2:].any()


@pytest.mark.parametrize("steps", [3, 10], ids=["shorter than a chunk", "three chunks"])
def test_stored_positions_are_those_of_the_matrix_where_the_mask_lets_through(steps: int) -> None:
    """A table for chunks of 4 frames with 8 to their left: in whole utterances, and in a stream's steps."""
    chunk, left = 4, 8
    config = dataclasses.replace(CONFIG, causal=True, chunk=chunk)
    by_matrix = build(AttentionWeights, config)
    stored = build(AttentionWeights, dataclasses.replace(config, stored_positions=left + 2 * chunk - 1))
    stored.in_proj = by_matrix.in_proj
    of_a_chunk = compact_relative_positions(chunk, left, CONFIG.pos_dim)
    stored.stored.embedding[...] = by_matrix.linear_pos(of_a_chunk)
    x = random(0, 2, steps, 16)
    mask = attention_mask(jnp.array([steps, 2]), steps, chunk, left)
    whole = compact_relative_positions(steps, 0, CONFIG.pos_dim)
    np.testing.assert_allclose(stored(x, whole, mask), by_matrix(x, whole, mask), rtol=1e-5, atol=1e-6)
    cached, piece = random(1, 2, left, 8), random(2, 2, chunk, 16)
    seen = jnp.ones((2, 1, 1, left + chunk), bool)
    expected, found = (each.step(cached, piece, of_a_chunk, seen) for each in (by_matrix, stored))
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def of_integers() -> Any:
    """A layer for chunks of 4 frames whose dense kernels are integers, and whose activations have a range a chunk."""
    module = build(Layer, dataclasses.replace(CONFIG, causal=True, chunk=4))
    rule = Rule(path="*", bits=8, per="tensor", activations="uint8", ranges="tensor")
    for _, part in nnx.iter_graph(module):
        if isinstance(part, Linear):
            part.kernel = nnx.Param(quantize_array(part.kernel[...], rule, "dense"))
    return module


def through(layer: Any, x: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    steps = x.shape[1]
    table = compact_relative_positions(steps, 0, CONFIG.pos_dim)
    mask = attention_mask(jnp.array(lengths), steps, 4, 8)
    made: np.ndarray = quick_jit(lambda x, lengths: layer(x, table, mask, lengths, lengths))(x, np.array(lengths))
    return made


def test_ranges_of_activations_are_those_of_a_rows_own_chunks(of_integers: Any) -> None:
    """Nothing that stands in the padding, or in another chunk that a frame does not see, moves a frame by a bit."""
    x = random(0, 2, 12, 16)
    expected = through(of_integers, x, (12, 7))
    louder = x.copy()
    louder[0, 4:] *= 9  # of the other chunks; the first sees neither
    louder[1, 7:] = 1000
    made = through(of_integers, louder, (12, 7))
    np.testing.assert_array_equal(made[0, :4], expected[0, :4])
    np.testing.assert_array_equal(made[1, :7], expected[1, :7])
    assert (made[0, 4:] != expected[0, 4:]).any()


def test_a_stream_of_integers_is_the_whole_utterance(of_integers: Any) -> None:
    """But where float32 rounds otherwise and an activation falls on the other side of a step: in few frames, if any."""
    x = random(0, 1, 12, 16)
    expected = through(of_integers, x, (12,))
    state, pieces = of_integers.initial_state(1, 8, jnp.float32), []
    table = compact_relative_positions(4, 8, CONFIG.pos_dim)
    step = quick_jit(of_integers.step)
    for first in (0, 4, 8):
        seen = np.arange(12)[None, None, None] >= 8 - first
        state, piece = step(state, x[:, first : first + 4], table, seen, np.array([4]), np.array([4]))
        pieces.append(piece)
    near = np.abs(np.concatenate(pieces, axis=1) - expected).max(-1) < 1e-4
    assert near.mean() > 0.6


def test_more_than_forty_seconds_attend_to_each_other() -> None:
    """The publisher's ONNX models hold a table of 3999 offsets and fail beyond 40 s; ours grows: 50 s at 50 Hz."""
    module = build(AttentionWeights, dataclasses.replace(CONFIG, dim=12, num_heads=1, query_head_dim=6, pos_head_dim=3))
    steps = 2500
    x = random(3, 1, steps, 12)
    positions = compact_relative_positions(steps, 0, CONFIG.pos_dim)
    weights = np.asarray(quick_jit(module)(x, positions, jnp.ones((1, 1, 1, steps), bool)))
    query, key, position = np.split(linear(module.in_proj, x[0].astype(np.float64)), [6, 12], axis=-1)
    encoded = linear(module.linear_pos, np.asarray(positions, np.float64))  # (2 steps - 1, 3)
    for i in (0, 7, 1250, 2499):
        scores = key @ query[i] + encoded[steps - 1 - i : 2 * steps - 1 - i] @ position[i]
        np.testing.assert_allclose(weights[0, 0, i], softmax(scores), atol=1e-5)


def test_self_attention_and_its_cache() -> None:
    module = build(SelfAttention, 10, 2, 3)
    x, weights = random(0, 2, 4, 10), softmax(random(1, 2, 2, 4, 9)).astype(np.float32)
    cache = random(2, 2, 5, 6)
    values = np.concatenate([cache, linear(module.in_proj, x)], axis=1)
    mixed = np.einsum("bhts,bshv->bthv", weights, values.reshape(2, 9, 2, 3)).reshape(2, 4, 6)
    new, made = module.step(cache, x, weights)
    np.testing.assert_allclose(made, linear(module.out_proj, mixed), atol=1e-5)
    np.testing.assert_allclose(new, values[:, -5:], atol=1e-5)


def test_nonlin_attention_and_its_cache() -> None:
    """Linear to s, x, y in this order: out((A (x tanh s)) y); the cache holds x tanh s."""
    module = build(NonlinAttention, 8, 6)
    x, weights = random(0, 1, 3, 8), softmax(random(1, 1, 3, 5)).astype(np.float32)
    cache = random(2, 1, 2, 6)
    s, value, gate = np.split(linear(module.in_proj, x), 3, axis=-1)
    values = np.concatenate([cache, value * np.tanh(s)], axis=1)
    new, made = module.step(cache, x, weights)
    np.testing.assert_allclose(made, linear(module.out_proj, (weights @ values) * gate), atol=1e-5)
    np.testing.assert_allclose(new, values[:, -2:], atol=1e-5)


def chunk_causal(module: ChunkCausalDepthwiseConv1d, x: np.ndarray, chunk: int) -> np.ndarray:
    """icefall's ChunkCausalDepthwiseConv1d on one utterance (T, C), frame by frame."""
    steps, channels = x.shape
    width, half = module.width, module.half
    causal, within = numbers(module.causal.kernel)[:, 0], numbers(module.chunkwise.kernel)[:, 0]
    edges = numbers(module.edge_scale)
    result = np.zeros((steps, channels))
    for t in range(steps):
        for k in range(half + 1):  # causal: the last tap is the frame itself
            if t - half + k >= 0:
                result[t] += causal[k] * x[t - half + k]
        result[t] += numbers(module.causal.bias)
        begin = t // chunk * chunk
        inside = numbers(module.chunkwise.bias).copy()
        for k in range(width):  # around the frame, zeros outside the chunk and after the utterance
            source = t - half + k
            if begin <= source < min(begin + chunk, steps):
                inside += within[k] * x[source]
        scale = np.ones(channels)
        place = t - begin
        if chunk >= width:
            left = np.concatenate([edges[0], np.zeros((chunk - width, channels))])
            right = np.concatenate([np.zeros((chunk - width, channels)), edges[1]])
        else:
            left, right = edges[0][:chunk], edges[1][-chunk:]
        scale += left[place] + right[place]
        result[t] += inside * scale
    return result


@pytest.mark.parametrize("chunk", [2, 5, 7, 8, 40])  # shorter than the kernel, equal, longer, longer than all
def test_chunk_causal_convolution(chunk: int) -> None:
    """Also in a batch: a row shorter than a chunk is a chunk of its own length, whatever stands beside it."""
    module = build(ChunkCausalDepthwiseConv1d, 3, 7)
    lengths = [19, 6, 1]
    x = random(chunk, 3, 19, 3)
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    made = np.asarray(quick_jit(module, static_argnums=2)(x, np.array(lengths), chunk))
    for row, length in enumerate(lengths):
        expected = chunk_causal(module, x[row, :length].astype(np.float64), min(chunk, length))
        np.testing.assert_allclose(made[row, :length], expected, atol=1e-5, err_msg=str(length))
    whole = np.asarray(quick_jit(module, static_argnums=2)(x, np.array(lengths), None))
    for row, length in enumerate(lengths):
        expected = chunk_causal(module, x[row, :length].astype(np.float64), length)
        np.testing.assert_allclose(whole[row, :length], expected, atol=1e-5, err_msg=str(length))


def test_convolutions_do_not_see_what_is_beyond_a_rows_end() -> None:
    module = build(ConvModule, 4, 7, False)
    x = random(0, 2, 12, 4)
    lengths = np.array([12, 5])
    run = quick_jit(lambda x: module(x, lengths, lengths, None))
    other = x.copy()
    other[1, 5:] = 1e6
    np.testing.assert_array_equal(run(x)[1, :5], run(other)[1, :5])


def test_a_bypass_is_used_as_stored() -> None:
    module = build(Bypass, 3)
    module.scale[...] = jnp.array([-0.5, 0.3, 1.7])  # outside [0, 1] too
    x0, x = random(0, 2, 4, 3), random(1, 2, 4, 3)
    np.testing.assert_allclose(module(x0, x), x0 + (x - x0) * np.array([-0.5, 0.3, 1.7]), atol=1e-6)


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


def test_the_row_of_a_key_encodes_its_offset() -> None:
    """Table and scores agree on the order of rows: a query that asks for the offset's sign gets it."""
    steps, cached = 4, 3
    table = np.asarray(compact_relative_positions(steps, cached, 8))
    sine = jnp.asarray(table[:, 1:2])[None]  # (1, N, 1): sin(a), which has the sign of key - query
    bias = np.asarray(relative_bias(jnp.ones((1, 1, steps, 1)), sine, steps + cached))[0, 0]
    offsets = np.arange(steps + cached)[None, :] - (cached + np.arange(steps))[:, None]
    np.testing.assert_array_equal(np.sign(np.round(bias, 6)), np.sign(offsets))


def test_the_norms_bias_enters_the_statistic_only() -> None:
    norm = BiasNorm(6, rngs=nnx.Rngs(0))
    norm.bias[...] = jnp.array([0.5, -1.0, 2.0, 0.0, 0.25, -3.0])
    norm.log_scale[...] = jnp.float32(0.7)
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    rms = np.sqrt(np.square(x - np.asarray(norm.bias[...])).mean(axis=-1, keepdims=True))
    np.testing.assert_allclose(norm(x), x / rms * np.exp(np.float32(0.7)), rtol=1e-5)
    np.testing.assert_array_equal(norm(jnp.zeros((1, 6))), np.zeros((1, 6)))


def test_the_norm_has_no_epsilon() -> None:
    norm = BiasNorm(4, rngs=nnx.Rngs(0))
    norm.bias[...] = jnp.zeros(4)
    x = np.array([[1e-12, -1e-12, 2e-12, 1e-12]], np.float32)
    np.testing.assert_allclose(np.square(norm(x)).mean(), 1.0, rtol=1e-5)


def test_the_norms_statistics_of_narrow_types_are_taken_in_float32() -> None:
    norm = BiasNorm(4, rngs=nnx.Rngs(0))
    x = jnp.array([[300.0, -300.0, 300.0, 300.0]], jnp.float16)  # 300² is beyond float16
    y = norm(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.abs(np.asarray(y, np.float32)), 1.0, atol=1e-3)


def test_swoosh() -> None:
    x = np.linspace(-60, 60, 2001)
    np.testing.assert_allclose(
        swoosh_l(x.astype(np.float32)), np.logaddexp(0, x - 4) - 0.08 * x - 0.035, atol=1e-6, rtol=1e-6
    )
    np.testing.assert_allclose(
        swoosh_r(x.astype(np.float32)), np.logaddexp(0, x - 1) - 0.08 * x - 0.313261687, atol=1e-6, rtol=1e-6
    )
    assert abs(float(swoosh_r(jnp.zeros(())))) < 1e-7  # the constant makes it pass through the origin


def test_swoosh_of_large_values_stay_finite_and_types_are_kept() -> None:
    for activation in (swoosh_l, swoosh_r):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            x = jnp.array([-30000.0, -100.0, 0.0, 100.0, 30000.0], dtype)
            y = activation(x)
            assert y.dtype == dtype
            assert bool(jnp.isfinite(y).all())
        slope = jax.grad(lambda x, f=activation: f(x))(jnp.float32(1e4))
        np.testing.assert_allclose(slope, 0.92, atol=1e-6)
