"""Rounding by what a matrix is multiplied by, against the sums of squares that it is to make small, in numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from jaxasr.compression.compensated import RowGrid, compensate
from jaxasr.quant.array import quantize_array
from jaxasr.quant.numbers import limits
from jaxasr.quant.rules import Rule

INPUTS, OUTPUTS, BLOCK = 30, 5, 8  # of which the last block is shorter
GENERATOR = np.random.default_rng(1)
WEIGHTS = GENERATOR.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
# Inputs that are correlated, as those of a network are.
HEARD = GENERATOR.standard_normal((200, 6)) @ GENERATOR.standard_normal((6, INPUTS))
HEARD += 0.3 * GENERATOR.standard_normal(HEARD.shape)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def begun(rule: Rule) -> tuple[np.ndarray, RowGrid]:
    """The nearest integers, and their grid by rows."""
    array = quantize_array(WEIGHTS, rule, "dense")
    zero = None if array.zero is None else np.asarray(array.zero, np.float64)
    cell = np.arange(INPUTS) // (rule.block or INPUTS)
    assert rule.bits is not None
    grid = RowGrid(np.asarray(array.scale, np.float64), zero, cell, *limits(rule.bits))
    return np.asarray(array.values(), np.float64), grid


@pytest.mark.parametrize(
    "rule",
    [
        Rule(path="*", bits=4, block=BLOCK, symmetric=False),
        Rule(path="*", bits=3, block=BLOCK, bounds="search"),
        Rule(path="*", bits=2, block=BLOCK, symmetric=False, bounds="search"),
        Rule(path="*", bits=2, bounds="search"),
        Rule(path="*", bits=2, per="tensor"),
    ],
    ids=lambda rule: f"{rule.bits}-{rule.block}-{rule.symmetric}-{rule.per}",
)
def test_the_product_is_nearer_than_that_of_the_nearest_integers(rule: Rule) -> None:
    nearest, first = begun(rule)
    integers, grid = compensate(HEARD.T @ HEARD, WEIGHTS.astype(np.float64), first, BFLOAT16)
    rows = np.arange(INPUTS)

    def off(values: np.ndarray) -> float:
        return float(np.square(HEARD @ (values - WEIGHTS)).sum())

    assert off(grid.values(rows, integers)) < 0.6 * off(first.values(rows, nearest))
    assert rule.bits is not None
    assert np.array_equal(integers, np.rint(integers)) and set(np.unique(integers)) <= set(
        range(limits(rule.bits)[0], limits(rule.bits)[1] + 1)
    )
    # Scales and zeros are what can be stored, in the shape in which they are stored.
    for made, given in ((grid.scale, first.scale), (grid.zero, first.zero)):
        assert (made is None) == (given is None)
        if made is not None and given is not None:
            assert made.shape == given.shape
            np.testing.assert_array_equal(made, made.astype(ml_dtypes.bfloat16).astype(np.float64))


def test_independent_inputs_leave_the_nearest_integers() -> None:
    """Without correlations there is nothing to make up for: each weight goes to its nearest integer."""
    rule = Rule(path="*", bits=4, per="tensor")
    gram = np.diag(np.arange(1.0, INPUTS + 1))
    nearest, grid = begun(rule)
    integers, same = compensate(gram, WEIGHTS.astype(np.float64), grid, BFLOAT16)
    np.testing.assert_array_equal(integers, nearest)
    assert same is grid


def test_inputs_that_are_never_heard_go_to_the_nearest_integers() -> None:
    rule = Rule(path="*", bits=3, per="tensor")
    heard = np.where(np.arange(INPUTS) < 4, 0.0, HEARD)
    nearest, grid = begun(rule)
    integers, _ = compensate(heard.T @ heard, WEIGHTS.astype(np.float64), grid, BFLOAT16)
    np.testing.assert_array_equal(integers[:4], nearest[:4])
    assert not np.array_equal(integers, nearest)
