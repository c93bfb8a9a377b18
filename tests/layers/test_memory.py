"""The memory block against its sum written out: any kernel and shift, and rows that do not feel their padding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.layers.memory import Memory
from random_modules import build


@pytest.mark.parametrize(("kernel", "shift"), [(11, 0), (11, 5), (4, 0), (4, 1), (3, 3), (1, 0)])
def test_it_is_the_sum_over_the_window(kernel: int, shift: int) -> None:
    memory = build(lambda rngs: Memory(2, kernel, shift, rngs=rngs))
    taps = np.asarray(memory.conv.kernel[...])[:, 0]
    x = np.random.default_rng(1).normal(0, 1, (2, 7, 2)).astype(np.float32)
    lengths = [7, 4]
    found = np.asarray(memory(x, jnp.arange(7) < jnp.array(lengths)[:, None]))
    for row, length in enumerate(lengths):
        for t in range(length):
            first = t - (kernel - 1) // 2 - shift
            window = [(tap, first + tap) for tap in range(kernel) if 0 <= first + tap < length]
            expected = x[row, t] + sum(taps[tap] * x[row, at] for tap, at in window)
            np.testing.assert_allclose(found[row, t], expected, atol=1e-5)
    assert (found[1, 4:] == 0).all()
