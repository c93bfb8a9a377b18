"""Tensors that a file holds as integers of 8 bits, with the scales and zero points that say what they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """Integers that stand for (integer - zero point) * scale.

    `integers`: int8; what a file holds as uint8 is smaller by 128 here, and so are its zero points. `scale`: float32,
    with as many axes, of length 1 but for one axis where each entry has its own. `zero_point`: int8, in the scale's
    shape; None where all are 0. `multiplied`: as integers, with activations that are quantized too; else dequantized.
    """

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    multiplied: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it stands for."""
        return self.integers.shape

    def dequantize(self) -> np.ndarray:
        """The numbers that it stands for, float32."""
        centred = self.integers.astype(np.float32)
        if self.zero_point is not None:
            centred -= self.zero_point.astype(np.float32)
        centred *= self.scale
        return centred

    def laid_out(self, layout: Callable[[np.ndarray], np.ndarray]) -> QuantizedTensor:
        """The same in another layout, which may move, cut and join axes but changes no number.

        ValueError where entries of different scales would share an axis other than the first or the last.
        """
        integers = layout(self.integers)
        grids = [grid for grid in (self.scale, self.zero_point) if grid is not None]
        moved = [_grid(layout(np.broadcast_to(grid, self.shape)), grid, integers.ndim) for grid in grids]
        return dataclasses.replace(
            self, integers=integers, scale=moved[0], zero_point=moved[1] if len(moved) > 1 else None
        )

    def entries(self, first: int, last: int) -> QuantizedTensor:
        """Those of the first axis from `first` on, before `last`."""

        def cut(grid: np.ndarray) -> np.ndarray:
            return grid if grid.shape[0] == 1 else grid[first:last]

        zero_point = None if self.zero_point is None else cut(self.zero_point)
        return dataclasses.replace(
            self, integers=self.integers[first:last], scale=cut(self.scale), zero_point=zero_point
        )


def _grid(spread: np.ndarray, grid: np.ndarray, axes: int) -> np.ndarray:
    """Scales that were laid out, one for each entry, with the axes along which they are equal cut to one."""
    if grid.size == 1:
        return grid.reshape((1,) * axes)
    for own in (axes - 1, 0):
        cut = spread[tuple(slice(None) if axis == own else slice(1) for axis in range(axes))]
        if np.array_equal(np.broadcast_to(cut, spread.shape), spread):
            return np.ascontiguousarray(cut)
    raise ValueError("scales of a tensor's entries do not run along one of its outer axes")


def quantized_tensor(
    integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int = 0
) -> QuantizedTensor:
    """What a file's arrays stand for: int8 or uint8, a scale and a zero point for all or for each entry of `axis`.

    ValueError says what is wrong: a scale that is no positive number or does not fit, a zero point of another type.
    """
    if integers.dtype not in (np.int8, np.uint8):
        raise ValueError(f"its integers are {integers.dtype}, not of 8 bits")
    scales, zeros = _grids(integers, scale, zero_point, axis)
    stored, below = integers, zeros.astype(np.int16)
    if integers.dtype == np.uint8:
        stored, below = (integers ^ np.uint8(128)).view(np.int8), below - np.int16(128)
    zeros = np.broadcast_to(below, np.broadcast_shapes(below.shape, scales.shape)).astype(np.int8)
    scales = np.broadcast_to(scales, zeros.shape)
    return QuantizedTensor(stored, scales, zeros if zeros.any() else None)


def dequantize(integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int = 0) -> np.ndarray:
    """The numbers that a file's integers of any width stand for, float32. Raises what `quantized_tensor` raises.

    Biases have 32 bits.
    """
    if integers.dtype in (np.int8, np.uint8):
        return quantized_tensor(integers, scale, zero_point, axis).dequantize()
    scales, zeros = _grids(integers, scale, zero_point, axis)
    numbers: np.ndarray = (integers.astype(np.float32) - zeros.astype(np.float32)) * scales
    return numbers


def _grids(
    integers: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scales (float32) and zero points that broadcast against the integers; ValueError where they cannot be theirs."""
    if integers.dtype.kind not in "iu":
        raise ValueError(f"its integers are {integers.dtype}")
    if zero_point is not None and zero_point.dtype != integers.dtype:
        raise ValueError(f"its zero point is {zero_point.dtype}, its integers {integers.dtype}")
    entries = integers.shape[axis] if integers.ndim else 1
    for name, values in (("scale", scale), ("zero point", zero_point)):
        if values is not None and (values.size not in (1, entries) or values.ndim > 1 and values.size > 1):
            raise ValueError(f"its {name} of shape {values.shape} does not fit its shape {integers.shape}")
    if scale.dtype.kind != "f" or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("its scale is not a positive number")
    along = [-1 if place == axis else 1 for place in range(integers.ndim)]

    def spread(values: np.ndarray) -> np.ndarray:
        return values.reshape(along if values.size > 1 else [1] * integers.ndim)

    zeros = np.zeros((1,) * integers.ndim, integers.dtype) if zero_point is None else spread(zero_point)
    return spread(scale).astype(np.float32), zeros
