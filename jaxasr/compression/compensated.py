"""Rounding that makes up for its own errors: integers of a matrix by what the matrix is multiplied by.

A rounded matrix V should give what the float one W gave, y = x W for inputs x (n,) and outputs (m,). After rounded
layers its inputs are others, u. The mean square of u V - x W over recordings is, but for a constant, the sum over the
outputs of (V - T)^t H (V - T), where H is the mean of u^t u (n, n), C that of u^t x, and the target T = H^-1 C W (least
squares; GPTAQ, Li et al., 2025, arXiv 2504.02692, aims at x W too). So inputs that are correlated make up for each
other's errors, and a matrix for those of the layers before it. To the diagonals of H and C a share of the mean one of H
is added (GPTQ, section 3.3), which draws T to W.

`compensate` begins with a grid and lowers that sum in steps:

1. The rows of T are rounded one after another, from the largest H_ii on; the error of each, t_i - v_i, is spread over
   those that are still to come: t_j += (v_i - t_i) * U_ij / U_ii, with U the upper Cholesky factor of H^-1 (GPTQ,
   Frantar et al., 2022, arXiv 2210.17323, equations 2 and 3, section 3.3; the order is `act_order` of its code).
2. Each row is rounded once more, the others as they are, to the value of the grid that is nearest to the best real one,
   v_i - (H (V - T))_i / H_ii (coordinate descent: QuantEase, Behdin et al., 2023, arXiv 2309.01885, section 3).
3. Scales and zeros that are best for these integers are the solution of normal equations in H, all blocks of an output
   together, and 1 and 2 begin again on that grid; what does not lower the sum is not kept.

All in float64 on the host.
"""

from __future__ import annotations

import dataclasses

import numpy as np

DAMPING = 0.01
SWEEPS, ROUNDS = 4, 3  # of step 2, and of step 3
AT_ONCE = 32  # rows whose errors are spread together over those far from them
OUTPUTS = 128  # whose normal equations are solved at once
RIDGE = 1e-9  # of their mean diagonal: integers of a cell that are all alike leave its zero open


