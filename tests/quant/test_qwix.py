"""Our formulas beside those of Qwix, where it does the same.

Its numbers are those that `python tests/quant/qwix_numbers.py` printed with Qwix 0.1.8; nothing here needs Qwix. What
it does otherwise: hi + 1/2 steps of a symmetric grid reach the largest weight, of ours hi; an asymmetric grid's zero is
an integer, ours a real number.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.quant.numbers import Bounds, Grid, grid_of, limits, max_bounds, position, quantize

BLOCK = 4
WEIGHTS = np.array(
    [
        [0.9, -0.31, 0.05], [-0.2, 0.17, -0.45], [0.35, 0.08, 1.25], [-0.75, -0.66, 0.5],
        [0.11, 0.4, -0.02], [-0.6, 0.29, 0.75], [0.27, -0.93, -1.0], [0.48, 0.52, 0.2],
    ],
    np.float32,
)  # fmt: skip
# bits, symmetric, in blocks of BLOCK inputs; else per channel
CASES = {
    "8 bits": (8, True, False),
    "4 bits": (4, True, False),
    "4 bits in blocks": (4, True, True),
    "8 bits with a zero": (8, False, False),
    "4 bits in blocks with a zero": (4, False, True),
}
QWIX: dict[str, tuple[list[list[float]], list[list[int]], list[list[int]] | None]] = {
    "8 bits": (
        [[0.007058824, 0.007294118, 0.009803922]],
        [[127, -42, 5], [-28, 23, -46], [50, 11, 127], [-106, -90, 51],
         [16, 55, -2], [-85, 40, 76], [38, -128, -102], [68, 71, 20]],
        None,
    ),
    "4 bits": (
        [[0.120000005, 0.124000005, 0.166666672]],
        [[7, -2, 0], [-2, 1, -3], [3, 1, 7], [-6, -5, 3], [1, 3, 0], [-5, 2, 4], [2, -8, -6], [4, 4, 1]],
        None,
    ),
    "4 bits in blocks": (
        [[0.120000005, 0.088000007, 0.166666672], [0.080000006, 0.124000005, 0.133333340]],
        [[7, -4, 0], [-2, 2, -3], [3, 1, 7], [-6, -7, 3], [1, 3, 0], [-7, 2, 6], [3, -8, -7], [6, 4, 1]],
        None,
    ),
    "8 bits with a zero": (
        [[0.006470589, 0.005686275, 0.008823530]],
        [[127, -19, -9], [-43, 66, -66], [42, 50, 127], [-128, -80, 42],
         [5, 106, -17], [-105, 87, 70], [30, -128, -128], [62, 127, 8]],
        [[-12, 36, -15]],
    ),
    "4 bits in blocks with a zero": (
        [[0.110000007, 0.055333339, 0.113333344], [0.072000004, 0.096666671, 0.116666675]],
        [[7, -2, -4], [-3, 7, -8], [2, 5, 7], [-8, -8, 0], [2, 6, 1], [-8, 5, 7], [4, -8, -8], [7, 7, 3]],
        [[-1, 4, -4], [0, 2, 1]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scales_and_integers(name: str) -> None:
    bits, symmetric, blocks = CASES[name]
    scale, integers, zero = (None if part is None else np.asarray(part) for part in QWIX[name])
    assert scale is not None and integers is not None
    split = WEIGHTS.reshape(-1, BLOCK if blocks else len(WEIGHTS), 3)
    low, high = max_bounds(split, (1,))
    if symmetric:
        _, hi = limits(bits)
        low, high = low * hi / (hi + 0.5), high * hi / (hi + 0.5)
    grid = grid_of(Bounds(low, high), bits, symmetric)
    np.testing.assert_allclose(grid.scale[:, 0], scale, rtol=1e-6)
    if zero is not None:
        assert grid.zero is not None
        assert np.abs(grid.zero[:, 0] - zero).max() <= 0.5
        grid = Grid(grid.scale, jnp.asarray(zero, jnp.float32)[:, None])
    # A weight in the middle between two integers may go to either: a scale's last bit decides.
    sure = np.abs(np.asarray(position(split, grid)) % 1 - 0.5).reshape(WEIGHTS.shape) > 1e-3
    assert sure.mean() > 0.7
    found = np.asarray(quantize(split, grid, bits)).reshape(WEIGHTS.shape)
    np.testing.assert_array_equal(found[sure], integers[sure])
