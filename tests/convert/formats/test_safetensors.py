"""Safetensors files and their indexes: read as they are meant, and refused where they lie."""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxasr.convert.formats import safetensors
from jaxasr.convert.formats.safetensors import HEADER_LIMIT, read_safetensors, read_sharded
from jaxasr.errors import CheckpointError

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
INDEX = "model.safetensors.index.json"


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file of this header, as bytes or to be written as JSON, which claims to have `length` bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_what_the_package_writes_is_read_as_windows_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    written = {
        "bfloat16": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "float16": rng.standard_normal((2, 2)).astype(np.float16),
        "float32": rng.standard_normal(7).astype(np.float32),
        "int64": np.array(1234),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_file(written, tmp_path / "model.safetensors")
    read = read_safetensors(tmp_path / "model.safetensors")
    assert read.keys() == written.keys()
    for name, array in written.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert not array.size or isinstance(read[name].base, mmap.mmap)


def test_tensors_may_begin_anywhere(tmp_path: Path) -> None:
    header = {"b": {"dtype": "BF16", "shape": [1], "data_offsets": [1, 3]}, "a": {**ONE, "data_offsets": [3, 11]}}
    values = b"\1" + np.array([1.5], ml_dtypes.bfloat16).tobytes() + np.array([3, 4], np.float32).tobytes()
    path = write(tmp_path / "x", {"c": {"dtype": "BOOL", "shape": [], "data_offsets": [0, 1]}, **header}, values)
    assert {name: array.tolist() for name, array in read_safetensors(path).items()} == {
        "c": True,
        "b": [1.5],
        "a": [3, 4],
    }


REFUSED: dict[str, tuple[Any, bytes, str]] = {
    "a hole": ({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, bytes(20), "does not fit it .*offset"),
    "an overlap": ({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12), "does not fit it .*offset"),
    "bytes beyond": ({"a": ONE}, bytes(9), "does not fit it .*not fully covered"),
    "bytes that lack": ({"a": ONE}, bytes(7), "does not fit it"),
    "a size that lies": ({"a": {**ONE, "shape": [3]}}, bytes(8), "does not fit it"),
    "a product that overflows": ({"a": {**ONE, "shape": [1 << 40, 1 << 40]}}, bytes(8), "does not fit it"),
    "a negative size": ({"a": {**ONE, "shape": [-2]}}, bytes(8), "does not fit it"),
    "an unknown type": ({"a": {**ONE, "dtype": "Q9"}}, bytes(8), "does not fit it"),
    "a type of few bits": ({"a": {**ONE, "dtype": "F8_E4M3"}, "b": ONE}, bytes(8), "does not fit it|F8_E4M3"),
    "eight bits": (
        {"a": {**ONE, "dtype": "F8_E4M3", "shape": [8]}},
        bytes(8),
        "'a' has the type F8_E4M3; known are F64",
    ),
    "many axes": ({"a": {**ONE, "shape": [1] * 40 + [2]}}, bytes(8), "'a' has 41 axes"),
    "a tensor twice": (b'{"a":%s,"a":%s}' % ((json.dumps(ONE).encode(),) * 2), bytes(8), "key 'a' stands there twice"),
    "a field twice": (
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
        "key 'dtype' stands there twice",
    ),
    "no JSON": (b'{"a": ', b"", "is no valid JSON"),
    "no text": (b'{"\xff": 1}', b"", "is no valid JSON"),
    "depth": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"", "is no valid JSON"),
    "a list": (b"[]", b"", "is no JSON object"),
    "a name that acts": (
        {"\x1b[2J": {**ONE, "dtype": "F8_E4M3", "shape": [8]}},
        bytes(8),
        r"'\\\\?x1b\[2J' has the type F8_E4M3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    header, data, said = REFUSED[case]
    with pytest.raises(CheckpointError, match=said) as refused:
        read_safetensors(write(tmp_path / "model.safetensors", header, data))
    assert str(refused.value).startswith(str(tmp_path / "model.safetensors")) and "\n" not in str(refused.value)


def test_a_header_of_many_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_000) + b'{"')
    with open(path, "r+b") as file:
        file.truncate(100_000_100)  # a hole of the file system
    with pytest.raises(CheckpointError, match=f"a header of 100,000,000 bytes, more than {HEADER_LIMIT:,}: refused"):
        read_safetensors(path)
    for length in (0, 1, 1 << 40, (1 << 64) - 1):
        with pytest.raises(CheckpointError, match="is no safetensors file, or a part of one"):
            read_safetensors(write(path, {"a": ONE}, bytes(8), length))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_safetensors(path)


def test_no_cut_and_no_flipped_byte_of_the_header_gets_through(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.float16)}, path)
    whole = path.read_bytes()
    data = len(whole) - 20
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read_safetensors(path)
    for place in range(data):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        try:
            read = read_safetensors(path)
        except CheckpointError:
            continue
        assert sum(array.nbytes for array in read.values()) == 20  # another name, or another type of the same width


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards and their index, of which this is the path."""
    save_file({"a": np.arange(3, dtype=np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.ones(2, np.float16)}, tmp_path / "model-00002-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": places}))
    return tmp_path / INDEX


def placed(index: Path, **changes: Any) -> Path:
    """The index with other places."""
    content = json.loads(index.read_text())
    content["weight_map"] |= changes
    index.write_text(json.dumps(content))
    return index


def test_shards_are_read_by_their_index(shards: Path) -> None:
    tensors, files = read_sharded(shards)
    assert {name: array.tolist() for name, array in tensors.items()} == {"a": [0, 1, 2], "b": [1, 1]}
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b.safetensors", "C:x.safetensors", "x.bin"],
)
def test_a_shard_outside_the_folder_is_refused(shards: Path, name: str) -> None:
    save_file({"c": np.zeros(1, np.float32)}, shards.parent.parent / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"places tensors in '.*', no file beside it: refused"):
        read_sharded(placed(shards, c=name))


def test_a_link_out_of_the_folder_is_refused_and_a_hubs_cache_is_not(shards: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shard = shards.with_name("model-00002-of-00002.safetensors")
    shard.rename(elsewhere / "blob")
    shard.symlink_to(elsewhere / "blob")
    with pytest.raises(CheckpointError, match="is a link out of its folder: refused; copy the file there"):
        read_sharded(shards)
    for file in (shards, shards.with_name("model-00001-of-00002.safetensors")):
        file.rename(elsewhere / file.name)
        file.symlink_to(elsewhere / file.name)
    assert read_sharded(shards)[0].keys() == {"a", "b"}


def test_an_index_and_its_shards_that_contradict_each_other_are_refused(shards: Path) -> None:
    good = shards.read_text()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for changes, said in (
        ({"c": second}, "places c in files that do not hold them"),
        ({"c": "other.safetensors"}, r"needs 'other.safetensors' beside it \(No such file"),
        ({"b": first}, "places b in files that do not hold them"),
        ({"a": second}, "holds b, which|places a in files"),
        ({"a": 3}, "has no weight_map from tensors to files"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read_sharded(placed(shards, **changes))
        shards.write_text(good)
    save_file({"a": np.zeros(3, np.float32), "b": np.ones(2, np.float16)}, shards.with_name(second))
    with pytest.raises(CheckpointError, match=f"{second}: holds a, which {INDEX} places elsewhere or nowhere"):
        read_sharded(shards)
    shards.write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    with pytest.raises(CheckpointError, match="key 'a' stands there twice"):
        read_sharded(shards)


def test_every_known_type_is_one_of_numpy() -> None:
    assert {np.dtype(kind).itemsize for kind in safetensors.TYPES.values()} == {1, 2, 4, 8}
