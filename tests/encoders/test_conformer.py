"""The Conformer's lengths and masks against their definitions, and its forms against each other on random weights."""

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
from jaxasr.encoders import StreamingEncoder
from jaxasr.encoders.conformer import Conformer, context_mask
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.layers.dropout import Dropout
from jaxasr.layers.positions import sinusoids
from random_modules import random_module

# Unequal everything, so that a swapped axis shows.
CONFIG = ConformerConfig(
    num_layers=2, dim=12, num_heads=3, feedforward_dim=20, conv_kernel=5, input_dim=19, front_end_channels=6
)
FAST = dataclasses.replace(
    CONFIG, subsampling=8, front_end="separable", scale_inputs=False, use_bias=False, projected_dim=7
)
CHUNKED = dataclasses.replace(
    CONFIG, causal_front_end=True, conv_context=(4, 0), conv_norm="layer", context=(6, 2), context_style="chunked"
)
STREAMING = {
    "chunks": CHUNKED,
    "single frames": dataclasses.replace(CHUNKED, context=(5, 0)),
    "regular": dataclasses.replace(CHUNKED, context=(4, 0), context_style="regular", conv_norm="batch"),
    "8x": dataclasses.replace(CHUNKED, subsampling=8, front_end="separable", context=(4, 1)),
}


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def network(config: ConformerConfig) -> tuple[Any, Any, Any]:
    """(graph, state, jitted whole form)."""
    graph, state = random_module(lambda rngs: Conformer(config, rngs=rngs), seed=5)
    state = jax.tree_util.tree_map_with_path(_possible, state)
    run = quick_jit(lambda state, frames, lengths: nnx.merge(graph, state)(frames, lengths))
    return graph, state, run


