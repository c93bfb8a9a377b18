"""What icefall's exporters and ONNX optimisers fold into tables, turned back into weights.

Both tables hold for one chunk length and one left context only; the weights found here reproduce them there.
"""

from __future__ import annotations

import numpy as np

POS_DIMS = (48, 24, 32, 64, 96, 128, 192)  # those to try where a table hides it; all of icefall's recipes have 48


def relative_positions(offsets: np.ndarray, pos_dim: int) -> np.ndarray:
    """icefall's CompactRelPositionalEncoding (length_factor 1): offsets (N,) = key − query → (N, pos_dim) float64."""
    x = np.asarray(offsets, np.float64)[:, None]
    length = np.sqrt(pos_dim)
    compressed = length * np.sign(x) * (np.log(np.abs(x) + length) - np.log(length))
    angles = np.arctan(2 * np.pi * compressed / pos_dim) * np.arange(1, pos_dim // 2 + 1)
    encoding = np.zeros((len(x), pos_dim))
    encoding[:, 0::2] = np.cos(angles)
    encoding[:, 1::2] = np.sin(angles)
    encoding[:, -1] = 1.0  # for a bias
    return encoding


def is_position_table(table: np.ndarray) -> bool:
    """Whether `table` (N, pos_dim) holds `relative_positions` of neighbouring offsets around 0."""
    if table.ndim != 2 or table.dtype.kind != "f" or not table.size or table.shape[1] % 2:
        return False
    here = np.abs(table - relative_positions(np.zeros(1), table.shape[1])).max(axis=1).argmin()
    expected = relative_positions(np.arange(len(table)) - here, table.shape[1])
    tolerance = 2e-3 if table.dtype == np.float16 else 1e-4  # of values up to 1: sines of angles up to pos_dim · π / 4
    return bool(np.abs(table - expected).max() < tolerance)


def unfold_positions(products: np.ndarray, chunk: int, pos_dim: int) -> tuple[np.ndarray, float]:
    """The least-squares `linear_pos.weight` (heads · d, pos_dim) float32 that gives `products`, and its largest miss.

    `products` (heads, 1, d, N) are those of offsets −(N − chunk) … chunk − 1 (`chunk` in the stack's own frames), with
    N = left context + 2 · chunk − 1. The positions have less than full rank there (34 of 48 for 95), so the trained
    matrix is not to be had, but this one does the same for each of these offsets.
    """
    heads, _, width, count = products.shape
    rows = products.astype(np.float64).transpose(3, 1, 0, 2).reshape(count, heads * width)
    encoding = relative_positions(np.arange(chunk - count, chunk), pos_dim)
    weight = np.linalg.pinv(encoding, rcond=1e-5) @ rows
    miss = float(np.abs(encoding @ weight - rows).max())
    return np.ascontiguousarray(weight.T, dtype=np.float32), miss


def unfold_chunk_scale(total: np.ndarray, kernel: int) -> np.ndarray:
    """A `chunkwise_conv_scale` (2, C, kernel) that gives `total` (C, T) = 1 + left edge + right edge for a chunk of T.

    The left edge takes the first `kernel` frames, the right edge what lies after them: how the trained sum was split
    between the two is lost, and at most 2 · kernel frames of a chunk are scaled at all.
    """
    channels, frames = total.shape
    edges = np.zeros((2, channels, kernel), np.float32)
    covered = min(frames, kernel)
    edges[0, :, :covered] = total[:, :covered] - 1
    remaining = min(frames - covered, kernel)
    if remaining:
        edges[1, :, kernel - remaining :] = total[:, frames - remaining :] - 1
    return edges
