"""Files are opened without waiting, mapped without being read, and their pages come back after they were given up."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jaxasr.convert.formats.mapped import map_whole, regular_file, release
from jaxasr.errors import CheckpointError


def test_released_pages_come_back(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    numbers = np.arange(1 << 16, dtype="<f4")
    path.write_bytes(numbers.tobytes())
    with regular_file(path) as file:
        mapped = map_whole(file)
    view = np.frombuffer(memoryview(mapped)[4:], "<f4").reshape(-1, 5)[:, 1:]
    assert not view.flags.writeable
    release(view)
    np.testing.assert_array_equal(view[-1], numbers[-4:])
    release(numbers)  # of no file: nothing happens
    assert numbers[-1] == (1 << 16) - 1


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, saying in ((tmp_path, "name the checkpoint itself"), (pipe, "name the checkpoint itself"),
                         (tmp_path / "absent", "No such file")):  # fmt: skip
        with pytest.raises(CheckpointError, match=saying) as error, regular_file(path):
            pytest.fail("it was opened")
        assert str(error.value).startswith(f"{path}: ")


def test_errors_while_the_file_is_open_keep_their_kind(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(KeyError), regular_file(tmp_path / "file"):
        raise KeyError
