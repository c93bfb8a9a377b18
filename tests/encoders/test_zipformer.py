"""The Zipformer's changes of rate against formulas in numpy, and its forms against each other on random weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from golden_models import difference, quick_jit
from jaxasr.encoders import zipformer
from jaxasr.encoders.zipformer import Downsample, Zipformer, match_channels
from jaxasr.encoders.zipformer_config import ZipformerConfig
from jaxasr.encoders.zipformer_layer import Layer
from jaxasr.layers import repeated
from jaxasr.layers.dropout import Dropout
from random_modules import build, noting_dropout, random_module

# Unequal everything, so that a swapped axis or stack shows.
CONFIG = ZipformerConfig(
    num_layers=(1, 2, 1),
    downsampling=(1, 2, 4),
    encoder_dim=(8, 16, 12),
    feedforward_dim=(16, 12, 20),
    num_heads=(2, 4, 1),
    query_head_dim=(4, 2, 6),
    value_head_dim=(3, 4, 5),
    pos_head_dim=(2, 1, 3),
    conv_kernel=(7, 5, 3),
    pos_dim=6,
    input_dim=20,
)
CAUSAL = dataclasses.replace(CONFIG, causal=True, chunk_size=8, left_context=16)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numbers(parameter: Any) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder_dim": (8, 16)}, "encoder_dim"),
        ({"num_heads": (2, 4, 0)}, "num_heads"),
        ({"conv_kernel": (7, 4, 3)}, "conv_kernel"),
        ({"causal": True, "chunk_size": 6}, "chunk_size 6"),
        ({"causal": True, "chunk_size": 8, "left_context": 10}, "left_context 10"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(CONFIG, **change)


def test_what_a_step_reads() -> None:
    """icefall.md: T = 2c + 13 feature frames, 2c apart."""
    assert (CAUSAL.frames_per_step, CAUSAL.shift_per_step) == (29, 16)
    sixteen = dataclasses.replace(CAUSAL, chunk_size=16)
    assert (sixteen.frames_per_step, sixteen.shift_per_step) == (45, 32)
    assert CONFIG.output_dim == 16


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_downsampling(factor: int) -> None:
    """A softmax-weighted sum of each group, the last frame repeated to fill the last one."""
    module = build(Downsample, factor)
    x = random(0, 2, 13, 5)
    padded = np.concatenate([x, np.repeat(x[:, -1:], -13 % factor, axis=1)], axis=1)
    weights = softmax(numbers(module.bias))
    expected = np.einsum("bgfd,f->bgd", padded.reshape(2, -1, factor, 5), weights)
    np.testing.assert_allclose(module(x), expected, atol=1e-6)


def test_channels_are_cut_or_filled_at_the_end() -> None:
    x = random(0, 1, 2, 4)
    np.testing.assert_array_equal(match_channels(x, 3), x[..., :3])
    np.testing.assert_array_equal(match_channels(x, 6), np.concatenate([x, np.zeros((1, 2, 2))], axis=-1))


# --- the whole, on random weights -------------------------------------------------------------------------------------


@functools.cache
def network(config: ZipformerConfig) -> tuple[Any, Any, Any]:
    """(graph, state, jitted whole form)."""
    graph, state = random_module(lambda rngs: Zipformer(config, rngs=rngs), seed=5)
    return graph, state, quick_jit(lambda state, frames, lengths: nnx.merge(graph, state)(frames, lengths))


@pytest.mark.parametrize("config", [CONFIG, CAUSAL, dataclasses.replace(CAUSAL, chunk_size=-1, left_context=-1)])
def test_every_length_from_nothing_up(config: ZipformerConfig) -> None:
    """Rows of 0 to 39 frames beside each other: (T - 7) // 2 frames at 50 Hz, halved upwards, and each as if alone.

    By stacks of one layer: lengths change between stacks only, and here are four shapes to compile.
    """
    config = dataclasses.replace(config, num_layers=(1, 1, 1))
    _, state, run = network(config)
    lengths = np.arange(40, dtype=np.int32)
    frames = random(0, 40, 39, config.input_dim)
    encoded, counts = run(state, frames, lengths)
    np.testing.assert_array_equal(counts, [(max(n - 7, 0) // 2 + 1) // 2 for n in lengths])
    other = frames.copy()
    for row, length in enumerate(lengths):
        other[row, length:] = np.nan if row % 2 else 1e6
    again, _ = run(state, other[::-1], lengths[::-1])
    for row, count in enumerate(np.asarray(counts)):
        if count:
            # Bit for bit but for the order in which a vectorised loop adds up.
            assert difference(again[39 - row, :count], np.asarray(encoded[row, :count])) < 1e-5, row
    for length in (9, 22, 39):  # and each without any padding at all
        alone, _ = run(state, frames[length : length + 1, :length], lengths[length : length + 1])
        assert alone.shape[1] == counts[length]
        assert difference(encoded[length, : int(counts[length])], np.asarray(alone[0])) < 1e-5


@pytest.mark.parametrize(
    ("chunk", "left", "causal"),
    [(8, 16, CAUSAL), (4, 8, CAUSAL), (16, 16, dataclasses.replace(CAUSAL, conv_kernel=(15, 9, 5)))],
)
def test_steps_give_what_the_chunk_mask_gives(chunk: int, left: int, causal: ZipformerConfig) -> None:
    """Chunks shorter and longer than the kernels; what is cached is enough, also before the left context is full."""
    config = dataclasses.replace(causal, chunk_size=chunk, left_context=left)
    graph, state, run = network(config)
    count = 6
    frames = random(1, 2, config.shift_per_step * count + 13, config.input_dim)
    whole, _ = run(state, frames, np.array([frames.shape[1]] * 2, np.int32))
    step = quick_jit(lambda state, carried, x: nnx.merge(graph, state).step(carried, x))
    carried = nnx.merge(graph, state).initial_state(2)
    for number in range(count):
        start = config.shift_per_step * number
        carried, encoded = step(state, carried, frames[:, start : start + config.frames_per_step])
        expected = np.asarray(whole[:, number * chunk // 2 : (number + 1) * chunk // 2])
        assert difference(encoded, expected) < 2e-5, number
    np.testing.assert_array_equal(carried["processed"], [chunk * count] * 2)


def test_a_minute_runs() -> None:
    """6000 frames: half as long again as the publisher's ONNX models can take. Its end is heard like any other."""
    _, state, run = network(CAUSAL)
    frames = random(2, 1, 6000, CAUSAL.input_dim)
    encoded, counts = run(state, frames, np.array([6000], np.int32))
    assert encoded.shape == (1, 1498, 16) and counts.tolist() == [1498]
    # With limited left context the last chunks of a minute are those of its last ten seconds.
    tail = 5088  # a multiple of the chunk's 16 frames, further back than the context reaches through all layers
    ending = np.full_like(frames, np.nan)  # the same program hears it before padding
    ending[:, : 6000 - tail] = frames[:, tail:]
    late, (count,) = run(state, ending, np.array([6000 - tail], np.int32))
    assert count == 226
    assert difference(encoded[0, -20:], late[0, count - 20 : count]) < 2e-5


