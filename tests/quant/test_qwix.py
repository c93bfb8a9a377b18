"""Our formulas beside those of Qwix, where it does the same.

Its numbers are those that `python tests/quant/qwix_numbers.py` printed with Qwix 0.1.8; nothing here needs Qwix. What it
does otherwise: a symmetric grid's largest integer stands for half a step less than the largest weight (hi + 1/2 steps
reach it, ours hi); an asymmetric grid's zero is an integer, ours a real number.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.quant.numbers import Bounds, Grid, grid_of, limits, max_bounds, quantize

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
QWIX: dict[str, tuple[list[list[float]], list[list[int]], list[list[int]] | None]] = {}


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
    np.testing.assert_array_equal(np.asarray(quantize(split, grid, bits)).reshape(WEIGHTS.shape), integers)
