"""Integers of 8 bits as files hold them: what they stand for, in any layout, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxasr.convert.formats.quantized import QuantizedTensor, quantized_tensor
from jaxasr.convert.mapping import channels_last, conv1d, linear, pointwise, same

GENERATOR = np.random.default_rng(0)
SIGNED = GENERATOR.integers(-128, 128, (6, 8)).astype(np.int8)
UNSIGNED = GENERATOR.integers(0, 256, (6, 8)).astype(np.uint8)
SCALES = GENERATOR.uniform(0.01, 0.1, 6).astype(np.float32)


def by_hand(integers: np.ndarray, scale: Any, zero_point: Any) -> np.ndarray:
    scale, zero_point = np.asarray(scale, np.float32), np.asarray(zero_point, np.float32)
    columns = [each.reshape(-1, 1) if each.size > 1 else each for each in (scale, zero_point)]
    result: np.ndarray = (integers.astype(np.float32) - columns[1]) * columns[0]
    return result


@pytest.mark.parametrize(
    ("integers", "scale", "zero_point"),
    [
        (SIGNED, np.float32(0.5), None),
        (SIGNED, np.array([0.5], np.float32), np.int8(-7)),
        (UNSIGNED, np.float32(0.25), np.uint8(113)),
        (UNSIGNED, np.float32(0.25), None),
        (UNSIGNED, SCALES, np.array([0, 255, 128, 1, 2, 3], np.uint8)),
        (SIGNED, SCALES, np.int8(3)),
        (UNSIGNED, np.float32(0.5), np.array([0, 255, 128, 1, 2, 3], np.uint8)),
    ],
    ids=["signed", "with a zero point", "unsigned", "unsigned from 0", "by row", "one zero point", "one scale"],
)
def test_they_stand_for_what_the_formula_says(integers: np.ndarray, scale: Any, zero_point: Any) -> None:
    made = quantized_tensor(integers, np.asarray(scale), None if zero_point is None else np.asarray(zero_point))
    assert made.integers.dtype == np.int8 and made.shape == integers.shape
    np.testing.assert_array_equal(made.dequantize(), by_hand(integers, scale, 0 if zero_point is None else zero_point))
    assert (made.zero_point is None) == (zero_point is None and integers.dtype == np.int8)


def test_a_zero_point_of_128_is_none() -> None:
    assert quantized_tensor(UNSIGNED, np.asarray(SCALES), np.asarray(np.uint8(128))).zero_point is None


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((6, 8), linear), ((6, 8), same), ((6, 8), channels_last(4)), ((6, 8, 3), conv1d), ((6, 8, 1), pointwise)],
    ids=["linear", "same", "after a front end", "over time", "pointwise"],
)
@pytest.mark.parametrize("scale", [np.float32(0.5), SCALES], ids=["one scale", "by row"])
def test_layouts_move_scales_too(shape: tuple[int, ...], layout: Any, scale: Any) -> None:
    integers = GENERATOR.integers(0, 256, shape).astype(np.uint8)
    made = quantized_tensor(integers, np.asarray(scale), np.asarray(np.uint8(100)))
    moved = made.laid_out(layout)
    np.testing.assert_array_equal(moved.dequantize(), layout(made.dequantize()))
    assert moved.scale.size == np.size(scale) and moved.scale.ndim == moved.integers.ndim


def test_rows_keep_their_scales() -> None:
    made = quantized_tensor(UNSIGNED, SCALES, np.arange(6, dtype=np.uint8))
    np.testing.assert_array_equal(made.entries(2, 4).dequantize(), made.dequantize()[2:4])
    whole = QuantizedTensor(SIGNED, np.full((1, 1), 0.5, np.float32), None)
    np.testing.assert_array_equal(whole.entries(0, 3).dequantize(), whole.dequantize()[:3])


def test_scales_that_would_run_along_an_inner_axis_are_refused() -> None:
    made = quantized_tensor(GENERATOR.integers(-9, 9, (6, 8, 2)).astype(np.int8), SCALES, None)
    with pytest.raises(ValueError, match="outer axes"):
        made.laid_out(lambda x: x.transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (np.float32(0), None, "positive number"),
        (np.float32("nan"), None, "positive number"),
        (np.float32("inf"), None, "positive number"),
        (np.float32(-1), None, "positive number"),
        (np.array([1, 1, 0, 1, 1, 1], np.float32), None, "positive number"),
        (np.int32(1), None, "positive number"),
        (np.ones(8, np.float32), None, r"scale of shape \(8,\) does not fit"),
        (np.ones((6, 1), np.float32), None, r"scale of shape \(6, 1\) does not fit"),
        (np.ones(0, np.float32), None, r"scale of shape \(0,\) does not fit"),
        (np.float32(1), np.uint8(0), "zero point is uint8, its integers int8"),
        (np.float32(1), np.zeros(5, np.int8), r"zero point of shape \(5,\) does not fit"),
    ],
)
def test_what_cannot_be_is_refused(scale: Any, zero_point: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantized_tensor(SIGNED, np.asarray(scale), None if zero_point is None else np.asarray(zero_point))


def test_integers_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="int16, not of 8 bits"):
        quantized_tensor(SIGNED.astype(np.int16), np.asarray(np.float32(1)), None)
