"""The SAN-M encoder: place codes by their formula, rows that do not feel their padding, and what sizes cannot be."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.encoders.sanm import Sanm, positions
from jaxasr.encoders.sanm_config import SanmConfig
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
