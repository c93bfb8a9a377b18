from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from golden_models import difference, quick_jit
from jaxasr.encoders.zipformer_config import subsampled_length
from jaxasr.encoders.zipformer_frontend import ConvEmbed
from random_modules import random_module

BINS, WIDTH = 20, 6


@pytest.fixture(scope="module")
def front() -> tuple[Any, Any]:
    """(graph, state) of a small front end with biases that are not zero."""
    return random_module(lambda rngs: ConvEmbed(BINS, (8, 32, 128), WIDTH, rngs=rngs), seed=3)


def apply(front: tuple[Any, Any], frames: np.ndarray, lengths: list[int], **options: bool) -> tuple[Any, Any]:
    graph, state = front
    run = quick_jit(lambda state, frames, lengths: nnx.merge(graph, state)(frames, lengths, **options))
    return run(state, frames, np.array(lengths, np.int32))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_lengths() -> None:
    assert [subsampled_length(n) for n in (0, 6, 8, 9, 10, 11, 100)] == [0, 0, 0, 1, 1, 2, 46]
    np.testing.assert_array_equal(subsampled_length(jnp.array([0, 6, 8, 9, 100])), [0, 0, 0, 1, 46])


def test_nine_frames_give_one(front: tuple[Any, Any]) -> None:
    encoded, lengths = apply(front, random(0, 1, 9, BINS), [9])
    assert encoded.shape == (1, 1, WIDTH) and lengths.tolist() == [1]


def test_a_batch_gives_its_singles_and_the_publishers_way_does_not(front: tuple[Any, Any]) -> None:
    frames = random(1, 3, 41, BINS)
    lengths = [41, 24, 9]
    frames[1, 24:], frames[2, 9:] = 1e4, -23.0
    encoded, inner = apply(front, frames, lengths)
    leaking, _ = apply(front, frames, lengths, isolated=False)
    for row, length in enumerate(lengths):
        alone, (size,) = apply(front, frames[row : row + 1, :length], [length])
        assert int(inner[row]) == int(size) == (length - 7) // 2
        assert difference(encoded[row, :size], np.asarray(alone[0])) < 1e-5
        if length < 41:
            assert difference(leaking[row, :size], np.asarray(alone[0])) > 0.01
            # The window reaches three frames to the left of its own: those before them are untouched.
            if size > 3:
                assert difference(leaking[row, : size - 3], np.asarray(alone[0, : size - 3])) < 1e-5


def test_steps_give_the_whole(front: tuple[Any, Any]) -> None:
    """Chunks of 8 frames at 50 Hz: 29 feature frames each, 16 apart, the last six of 13 more being look-ahead."""
    graph, state = front
    chunk, count = 8, 3
    frames = random(2, 2, 2 * chunk * count + 13, BINS)
    whole, _ = apply(front, frames, [frames.shape[1]] * 2)
    full = np.full(2, 2 * chunk + 13, np.int32)
    step = quick_jit(lambda state, carried, x: nnx.merge(graph, state).step(carried, x, full))
    carried = nnx.merge(graph, state).initial_state(2)
    for number in range(count):
        start = 2 * chunk * number
        carried, encoded = step(state, carried, frames[:, start : start + 2 * chunk + 13])
        assert difference(encoded, np.asarray(whole[:, chunk * number : chunk * (number + 1)])) < 1e-5
