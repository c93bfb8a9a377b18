"""The SAN-M encoder: place codes by their formula, rows that do not feel their padding, and what sizes cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.encoders.sanm import Sanm, positions
from jaxasr.encoders.sanm_config import SanmConfig
from jaxasr.layers.sliding import Sliding
from random_modules import build, noting_dropout

TINY = SanmConfig(num_layers=2, dim=8, num_heads=2, feedforward_dim=12, kernel=4, shift=1, input_dim=10)


def test_places_are_counted_from_1() -> None:
    table = np.asarray(positions(6, 8))
    for place, k in ((0, 0), (3, 1), (5, 3)):
        angle = (place + 1) * 10000 ** (-k / 3)
        np.testing.assert_allclose([table[place, k], table[place, 4 + k]], [np.sin(angle), np.cos(angle)], atol=1e-6)


def test_a_batch_gives_what_single_utterances_give() -> None:
    encoder = build(Sanm, TINY)
    frames = np.random.default_rng(1).normal(0, 1, (2, 9, 10)).astype(np.float32)
    encoded, lengths = encoder(frames, jnp.array([9, 5]))
    alone, _ = encoder(frames[1:, :5], jnp.array([5]))
    assert encoded.shape == (2, 9, 8) and lengths.tolist() == [9, 5]
    np.testing.assert_allclose(encoded[1, :5], alone[0], atol=1e-5)
    assert TINY.encoded_length(9) == 9 and TINY.facts() == {"causal": False}


def test_dropout_reaches_both_modules_of_each_layer() -> None:
    dropout, places = noting_dropout()
    with jax.disable_jit():
        build(Sanm, TINY)(np.zeros((1, 4, 10), np.float32), jnp.array([4]), dropout)
    assert set(places) == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 3}, "divisible by 3 heads"),
        ({"input_dim": 3}, "input_dim 3 must be even"),
        ({"shift": -1}, "shift"),
    ],
)
def test_what_sizes_cannot_be(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        SanmConfig(**wrong)


WINDOW = Sliding(past=1, current=3, ahead=2, encoder_look_back=2)
STREAMED = dataclasses.replace(TINY, window=WINDOW)


def test_a_stream_beside_others_is_the_stream_alone() -> None:
    """Two streams side by side, one of which ends in its second step with a frame less: what is padded is not heard."""
    encoder = build(Sanm, STREAMED)
    frames = np.random.default_rng(4).normal(0, 1, (2, 6, 10)).astype(np.float32)
    others = frames[::-1].copy()
    frames[1, 5], others[1] = 7.0, frames[1]
    others[1, 5] = 0.0
    step = quick_jit(lambda *inputs: encoder.step(*inputs))
    found = []
    for rows in (frames, others):
        state, first = step(encoder.initial_state(2), rows[:, :3], np.array([3, 3]), np.array([False, False]))
        _, second = step(state, rows[:, 3:], np.array([3, 2]), np.array([False, True]))
        found.append((first[1], second[1]))
        assert (second[1, 5:] == 0).all() and (np.abs(second[0]).sum(-1) > 0).all()
        assert state["cached"].tolist() == [4, 4] and state["placed"].tolist() == [3, 3]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_how_a_stream_is_cut() -> None:
    assert STREAMED.streamable and not TINY.streamable and STREAMED.facts()["causal"]
    assert (STREAMED.first_frame, STREAMED.frames_per_step, STREAMED.shift_per_step) == (0, 3, 3)
    assert STREAMED.encoded_per_step == 6 and [STREAMED.ready_steps(n) for n in (0, 2, 3, 7)] == [0, 0, 1, 2]
    # The last step may have all its frames, or none; the publisher leaves frames out that would begin a step.
    assert [STREAMED.ending(*n) for n in ((7, 6), (6, 5), (6, 6), (0, 0))] == [(3, 7), (2, 6), (3, 6), (1, 0)]
    publisher = dataclasses.replace(STREAMED, window=dataclasses.replace(WINDOW, tail="publisher"))
    assert [publisher.ending(*n) for n in ((7, 6), (6, 5), (8, 7))] == [(3, 6), (2, 6), (3, 8)]
    assert [STREAMED.counted(step, 7) for step in (0, 1, 2)] == [6, 6, 4]
    assert STREAMED.counted(0, 0) == 0 and publisher.counted(0, 0) == 3
    with pytest.raises(ValueError, match="takes no stream"):
        TINY.ready_steps(3)


def test_of_nothing_nothing_is_heard() -> None:
    """The window of an empty stream holds nothing but the zeros before it."""
    encoder = build(Sanm, STREAMED)
    step = quick_jit(lambda *inputs: encoder.step(*inputs))
    zeros = np.zeros((2, 3, 10), np.float32)
    _, encoded = step(encoder.initial_state(2), zeros, np.array([0, 0]), np.array([True, True]))
    assert (encoded == 0).all()


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"current": 0}, "must be positive"),
        ({"ahead": -1}, "must not be negative"),
        ({"encoder_look_back": -2}, "must not be negative"),
        ({"encoder_look_back": -1, "current": 8}, "is fixed: give 1 for each step of the longest"),
        ({"encoder_look_back": -1, "past": 5}, "give 2 for each step"),
        ({"decoder_look_back": -1}, "decoder_look_back -1 is no look-back for FunASR: give 0"),
    ],
)
def test_what_windows_cannot_be(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Sliding(**wrong)


def test_an_unlimited_look_back_is_one_of_the_longest_stream() -> None:
    """A stream of five steps, with 2 for each of them as the look-back and with more: equal frames by larger caches."""
    frames = np.random.default_rng(6).normal(0, 1, (1, 15, 10)).astype(np.float32)
    found = []
    for look_back in (10, 14):
        config = dataclasses.replace(TINY, window=dataclasses.replace(WINDOW, encoder_look_back=look_back))
        encoder = build(Sanm, config)
        step, state = quick_jit(lambda *inputs, encoder=encoder: encoder.step(*inputs)), encoder.initial_state(1)
        for begin in range(0, 15, 3):
            state, encoded = step(state, frames[:, begin : begin + 3])
        found.append(encoded)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
