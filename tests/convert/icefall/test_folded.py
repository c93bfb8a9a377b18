"""Folded tables turned back into weights: positions, fits and sums, against numpy and the goldens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxasr.convert.formats.onnx.files import read_onnx
from jaxasr.convert.icefall.folded import is_position_table, relative_positions, unfold_chunk_scale, unfold_positions


def test_positions_equal_the_tables_of_the_exports(shared: Path) -> None:
    """Every float32 constant of 3999 rows in an encoder is icefall's own table."""
    for name in ("zipformer-tiny", "zipformer-ja-tiny", "zipformer-streaming-tiny"):
        (file,) = (path for path in (shared / "golden" / name).glob("encoder*.onnx") if "int8" not in path.name)
        tables = [t.array() for t in read_onnx(file).constants.values() if t.shape[:1] == (3999,)]
        assert tables
        for table in tables:
            expected = relative_positions(np.arange(-1999, 2000), table.shape[1])
            # float32 in the export: angles up to pos_dim · π / 4 are rounded before the sine
            np.testing.assert_allclose(table, expected, atol=1e-5)
            assert is_position_table(table) and is_position_table(table[1900:2100])
            assert not is_position_table(table[:, ::-1]) and not is_position_table(table[::-1])
            assert not is_position_table(table * 1.01) and not is_position_table(table[:1000])


def test_positions_by_hand() -> None:
    x, dim = -3.0, 4
    compressed = -2 * (np.log(3 + 2) - np.log(2))
    angle = np.arctan(2 * np.pi * compressed / dim)
    expected = [np.cos(angle), np.sin(angle), np.cos(2 * angle), 1.0]
    np.testing.assert_allclose(relative_positions(np.array([x]), dim), [expected])


@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (2, 8), (32, 128)])
def test_fitted_matrices_give_the_products(chunk: int, left: int) -> None:
    heads, width, pos_dim = 4, 3, 48
    generator = np.random.default_rng(chunk)
    weight = generator.normal(size=(heads * width, pos_dim)).astype(np.float32)
    positions = relative_positions(np.arange(-(left + chunk - 1), chunk), pos_dim)  # (N, pos_dim)
    products = (positions @ weight.T).reshape(-1, 1, heads, width).transpose(2, 1, 3, 0).astype(np.float32)
    fitted, miss = unfold_positions(products, chunk, pos_dim)
    assert fitted.shape == weight.shape and miss < 1e-4
    np.testing.assert_allclose(positions @ fitted.T, positions @ weight.T, atol=2e-4)


def test_another_shift_or_width_does_not_fit() -> None:
    products = relative_positions(np.arange(-79, 16), 48).T.reshape(4, 1, 12, 95)
    assert unfold_positions(products, 16, 48)[1] < 1e-4
    assert unfold_positions(products, 8, 48)[1] > 1e-2
    assert unfold_positions(products, 16, 24)[1] > 1e-2


def chunk_scale(edges: np.ndarray, chunk: int) -> np.ndarray:
    """_get_chunk_scale of icefall's scaling.py, written out."""
    left, right = edges
    channels, kernel = left.shape
    if chunk < kernel:
        return 1 + left[:, :chunk] + right[:, -chunk:]
    zeros = np.zeros((channels, chunk - kernel), np.float32)
    return 1 + np.concatenate([left, zeros], 1) + np.concatenate([zeros, right], 1)


@pytest.mark.parametrize("chunk", [2, 8, 15, 16, 20, 29, 30, 31, 64])
def test_unfolded_edges_give_the_sum(chunk: int) -> None:
    edges = np.random.default_rng(chunk).normal(size=(2, 5, 15)).astype(np.float32)
    total = chunk_scale(edges, chunk)
    unfolded = unfold_chunk_scale(total, 15)
    assert unfolded.shape == edges.shape
    np.testing.assert_allclose(chunk_scale(unfolded, chunk), total, rtol=1e-6, atol=1e-6)
