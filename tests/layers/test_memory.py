"""The memory block against its sum written out: any kernel and shift, and rows that do not feel their padding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
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


def test_a_causal_memory_of_pieces_is_that_of_the_whole() -> None:
    memory = build(lambda rngs: Memory(2, 5, 2, rngs=rngs))
    x = np.random.default_rng(2).normal(0, 1, (1, 7, 2)).astype(np.float32)
    whole = memory(x, jnp.ones((1, 7), bool))
    history, begun, found = np.zeros((1, 4, 2), np.float32), np.array([False]), []
    step = quick_jit(memory.step)
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        piece = np.full((1, 4, 2), 7.0, np.float32)  # what stands after a row's length is never read
        piece[:, : end - begin] = x[:, begin:end]
        history, y = step(history, begun, piece, np.array([end - begin]))
        begun = np.array([True])
        found.append(y[:, : end - begin])
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=1e-5)


def test_a_centred_memory_sees_to_come_in_the_first_piece_alone() -> None:
    """As FunASR runs it: later pieces begin with the padding after the first one, and see no frame after themselves."""
    memory = build(lambda rngs: Memory(2, 5, 0, rngs=rngs))
    taps = np.asarray(memory.conv.kernel[...])[:, 0]
    x = np.random.default_rng(3).normal(0, 1, (1, 5, 2)).astype(np.float32)
    step = quick_jit(memory.step)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 0)))
    history, first = step(np.zeros((1, 4, 2), np.float32), np.array([False]), padded[:, :3], np.array([3]))
    np.testing.assert_allclose(first, memory(x[:, :3], jnp.ones((1, 3), bool)), atol=1e-5)
    _, second = step(history, np.array([True]), padded[:, 3:], np.array([2]))
    seen = np.concatenate([x[0, 1:3], np.zeros((2, 2), np.float32), x[0, 3:]])
    for t in range(2):
        expected = x[0, 3 + t] + (taps * seen[t : t + 5]).sum(0)
        np.testing.assert_allclose(second[0, t], expected, atol=1e-5)