def test_widest_channels_of_every_stack_reach_the_output() -> None:
    """The last stack's channels, then those of earlier and wider stacks that it does not cover."""
    module = build(Zipformer, CONFIG)
    outputs = [random(i, 1, 3, dim) for i, dim in enumerate(CONFIG.encoder_dim)]
    joined = module._widest([jnp.asarray(x) for x in outputs])
    np.testing.assert_array_equal(joined, np.concatenate([outputs[2], outputs[1][..., 12:]], axis=-1))


def test_dropout_draws_for_every_stack_layer_and_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Zipformer, CONFIG)
    frames, lengths = random(1, 2, 60, CONFIG.input_dim), jnp.array([60, 41], jnp.int32)

    @quick_jit
    def encode(dropout: Dropout | None) -> jax.Array:
        return model(frames, lengths, dropout)[0]

    rate = jnp.asarray(0.3)
    plain, one, other = (encode(each) for each in (None, *(Dropout(rate, jax.random.key(seed)) for seed in (0, 1))))
    assert min(difference(plain, one), difference(plain, other), difference(one, other)) > 1e-3
    assert difference(plain, encode(Dropout(jnp.asarray(0.0), jax.random.key(0)))) < 1e-6

    monkeypatch.setattr(zipformer, "run_layer", lambda layer, *inputs: layer(*inputs))
    noting, places = noting_dropout()
    jax.eval_shape(lambda: model(frames, lengths, noting))
    layers = [(stack, layer) for stack, count in enumerate(CONFIG.num_layers) for layer in range(count)]
    assert sorted(places) == [(*layer, place) for layer in layers for place in range(8)]


def test_a_stack_traces_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a stack's layers runs once, however many they are: forwards, with dropout and under a gradient."""
    counts: list[int] = []
    call = Layer.__call__

    def counted(layer: Layer, x: jax.Array, *inputs: Any) -> jax.Array:
        counts.append(x.shape[-1])
        return call(layer, x, *inputs)

    monkeypatch.setattr(Layer, "__call__", counted)
    repeated._run.clear_cache()
    config = dataclasses.replace(CONFIG, num_layers=(3, 2, 4))
    graph, state = nnx.split(nnx.eval_shape(lambda: Zipformer(config, rngs=nnx.Rngs(0))))
    frames, lengths = jnp.zeros((2, 60, config.input_dim)), jnp.array([60, 41], jnp.int32)

    def total(state: Any, dropout: Dropout | None) -> jax.Array:
        return nnx.merge(graph, state)(frames, lengths, dropout)[0].sum()

    jax.eval_shape(total, state, None)
    assert counts == list(config.encoder_dim)
    jax.eval_shape(total, state, None)
    assert counts == list(config.encoder_dim), "a second program of the same shapes traces nothing"
    jax.eval_shape(jax.grad(total), state, Dropout(jnp.asarray(0.1), jax.random.key(0)))
    assert counts == 2 * list(config.encoder_dim)
