"""Rounding by what a matrix is multiplied by, against the sums of squares that it is to make small, in numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from jaxasr.compression.compensated import Moments, RowGrid, compensate
from jaxasr.quant.array import quantize_array
from jaxasr.quant.numbers import limits
from jaxasr.quant.rules import Rule

INPUTS, OUTPUTS, BLOCK = 30, 5, 8  # of which the last block is shorter
GENERATOR = np.random.default_rng(1)
WEIGHTS = GENERATOR.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
# Inputs that are correlated, as those of a network are, and what rounded layers before make of them.
WHOLE = GENERATOR.standard_normal((200, 6)) @ GENERATOR.standard_normal((6, INPUTS))
WHOLE += 0.3 * GENERATOR.standard_normal(WHOLE.shape)
ROUNDED = WHOLE + 0.2 * GENERATOR.standard_normal(WHOLE.shape)


def moments() -> Moments:
    made = Moments.zeros(INPUTS)
    for half in (slice(0, 90), slice(90, 200)):  # in batches
        made.add(ROUNDED[half], WHOLE[half])
    return made


def begun(rule: Rule, target: np.ndarray) -> tuple[np.ndarray, RowGrid]:
    """The nearest integers, and their grid by rows."""
    array = quantize_array(target.astype(np.float32), rule, "dense")
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
    gram, target = moments().problem(WEIGHTS.astype(np.float64))
    nearest, first = begun(rule, WEIGHTS)
    integers, grid = compensate(gram, target, begun(rule, target)[1], np.dtype(ml_dtypes.bfloat16))
    rows = np.arange(INPUTS)

    def off(values: np.ndarray) -> float:
        return float(np.square(ROUNDED @ values - WHOLE @ WEIGHTS).sum())

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


def test_the_target_is_that_of_least_squares() -> None:
    _, target = moments().problem(WEIGHTS.astype(np.float64))
    wanted = WHOLE @ WEIGHTS
    best, *_ = np.linalg.lstsq(ROUNDED, wanted, rcond=None)
    error, least, drawn = (np.square(ROUNDED @ each - wanted).sum() for each in (target, best, WEIGHTS))
    assert least <= error < least + 0.05 * (drawn - least)  # the damping draws it to the weights


def test_independent_inputs_leave_the_nearest_integers() -> None:
    """Without correlations there is nothing to make up for: each weight goes to its nearest integer."""
    rule = Rule(path="*", bits=4, per="tensor")
    gram = np.diag(np.arange(1.0, INPUTS + 1))
    nearest, grid = begun(rule, WEIGHTS)
    integers, same = compensate(gram, WEIGHTS.astype(np.float64), grid, np.dtype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(integers, nearest)
    assert same is grid


def test_inputs_that_are_never_heard_stay_as_they_are() -> None:
    made = Moments.zeros(INPUTS)
    silent = np.where(np.arange(INPUTS) < 4, 0.0, WHOLE)
    made.add(silent, silent)
    _, target = made.problem(WEIGHTS.astype(np.float64))
    np.testing.assert_allclose(target, WEIGHTS, atol=1e-6)
