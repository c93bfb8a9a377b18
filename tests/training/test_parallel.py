"""The loss of a parallel head against its sums written out, its gradient against differences, and its random order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.heads.parallel import Parallel
from jaxasr.heads.parallel_config import CIFConfig, ParallelConfig
from jaxasr.layers.overlapped import Overlapped
from jaxasr.training.parallel import parallel_loss, random_order, smoothed_cross_entropy, with_end
from random_modules import build

DIM = 4
CONFIG = ParallelConfig(vocabulary_size=6, num_layers=1, feedforward_dim=6, num_heads=2, kernel=3)


def test_texts_end_with_their_end() -> None:
    texts, lengths = with_end(jnp.array([[3, 4, 9], [9, 9, 9]]), jnp.array([2, 0]), 2)
    assert texts.tolist() == [[3, 4, 2, 0], [2, 0, 0, 0]] and lengths.tolist() == [3, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_divergence_from_smoothed_targets(smoothing: float) -> None:
    logits = np.random.default_rng(1).normal(0, 1, (3, 5)).astype(np.float32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    found = smoothed_cross_entropy(log_probs, jnp.array([0, 2, 4]), smoothing)
    for row, label in enumerate((0, 2, 4)):
        target = np.full(5, smoothing / 4)
        target[label] = 1 - smoothing
        some = target > 0
        expected = (target[some] * (np.log(target[some]) - np.asarray(log_probs)[row, some])).sum()
        assert found[row] == pytest.approx(expected, abs=1e-5)


def test_a_random_order_ranks_the_text_before_its_padding() -> None:
    order = np.asarray(random_order(jax.random.key(3), jnp.array([4, 0, 6]), 6))
    assert [sorted(row) for row in order.tolist()] == [list(range(6))] * 3
    assert sorted(order[0, :4].tolist()) == [0, 1, 2, 3]
    assert not np.array_equal(order[2], random_order(jax.random.key(4), jnp.array([6, 6, 6]), 6)[2])


@pytest.fixture(scope="module")
def batch() -> tuple[Any, ...]:
    rng = np.random.default_rng(5)
    encoded = rng.normal(0, 1, (2, 7, DIM)).astype(np.float32)
    return encoded, jnp.array([7, 5]), jnp.array([[3, 4, 5], [5, 0, 0]]), jnp.array([3, 1])


def test_its_gradient_is_that_of_differences(batch: tuple[Any, ...]) -> None:
    """With all wrong tokens shown, and with none, by the encoded frames: the first pass gives no gradient."""
    head = build(Parallel, CONFIG, DIM)
    encoded, *others = batch
    order = jnp.array([[0, 1, 2, 3], [1, 0, 2, 3]])

    def loss(encoded: jax.Array, sampled: jax.Array) -> jax.Array:
        return parallel_loss(head, encoded, *others, smoothing=0.1, sampled=sampled, order=order).sum()

    both = quick_jit(jax.value_and_grad(loss))
    step = np.random.default_rng(6).normal(0, 1, encoded.shape).astype(np.float32)
    for sampled in (0.0, 1.0):
        _, gradient = both(encoded, sampled)
        size = 1e-3
        ahead, back = (both(encoded + sign * size * step, sampled)[0] for sign in (1, -1))
        assert (gradient * step).sum() == pytest.approx((ahead - back) / (2 * size), rel=2e-2, abs=2e-3)
    assert both(encoded, 0.0)[0] != both(encoded, 1.0)[0]
    # Padding has no effect.
    changed = encoded.copy()
    changed[1, 5:] = 9.0
    np.testing.assert_allclose(both(changed, 1.0)[0], both(encoded, 1.0)[0], rtol=1e-5)


def test_chunks_are_not_trained(batch: tuple[Any, ...]) -> None:
    chunks = Overlapped(size=3, stride=2, gap=1, encoder_look_back=1, decoder_look_back=1)
    head = build(Parallel, ParallelConfig(vocabulary_size=6, predictor=CIFConfig(), num_layers=1, chunks=chunks), DIM)
    with pytest.raises(ValueError, match="whole utterances"):
        head.fire_known(batch[0], batch[1], batch[3], 4)