def _possible(path: Any, value: Any) -> Any:
    """A variance is positive."""
    return np.abs(value) + 0.5 if "variance" in jax.tree_util.keystr(path) else value


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_heads": 5}, "dim 12 .* 5 heads"),
        ({"num_layers": 0}, "num_layers"),
        ({"front_end_channels": 0}, "front_end_channels"),
        ({"subsampling": 6}, "subsampling 6"),
        ({"subsampling": 1}, "subsampling 1"),
        ({"conv_kernel": 4}, "conv_kernel"),
        ({"conv_context": (3, 0)}, "conv_context"),
        ({"context": (-2, 0)}, "context"),
        ({"context": (7, 2), "context_style": "chunked"}, "7 frames are no number of 3s"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("config", [CONFIG, FAST, CHUNKED, STREAMING["8x"]])
def test_lengths_are_those_of_the_convolutions(config: ConformerConfig) -> None:
    """nemo.md: (L - 1) // 2 + 1 a stage, causal L // 2 + 1; nothing makes nothing. 286, 401, 35 at 4x: 72, 101, 9."""
    lengths = range(1, 40)
    array = config.encoded_length(jnp.arange(40))
    shapes = [
        jax.eval_shape(network(config)[2], network(config)[1], jnp.zeros((1, size, 19)), jnp.zeros(1, jnp.int32))[0]
        for size in lengths
    ]
    assert [shape.shape[1] for shape in shapes] == [config.encoded_length(size) for size in lengths]
    assert array.tolist() == [config.encoded_length(size) for size in range(40)]
    assert array[0] == 0
    assert [CONFIG.encoded_length(size) for size in (286, 401, 35)] == [72, 101, 9]
    assert shapes[0].shape[2] == config.output_dim


def test_what_a_step_reads() -> None:
    """nemo.md, section 5: at 8x and R = 3 later chunks have 32 frames and 9 before them."""
    config = dataclasses.replace(STREAMING["8x"], context=(20, 3))
    assert (config.frames_per_step, config.shift_per_step) == (41, 32)
    assert config.streams and not CONFIG.streams
    assert not dataclasses.replace(config, causal_front_end=False).streams
    assert not dataclasses.replace(config, context=(-1, 3)).streams
    assert not dataclasses.replace(config, context_style="regular").streams
    assert config.facts()["causal"] is True


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["regular", "chunked"])
@pytest.mark.parametrize("context", [(-1, -1), (4, -1), (-1, 1), (4, 1), (0, 0), (2, 0)])
def test_context(style: Any, context: tuple[int, int]) -> None:
    """nemo.md, section 4: regular -l <= key - query <= r; chunks of r + 1, 0 <= chunk(query) - chunk(key) <= l // c."""
    steps, (left, right) = 9, context
    mask = np.broadcast_to(
        context_mask(dataclasses.replace(CONFIG, context=context, context_style=style), steps), (1, steps, steps)
    )
    for query in range(steps):
        for key in range(steps):
            if style == "regular" or right < 0:
                seen = (left < 0 or key - query >= -left) and (right < 0 or key - query <= right)
            else:
                ago = query // (right + 1) - key // (right + 1)
                seen = ago >= 0 and (left < 0 or ago <= left // (right + 1))
            assert mask[0, query, key] == seen, (query, key)


# --- the whole, on random weights -------------------------------------------------------------------------------------

VARIANTS = {
    "plain": CONFIG,
    "fast": FAST,
    "limited": dataclasses.replace(CONFIG, context=(3, 2)),
    "lopsided": dataclasses.replace(CONFIG, conv_context=(1, 3)),
    "absolute": dataclasses.replace(CONFIG, positions="absolute"),
    "chunks": CHUNKED,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_what_single_utterances_give(variant: str) -> None:
    """Whatever stands beyond a row's length, also what is no number."""
    _, state, run = network(VARIANTS[variant])
    frames, lengths = random(0, 3, 45, 19) * 3, np.array([45, 30, 13])
    for row, length in enumerate(lengths):
        frames[row, length:] = np.nan
    encoded, valid = run(state, frames, lengths)
    for row, length in enumerate(lengths):
        alone, count = run(state, frames[row : row + 1, :length], lengths[row : row + 1])
        assert count[0] == valid[row] == alone.shape[1]
        assert difference(encoded[row, : count[0]], np.asarray(alone[0])) < 1e-5


def test_absolute_positions_are_added_to_the_scaled_frames() -> None:
    config = VARIANTS["absolute"]
    graph, state, run = network(config)
    module = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    frames, lengths = random(1, 1, 33, 19), np.array([33])
    x = module.subsample(frames, lengths) * np.sqrt(12) + sinusoids(jnp.arange(9.0), 12)
    for layer in module.layers:
        x = layer(x, jnp.ones((1, 1, 9), bool), None, np.array([9]))
    assert difference(run(state, frames, lengths)[0], np.asarray(x)) < 1e-5


def test_dropout_acts_and_gradients_are_finite() -> None:
    graph, state, run = network(CONFIG)
    frames, lengths = random(2, 2, 33, 19), np.array([33, 12])

    def masked(state: Any, rate: jax.Array | float) -> jax.Array:
        encoded, valid = nnx.merge(graph, state)(frames, lengths, Dropout(jnp.asarray(rate), jax.random.key(0)))
        return jnp.where(jnp.arange(9)[None, :, None] < valid[:, None, None], encoded, 0)

    encoded, _ = run(state, frames, lengths)
    dropped = quick_jit(masked)
    np.testing.assert_allclose(dropped(state, 0.0)[0], encoded[0], atol=1e-5)
    assert difference(dropped(state, 0.5)[0], np.asarray(encoded[0])) > 0.01
    gradients = quick_jit(jax.grad(lambda state: jnp.square(masked(state, 0.1)).sum()))(state)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        # Statistics are not trained, and a bias of the keys moves all scores of a query alike.
        still = any(part in name for part in ("mean", "variance"))
        assert (np.abs(gradient).max() == 0) == still or ("key" in name and "bias" in name), name


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMING)
def test_a_stream_gives_what_the_whole_gives(name: str) -> None:
    """Two rows that end at different frames, one of them within its first chunk or soon after."""
    config = STREAMING[name]
    graph, state, run = network(config)
    lengths = np.array([75, 2 * config.shift_per_step - 3])
    frames = random(3, 2, 75, 19) * 3
    encoded, valid = run(state, frames, lengths)

    step = quick_jit(lambda state, cache, window, exist: nnx.merge(graph, state).step(cache, window, exist))
    module = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    assert isinstance(module, StreamingEncoder)
    cache = module.initial_state(2)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(cache))
    before = 2 * config.subsampling  # frames of the first window that lie before the utterance: of any value
    padded = np.pad(frames, ((0, 0), (before, 100), (0, 0)), constant_values=np.nan)
    outputs = []
    for number in range(-(-encoded.shape[1] // config.chunk)):
        start = number * config.shift_per_step
        window = padded[:, start : start + config.frames_per_step]
        cache, chunk = step(state, cache, window, np.maximum(lengths + before - start, 0))
        assert chunk.shape == (2, config.chunk, config.output_dim)
        outputs.append(chunk)
    stream = np.concatenate(outputs, axis=1)
    for row in range(2):
        assert difference(stream[row, : valid[row]], np.asarray(encoded[row, : valid[row]])) < 1e-5


def test_what_needs_the_whole_utterance_has_no_step_form() -> None:
    graph, state, _ = network(CONFIG)
    with pytest.raises(ValueError, match="causal convolutions and a limited context"):
        nnx.merge(graph, state).initial_state(1)
