"""Integrate-and-fire against a loop in float64: counts, places and vectors, also after thousands of frames."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.heads.cif import CIF, SecondHead, integrate, reverse_rows
from jaxasr.heads.parallel_config import CIFConfig, ParallelConfig, PeaksConfig
from jaxasr.heads.running_sums import PEAK, fire_places, running_sum
from jaxasr.layers.overlapped import Overlapped
from random_modules import build

DIM = 6


def loop(weights: np.ndarray, frames: np.ndarray) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    """Vectors, the frames that complete them, and the sum before each token is taken off, frame by frame in float64."""
    total, vector = 0.0, np.zeros(frames.shape[1])
    vectors, places, sums = [], [], []
    for place, (weight, frame) in enumerate(zip(weights.astype(np.float64), frames.astype(np.float64), strict=True)):
        total += weight
        sums.append(total)
        if total >= 1:
            total -= 1
            vectors.append(vector + (weight - total) * frame)
            places.append(place)
            vector = total * frame
        else:
            vector = vector + weight * frame
    return vectors, places, np.array(sums)


@pytest.mark.parametrize(("steps", "seed"), [(7, 1), (60, 2), (5000, 3)])
def test_it_is_the_loop_in_float64(steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Weights as networks give them: most frames hardly count, some nearly complete a token.
    weights = rng.beta(0.3, 0.9, (1, steps)).astype(np.float32)
    frames = rng.normal(0, 1, (1, steps, DIM)).astype(np.float32)
    most = steps // 2

    @quick_jit
    def run(weights: jax.Array, frames: jax.Array) -> Any:
        running = running_sum(weights)
        return running, running.counts, running.fires, integrate(frames, running, most), fire_places(running, most)

    running, counts, fires, vectors, places = run(weights, frames)
    expected, at, sums = loop(weights[0], frames[0])
    assert counts[0] == len(expected) == int(np.floor(weights[0].astype(np.float64).sum()))
    assert places[0, : len(at)].tolist() == at
    assert (places[0, len(at) :] == steps).all()
    np.testing.assert_allclose(vectors[0, : len(at)], expected, atol=2e-6)
    np.testing.assert_allclose(fires[0], sums, atol=2e-7)
    exact = np.cumsum(weights[0].astype(np.float64))
    np.testing.assert_allclose(running.whole[0] + running.fraction[0].astype(np.float64), exact, atol=1e-7)


def test_counts_are_those_of_float64_where_float32_is_wrong() -> None:
    """Weights whose sum in float32 is a whole number, and in float64 lies just below or above it."""
    below, above = np.full((2, 3000), 0.1, np.float32)
    below[-1] -= np.float32(3e-6) + np.float32(np.sum(below.astype(np.float64)) - 300)
    above[-1] -= np.float32(np.sum(above.astype(np.float64)) - 300 - 3e-6)
    exact = [np.sum(row.astype(np.float64)) for row in (below, above)]
    assert exact[0] < 300 < exact[1] and max(abs(total - 300) for total in exact) < 6e-6
    assert np.float32(exact[0]) == np.float32(exact[1]) == 300
    counts = quick_jit(lambda rows: running_sum(rows).counts)(np.stack([below, above]))
    assert counts.tolist() == [299, 300]


@pytest.mark.parametrize("convolution", ["full", "depthwise"])
def test_rows_do_not_feel_their_padding(convolution: Any) -> None:
    """A row of a batch is the row alone, at any of its lengths, none and the whole one included."""
    rng = np.random.default_rng(5)
    config = CIFConfig(convolution=convolution, context=(2, 1), noise_threshold=0.05)
    module = build(CIF, config, DIM)
    module.output.bias[...] = module.output.bias[...] + 1.5  # so that there are tokens
    encoded = rng.normal(0, 1, (3, 9, DIM)).astype(np.float32)
    lengths = np.array([9, 4, 0], np.int32)
    masked = np.where(np.arange(9)[None, :, None] < lengths[:, None, None], encoded, 0)
    batch = jax.device_get(module(masked, jnp.asarray(lengths)))
    for row, length in enumerate(lengths):
        alone = jax.device_get(module(encoded[row : row + 1, :length], jnp.array([length]))) if length else None
        assert batch.counts[row] == (alone.counts[0] if alone else 0)
        if alone:
            np.testing.assert_allclose(batch.weights[row, : length + 1], alone.weights[0], atol=1e-6)
            np.testing.assert_allclose(batch.vectors[row, :length], alone.vectors[0], atol=1e-5)
            assert batch.weights[row, length] == np.float32(config.tail)
    assert batch.counts[0] > 1 and (batch.weights[1, 5:] == 0).all() and (batch.vectors[2] == 0).all()


def test_windows_of_a_stream_find_the_tokens_of_the_whole() -> None:
    """Without look-ahead the weights are those of the whole: what a window leaves open goes on in the next."""
    rng = np.random.default_rng(8)
    module = build(CIF, CIFConfig(context=(0, 0)), DIM)
    encoded = rng.normal(0, 1, (1, 11, DIM)).astype(np.float32)
    whole = quick_jit(module)(encoded, np.array([11]))
    carried, counted = module.initial_state(1), jnp.ones((1, 4), bool)
    vectors = []
    step = quick_jit(lambda *inputs: module.step(*inputs, 5))
    for begin in (0, 4, 8):
        window = np.full((1, 4, DIM), 7.0, np.float32)
        window[:, : 11 - begin] = encoded[:, begin : begin + 4]
        length = np.array([min(11 - begin, 4)])
        counted = np.arange(4)[None] < length[:, None]
        carried, fired = step(carried, window, length, counted, np.array([begin == 8]))
        vectors.append(fired.vectors[0, : fired.counts[0]])
        assert (fired.vectors[0, fired.counts[0] :] == 0).all()
        assert fired.weights[0, 0] == pytest.approx(
            float(whole.running.fraction[0, begin - 1]) if begin else 0, abs=1e-6
        )
    found = np.concatenate(vectors)
    assert len(found) == whole.counts[0] > 2
    np.testing.assert_allclose(found, whole.vectors[0, : len(found)], atol=1e-5)


def test_the_second_head_places_as_many_tokens() -> None:
    rng = np.random.default_rng(6)
    config = CIFConfig(peaks=PeaksConfig(upsampling=2, shares_convolution=True))
    module = build(CIF, config, DIM)
    encoded = rng.normal(0, 1, (2, 8, DIM)).astype(np.float32)
    encoded[1, 5:] = 0
    lengths, counts = jnp.array([8, 5]), jnp.array([3, 2])
    peaks = jax.device_get(module.peaks(encoded, lengths, counts))
    np.testing.assert_allclose(peaks.weights.sum(-1), counts, atol=1e-5)
    assert peaks.running.counts.tolist() == [3, 2] and (peaks.weights[1, 10:] == 0).all()
    alone = jax.device_get(module.peaks(encoded[1:, :5], lengths[1:], counts[1:]))
    np.testing.assert_allclose(peaks.weights[1, :10], alone.weights[0], atol=1e-5)
    nothing = module.peaks(encoded, lengths, jnp.zeros(2, jnp.int32))
    assert (np.asarray(nothing.weights) == 0).all() and PEAK < 1
    with pytest.raises(ValueError, match="no second head"):
        build(CIF, CIFConfig(), DIM).peaks(encoded, lengths, counts)


def test_a_second_head_without_an_lstm_is_a_product_a_step() -> None:
    head = build(SecondHead, PeaksConfig(upsampling=2, recurrent=False, smooth_factor=1.0, noise_threshold=0.0), DIM)
    x = np.random.default_rng(7).normal(0, 1, (1, 3, DIM)).astype(np.float32)
    kernel = np.asarray(head.upsample.kernel[...]).reshape(DIM, 2, DIM)
    steps = np.einsum("td,dso->tso", x[0], kernel).reshape(6, DIM) + np.asarray(head.upsample_bias[...])
    logits = steps @ np.asarray(head.output.kernel[...])[:, 0] + np.asarray(head.output.bias[...])
    np.testing.assert_allclose(head(x, jnp.array([3]))[0], 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_rows_are_reversed_up_to_their_lengths() -> None:
    x = jnp.arange(8, dtype=jnp.float32).reshape(2, 4, 1)
    assert reverse_rows(x, jnp.array([4, 2]))[..., 0].tolist() == [[3, 2, 1, 0], [5, 4, 6, 7]]


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: CIFConfig(context=(-1, 1)), "context"),
        (lambda: CIFConfig(smooth_factor=1.5), "smooth_factor must lie in 0..1"),
        (lambda: CIFConfig(tail=1.0), "tail below 1"),
        (lambda: PeaksConfig(upsampling=0), "upsampling must be positive"),
        (lambda: ParallelConfig(vocabulary_size=2), "lie in the vocabulary of 2: 2"),
        (lambda: ParallelConfig(vocabulary_size=5, num_layers=0), "a layer with cross-attention"),
        (lambda: ParallelConfig(vocabulary_size=5, memory_layers=-1), "no negative numbers"),
        (lambda: ParallelConfig(vocabulary_size=5, shift=-1), "shift not negative"),
        (
            lambda: ParallelConfig(
                vocabulary_size=5,
                predictor=CIFConfig(peaks=PeaksConfig()),
                chunks=Overlapped(size=2, stride=1, gap=0, encoder_look_back=0, decoder_look_back=0),
            ),
            "takes whole utterances",
        ),
    ],
)
def test_what_sizes_cannot_be(make: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make()