@dataclasses.dataclass
class Moments:
    """Sums over the rows that a matrix with n inputs was multiplied by: `gram` of u^t u, `cross` of u^t x, (n, n)."""

    gram: np.ndarray
    cross: np.ndarray

    @classmethod
    def zeros(cls, inputs: int) -> Moments:
        """Nothing heard yet."""
        return cls(np.zeros((inputs, inputs)), np.zeros((inputs, inputs)))

    def add(self, rounded: np.ndarray, whole: np.ndarray) -> None:
        """Rows (M, n): u, after rounded layers, and x, after float ones."""
        self.gram += rounded.T @ rounded
        self.cross += rounded.T @ whole

    def problem(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H and T for weights (n, m)."""
        gram, cross = self.gram.copy(), self.cross.copy()
        unheard = np.diag(gram) <= 0
        mean = np.diag(gram).mean() or 1.0
        for each in (gram, cross):
            each[np.diag_indices_from(each)] += np.where(unheard, mean, DAMPING * mean)
        return gram, np.linalg.solve(gram, cross @ weights)


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
        return np.clip(np.rint(values / self.scale[self.cell[rows]] + self._zero(rows)), self.least, self.largest)

    def values(self, rows: np.ndarray | int, integers: np.ndarray) -> np.ndarray:
        """What integers (..., m) of the rows of these numbers stand for."""
        values: np.ndarray = (integers - self._zero(rows)) * self.scale[self.cell[rows]]
        return values

    def _zero(self, rows: np.ndarray | int) -> np.ndarray:
        return np.zeros(()) if self.zero is None else np.asarray(self.zero[self.cell[rows]])


def compensate(gram: np.ndarray, target: np.ndarray, grid: RowGrid, dtype: np.dtype) -> tuple[np.ndarray, RowGrid]:
    """H (n, n) and T (n, m) -> integers (n, m) and their grid, of which scales and zeros have values of `dtype`."""
    best = _settled(gram, target, grid, _spread(gram, target, grid))
    least = _error(gram, target, grid, best)
    for _ in range(ROUNDS if grid.scale.shape[-1] == target.shape[-1] else 0):  # one grid for all outputs stays
        refitted = _refitted(gram, target, grid, best, dtype)
        begun = (best, _spread(gram, target, refitted))
        tried = [_settled(gram, target, refitted, each) for each in begun]
        errors = [_error(gram, target, refitted, each) for each in tried]
        if min(errors) >= least:
            break
        least, best, grid = min(errors), tried[int(np.argmin(errors))], refitted
    return best, grid


def _error(gram: np.ndarray, target: np.ndarray, grid: RowGrid, integers: np.ndarray) -> float:
    off = grid.values(np.arange(len(target)), integers) - target
    return float(np.vdot(off, gram @ off))


def _spread(gram: np.ndarray, target: np.ndarray, grid: RowGrid) -> np.ndarray:
    """Step 1."""
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    left = target[order]
    integers = np.empty_like(target)
    for start in range(0, len(order), AT_ONCE):
        stop = min(start + AT_ONCE, len(order))
        errors = np.empty((stop - start, target.shape[1]))
        for place in range(start, stop):
            row = order[place]
            integers[row] = grid.integers(row, left[place])
            errors[place - start] = (left[place] - grid.values(row, integers[row])) / factor[place, place]
            left[place + 1 : stop] -= factor[place, place + 1 : stop, None] * errors[place - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return integers


def _settled(gram: np.ndarray, target: np.ndarray, grid: RowGrid, integers: np.ndarray) -> np.ndarray:
    """Step 2, until nothing changes."""
    integers = integers.copy()
    values = grid.values(np.arange(len(target)), integers)
    slope = gram @ (values - target)
    for _ in range(SWEEPS):
        before = integers.copy()
        for row in range(len(target)):
            integers[row] = grid.integers(row, values[row] - slope[row] / gram[row, row])
            moved = grid.values(row, integers[row]) - values[row]
            if moved.any():
                slope += gram[:, row, None] * moved
                values[row] += moved
        if np.array_equal(before, integers):
            break
    return integers


def _refitted(gram: np.ndarray, target: np.ndarray, grid: RowGrid, integers: np.ndarray, dtype: np.dtype) -> RowGrid:
    """Step 3: V is linear in the scale s of a cell, q s, or in s and s z, q s - s z."""
    solved = [
        _normal_solution(gram, target[:, part], grid, integers[:, part])
        for start in range(0, target.shape[1], OUTPUTS)
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


def _normal_solution(gram: np.ndarray, target: np.ndarray, grid: RowGrid, integers: np.ndarray) -> np.ndarray:
    """Integers (n, m) -> the coefficients (1 or 2, cells, m) of least error."""
    cells, outputs = len(grid.scale), target.shape[1]
    order = np.argsort(grid.cell, kind="stable")
    bounds = np.searchsorted(grid.cell[order], np.arange(cells + 1))
    parts = [integers[order]] if grid.zero is None else [integers[order], np.full_like(integers, -1.0)]
    size = len(parts) * cells
    gram, target = gram[np.ix_(order, order)], target[order]
    matrix, right = np.empty((outputs, size, size)), np.empty((outputs, size, 1))
    for number in range(size):
        part, (start, stop) = parts[number // cells], bounds[number % cells :][:2]
        raised = gram[:, start:stop] @ part[start:stop]  # what one cell alone gives, times H
        right[:, number, 0] = np.einsum("nm,nm->m", raised, target)
        for place, other in enumerate(parts):
            sums = np.add.reduceat(raised * other, bounds[:-1], axis=0)
            matrix[:, place * cells : (place + 1) * cells, number] = sums.T
    weight = np.einsum("mii->m", matrix) / size
    matrix += (RIDGE * weight[:, None, None] + np.finfo(np.float64).tiny) * np.eye(size)
    solved = np.linalg.solve(matrix, right)[..., 0]
    return solved.T.reshape(len(parts), cells, outputs)
