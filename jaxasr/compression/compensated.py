"""Rounding that makes up for its own errors: integers of a matrix by what the matrix is multiplied by.

For inputs x (n,), a rounded matrix V should give what the float one W (n, m) gives. The mean square of x V - x W over
recordings is the sum over the outputs of (V - W)^t H (V - W), where H is the mean of x^t x (n, n). So weights whose
inputs are correlated can make up for each other's errors.

`compensate` begins with a grid and lowers that sum in steps:

1. The rows of W are rounded one after another, from the largest H_ii on; the error of each, w_i - v_i, is spread over
   those that are still to come: w_j += (v_i - w_i) * U_ij / U_ii, with U the upper Cholesky factor of H^-1 (GPTQ,
   Frantar et al., 2022, arXiv 2210.17323, equations 2 and 3, section 3.3; the order is `act_order` of its code).
2. Each row is rounded once more, the others as they are, to the value of the grid that is nearest to the best real one,
   v_i - (H (V - W))_i / H_ii (coordinate descent: QuantEase, Behdin et al., 2023, arXiv 2309.01885, section 3).
3. Scales and zeros that are best for these integers are the solution of normal equations in H, all blocks of an output
   together, and 1 and 2 begin again on that grid; what does not lower the sum is not kept.

To the diagonal of H a share of its mean is added (GPTQ, section 3.3). All in float64 on the host.
"""

from __future__ import annotations

import dataclasses

import numpy as np

DAMPING = 0.01
SWEEPS, ROUNDS = 4, 2  # of step 2, and of step 3
AT_ONCE = 32  # rows of which far ones hear together
OUTPUTS = 128  # whose normal equations are solved at once
RIDGE = 1e-9  # of their mean diagonal: integers of a cell that are all alike leave its zero open


@dataclasses.dataclass(frozen=True)
class RowGrid:
    """Where the integers of a matrix lie: `scale` and `zero` (cells, m or 1), and the cell (n,) of each row.

    `zero` is None on symmetric grids. `least`, `largest`: the integers' limits.
    """

    scale: np.ndarray
    zero: np.ndarray | None
    cell: np.ndarray
    least: int
    largest: int

    def integers(self, rows: np.ndarray | int, values: np.ndarray) -> np.ndarray:
        """The integers nearest to values (..., m) of the rows of these numbers."""
        nearest: np.ndarray = np.rint(values / self.scale[self.cell[rows]] + self._zero(rows))
        return nearest.clip(self.least, self.largest)

    def values(self, rows: np.ndarray | int, integers: np.ndarray) -> np.ndarray:
        """What integers (..., m) of the rows of these numbers stand for."""
        values: np.ndarray = (integers - self._zero(rows)) * self.scale[self.cell[rows]]
        return values

    def _zero(self, rows: np.ndarray | int) -> np.ndarray:
        return np.zeros(()) if self.zero is None else np.asarray(self.zero[self.cell[rows]])


def compensate(gram: np.ndarray, weights: np.ndarray, grid: RowGrid, dtype: np.dtype) -> tuple[np.ndarray, RowGrid]:
    """Integers (n, m) of weights (n, m) and their grid, of which scales and zeros have values of `dtype`.

    `gram`: sums of x^t x (n, n), H but for a factor; inputs that are never heard count as much as the mean.
    """
    gram = gram.astype(np.float64)
    mean = np.diag(gram).mean() or 1.0
    gram[np.diag_indices_from(gram)] += np.where(np.diag(gram) <= 0, mean, DAMPING * mean)
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    best = _settled(gram, weights, grid, _spread(order, factor, weights, grid))
    least = _error(gram, weights, grid, best)
    for _ in range(ROUNDS if grid.scale.shape[-1] == weights.shape[-1] else 0):  # one grid for all outputs stays
        refitted = _refitted(gram, weights, grid, best, dtype)
        tried = [_settled(gram, weights, refitted, each) for each in (best, _spread(order, factor, weights, refitted))]
        errors = [_error(gram, weights, refitted, each) for each in tried]
        if min(errors) >= least:
            break
        least, best, grid = min(errors), tried[int(np.argmin(errors))], refitted
    return best, grid


def _error(gram: np.ndarray, weights: np.ndarray, grid: RowGrid, integers: np.ndarray) -> float:
    off = grid.values(np.arange(len(weights)), integers) - weights
    return float(np.vdot(off, gram @ off))


