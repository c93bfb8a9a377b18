from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxasr.search.hypotheses import Emissions, empty_buffers


def test_emissions_come_to_the_front_in_their_order() -> None:
    tokens = jnp.array([[5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]])
    log_probs = -jnp.arange(12.0).reshape(3, 4)
    frames = jnp.broadcast_to(jnp.arange(4), (3, 4))
    emitted = jnp.array([[True, False, True, True], [False, False, False, False], [True, True, True, True]])
    arrays = (tokens, frames, jnp.ones_like(tokens), log_probs, emitted)
    found = empty_buffers(3, 1, 6).append(Emissions(*(each[:, None] for each in arrays)))
    np.testing.assert_array_equal(found.tokens[:, 0], [[5, 7, 8, 0, 0, 0], [0] * 6, [9, 9, 9, 9, 0, 0]])
    np.testing.assert_array_equal(found.frames[:, 0], [[0, 2, 3, 0, 0, 0], [0] * 6, [0, 1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(found.durations[:, 0], [[1, 1, 1, 0, 0, 0], [0] * 6, [1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(found.length, [[3], [0], [4]])
    np.testing.assert_array_equal(found.log_probs.sum(axis=-1), [[-5], [0], [-38]])
    more = found.append(Emissions(*(each[:, None] for each in arrays)))
    np.testing.assert_array_equal(more.tokens[:, 0], [[5, 7, 8, 5, 7, 8], [0] * 6, [9, 9, 9, 9, 9, 9]])
    np.testing.assert_array_equal(more.length, [[6], [0], [6]])
