"""Weights beside a model: read where they may lie, refused where a model leads astray."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jaxasr.convert.formats.onnx.files import read_onnx
from jaxasr.errors import CheckpointError
from onnx_writer import external, graph, model

WEIGHTS = np.arange(2000, dtype="<f4").reshape(40, 50)


def write(folder: Path, **entries: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model(graph(initializers=[external("w", WEIGHTS, **entries)])))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_onnx(path).initializers["w"].array()
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "'w'" in message
    return message


def test_weights_beside_the_model_and_below_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for location, offset in (("model.data", 0), ("sub/model.data", 5000), ("model.data", 4096)):
        (tmp_path / location).write_bytes(b"x" * offset + WEIGHTS.tobytes() + b"tail")
        path = write(tmp_path, location=location, offset=str(offset), length=str(WEIGHTS.nbytes), checksum="ignored")
        array = read_onnx(path).initializers["w"].array()
        np.testing.assert_array_equal(array, WEIGHTS)
        assert not array.flags.owndata  # mapped, not read


def test_offset_and_length_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    np.testing.assert_array_equal(read_onnx(write(tmp_path, location="w.bin")).initializers["w"].array(), WEIGHTS)


def test_a_hub_cache_links_to_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--model"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_bytes(WEIGHTS.tobytes())
    real = write(blobs, location="model.data")
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to(os.path.relpath(real, snapshot))
    (snapshot / "model.data").symlink_to("../../blobs/abc")
    np.testing.assert_array_equal(read_onnx(snapshot / "model.onnx").initializers["w"].array(), WEIGHTS)

    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHTS.tobytes())
    (blobs / "linked").symlink_to(secret)
    for target in ("../../blobs/linked", "../../../secret"):
        (snapshot / "model.data").unlink()
        (snapshot / "model.data").symlink_to(target)
        assert "is a link" in refusal(snapshot / "model.onnx")


def test_a_linked_blob_folder_is_no_hub_cache(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "abc").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/blobs").symlink_to(outside)
    path = write(tmp_path / "repository/snapshots/main", location="model.data")
    (path.parent / "model.data").symlink_to("../../blobs/abc")
    assert "is a link" in refusal(path)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "../../etc/passwd",
        "../secret",
        "sub/../../secret",
        "./secret",
        "/etc/passwd",
        "//etc/passwd",
        "sub//secret",
        "sub\\..\\..\\secret",
        "C:\\secret",
        "secret\0.data",
        "..",
        "a/",
    ],
)
def test_paths_that_climb_or_deceive(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/secret").write_bytes(WEIGHTS.tobytes())
    assert "no plain path" in refusal(write(tmp_path / "model", location=location))


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(WEIGHTS.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "file").symlink_to("../outside/secret")
    (folder / "folder").symlink_to("../outside")
    (folder / "real").write_bytes(WEIGHTS.tobytes())
    (folder / "inside").symlink_to("real")
    for location in ("file", "folder/secret", "inside"):
        assert "is a link" in refusal(write(folder, location=location))
    (folder / "loop").symlink_to("loop")
    assert "needs 'loop'" in refusal(write(folder, location="loop"))


def test_a_hard_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "model").mkdir()
    os.link(tmp_path / "secret", tmp_path / "model/data")
    assert "hard links" in refusal(write(tmp_path / "model", location="data"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "not a regular file" in refusal(write(tmp_path, location="pipe"))
    assert "cannot be read" in refusal(write(tmp_path, location="folder"))
    assert "No such file" in refusal(write(tmp_path, location="absent"))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "-8"}, "offset '-8'"),
        ({"offset": "1e3"}, "offset '1e3'"),
        ({"offset": "9" * 30}, "offset '999"),
        ({"offset": "٣"}, "offset"),
        ({"length": "-1"}, "length '-1'"),
        ({"length": "16"}, "has 16 bytes, but its shape needs 8000"),
        ({"offset": "8"}, "ends at 8008, but data has 8000 bytes"),
        ({"offset": "9" * 18}, "but data has 8000 bytes"),
    ],
)
def test_offsets_and_lengths_that_leave_the_file(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    (tmp_path / "data").write_bytes(WEIGHTS.tobytes())
    assert reason in refusal(write(tmp_path, location="data", **entries))
