from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxasr.search.hypotheses import from_frames


def test_emitting_frames_come_to_the_front_in_their_order() -> None:
    tokens = jnp.array([[5, 6, 7, 8], [1, 2, 3, 4], [9, 9, 9, 9]])
    log_probs = -jnp.arange(12.0).reshape(3, 4)
    emitted = jnp.array([[True, False, True, True], [False, False, False, False], [True, True, True, True]])
    hypotheses = from_frames(*(each[:, None] for each in (tokens, log_probs, emitted)))
    np.testing.assert_array_equal(hypotheses.tokens[:, 0], [[5, 7, 8, 0], [0, 0, 0, 0], [9, 9, 9, 9]])
    np.testing.assert_array_equal(hypotheses.frames[:, 0], [[0, 2, 3, 0], [0, 0, 0, 0], [0, 1, 2, 3]])
    np.testing.assert_array_equal(hypotheses.durations[:, 0], [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(hypotheses.length, [[3], [0], [4]])
    np.testing.assert_array_equal(hypotheses.score, [[-5], [0], [-38]])
    assert hypotheses.tokens.dtype == hypotheses.frames.dtype == hypotheses.length.dtype == jnp.int32
