from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxasr.arrays import ceil_div, length_mask, repeat_last, zero_beyond


def test_masks_and_padding_by_row() -> None:
    lengths = jnp.array([2, 0, 3])
    np.testing.assert_array_equal(length_mask(lengths, 3), [[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    values = jnp.arange(9.0).reshape(3, 3, 1).at[0, 2].set(jnp.nan)
    np.testing.assert_array_equal(zero_beyond(values, lengths)[..., 0], [[0, 1, 0], [0, 0, 0], [6, 7, 8]])
    np.testing.assert_array_equal(repeat_last(values, lengths)[0, :, 0], [0, 1, 1])
    np.testing.assert_array_equal(repeat_last(values, lengths)[2, :, 0], [6, 7, 8])


def test_ceil_div_of_integers_and_arrays() -> None:
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    np.testing.assert_array_equal(ceil_div(jnp.array([0, 1, 8, 9]), 8), [0, 1, 1, 2])
