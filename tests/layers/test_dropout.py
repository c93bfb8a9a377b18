"""Dropout: how much it drops, what it keeps, and when it draws anew."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers.dropout import Dropout, no_dropout

ONES = jnp.ones((300, 2, 300), jnp.float32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mean_stays(rate: float) -> None:
    dropped = np.asarray(Dropout(jnp.asarray(rate), jax.random.key(1))(ONES, 0))
    assert np.mean(dropped == 0) == pytest.approx(rate, abs=0.005)
    assert len(np.unique(dropped)) == 2 and dropped.mean() == pytest.approx(1.0, abs=0.02)
    # Whole channels of a row, but neither whole rows nor a channel of all rows.
    np.testing.assert_array_equal(dropped[:, 0], dropped[:, 1])
    assert dropped.any(axis=0).all() and dropped.any(axis=2).all()


def test_bfloat16_keeps_type_and_mean() -> None:
    dropped = Dropout(jnp.asarray(0.15), jax.random.key(1))(jnp.full((100, 2, 100), 8.5, jnp.bfloat16), 0)
    assert dropped.dtype == jnp.bfloat16
    assert np.asarray(dropped, np.float32).max() == 10.0  # 8.5 / 0.85; by a factor in bfloat16 it were 9.9375


def test_no_rate_no_change() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 2, 4)).astype(jnp.bfloat16)
    for same in (Dropout(jnp.asarray(0.0), jax.random.key(1))(x, 0), no_dropout(x, 0)):
        assert same.dtype == jnp.bfloat16
        np.testing.assert_array_equal(same, x)


def test_every_place_draws_its_own() -> None:
    def zeros(seed: int, member: int, place: int) -> bytes:
        whole = Dropout(jnp.asarray(0.5), jax.random.key(seed))
        return np.asarray(whole.within(member)(ONES, place) == 0).tobytes()

    places = [(seed, member, place) for seed in range(2) for member in range(3) for place in range(3)]
    assert len({zeros(*each) for each in places}) == len(places)
    assert zeros(0, 1, 2) == zeros(0, 1, 2)