def _spread(order: np.ndarray, factor: np.ndarray, weights: np.ndarray, grid: RowGrid) -> np.ndarray:
    """Step 1, in this order of the rows, which is that of the rows and columns of U, the `factor`."""
    left = weights[order]
    integers = np.empty_like(weights)
    for start in range(0, len(order), AT_ONCE):
        stop = min(start + AT_ONCE, len(order))
        errors = np.empty((stop - start, weights.shape[1]))
        for place in range(start, stop):
            row = order[place]
            integers[row] = grid.integers(row, left[place])
            errors[place - start] = (left[place] - grid.values(row, integers[row])) / factor[place, place]
            left[place + 1 : stop] -= factor[place, place + 1 : stop, None] * errors[place - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return integers


def _settled(gram: np.ndarray, weights: np.ndarray, grid: RowGrid, integers: np.ndarray) -> np.ndarray:
    """Step 2, until nothing changes."""
    integers = integers.copy()
    values = grid.values(np.arange(len(weights)), integers)
    slope = gram @ (values - weights)
    for _ in range(SWEEPS):
        before = values.copy()
        for start in range(0, len(weights), AT_ONCE):
            block = slice(start, start + AT_ONCE)
            near, moved = slope[block].copy(), np.zeros_like(slope[block])
            for place, row in enumerate(range(start, min(start + AT_ONCE, len(weights)))):
                integers[row] = grid.integers(row, values[row] - near[place] / gram[row, row])
                moved[place] = grid.values(row, integers[row]) - values[row]
                near += gram[block, row, None] * moved[place]
            values[block] += moved
            slope += gram[:, block] @ moved
        if np.array_equal(before, values):
            break
    return integers


def _refitted(gram: np.ndarray, weights: np.ndarray, grid: RowGrid, integers: np.ndarray, dtype: np.dtype) -> RowGrid:
    """Step 3: V is linear in the scale s of a cell, q s, or in s and s z, q s - s z."""
    solved = [
        _normal_solution(gram, weights[:, part], grid, integers[:, part])
        for start in range(0, weights.shape[1], OUTPUTS)
        for part in (slice(start, start + OUTPUTS),)
    ]
    found = np.concatenate(solved, axis=-1)  # (parts, cells, m)
    scale = found[0].astype(dtype).astype(np.float64)
    usable = np.isfinite(scale) & (scale > 0)  # a cell of zeros alone has no scale of its own
    scale = np.where(usable, scale, grid.scale)
    if grid.zero is None:
        return dataclasses.replace(grid, scale=scale)
    zero = (found[1] / scale).astype(dtype).astype(np.float64)
    return dataclasses.replace(grid, scale=scale, zero=np.where(usable & np.isfinite(zero), zero, grid.zero))


def _normal_solution(gram: np.ndarray, weights: np.ndarray, grid: RowGrid, integers: np.ndarray) -> np.ndarray:
    """Integers (n, m) -> the coefficients (1 or 2, cells, m) of least error."""
    cells, outputs = len(grid.scale), weights.shape[1]
    order = np.argsort(grid.cell, kind="stable")
    bounds = np.searchsorted(grid.cell[order], np.arange(cells + 1))
    parts = [integers[order]] if grid.zero is None else [integers[order], np.full_like(integers, -1.0)]
    size = len(parts) * cells
    gram, weights = gram[np.ix_(order, order)], weights[order]
    matrix, right = np.empty((outputs, size, size)), np.empty((outputs, size, 1))
    for number in range(size):
        part, (start, stop) = parts[number // cells], bounds[number % cells :][:2]
        raised = gram[:, start:stop] @ part[start:stop]  # what one cell alone gives, times H
        right[:, number, 0] = np.einsum("nm,nm->m", raised, weights)
        for place, other in enumerate(parts):
            sums = np.add.reduceat(raised * other, bounds[:-1], axis=0)
            matrix[:, place * cells : (place + 1) * cells, number] = sums.T
    weight = np.einsum("mii->m", matrix) / size
    matrix += (RIDGE * weight[:, None, None] + np.finfo(np.float64).tiny) * np.eye(size)
    solved = np.linalg.solve(matrix, right)[..., 0]
    return solved.T.reshape(len(parts), cells, outputs)
