"""Archives that NeMo wrote, in every form, and everything that it would not have written."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxasr.convert.nemo import archive
from jaxasr.convert.nemo.archive import read_archive
from jaxasr.errors import CheckpointError

from .conftest import citrinet_tensors, member

Writer = Callable[..., Path]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_it_is_read_plain_or_compressed_and_with_names_of_both_kinds(
    write_nemo: Writer, nothing_runs: Callable[[], AbstractContextManager[None]], mode: str, prefix: str
) -> None:
    path = write_nemo(mode=mode, prefix=prefix, members=[member(f"{prefix}abc_tokenizer.model", b"pieces")])
    before = sorted(path.parent.iterdir())
    if mode == "w":  # a compressed one is decompressed into a file without a name
        with nothing_runs():
            read = read_archive(path, [])
    else:
        read = read_archive(path, [])
    assert sorted(path.parent.iterdir()) == before
    assert read.texts.keys() == {"model_config.yaml", "abc_tokenizer.model"}
    assert read.texts["abc_tokenizer.model"] == b"pieces"
    assert read.tensors.keys() == citrinet_tensors().keys()
    for name, tensor in citrinet_tensors().items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
        assert not read.tensors[name].flags.writeable


HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "a path above": ([member("../outside", b"x")], "a member named '../outside'"),
    "a path above, inside": ([member("./a/../../b", b"x")], "a member named './a/../../b'"),
    "an absolute path": ([member("/etc/passwd", b"x")], "a member named '/etc/passwd'"),
    "a path of Windows": ([member("C:\\x", b"x")], "a member named"),
    "a line break": ([member("a\nb", b"x")], "a member named"),
    "a long name": ([member("a" * 300, b"x")], "a member named 'aaa"),
    "a symbolic link": ([member("./a", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "a link or no plain file"),
    "a hard link": ([member("./a", type=tarfile.LNKTYPE, linkname="model_config.yaml")], "a link or no plain file"),
    "a device": ([member("./a", type=tarfile.CHRTYPE)], "a link or no plain file"),
    "a pipe": ([member("./a", type=tarfile.FIFOTYPE)], "a link or no plain file"),
    "a sparse file": ([member("./a", type=tarfile.GNUTYPE_SPARSE)], "no"),
    "two of one name": ([member("./a", b"x"), member("a", b"y")], "two members named 'a'"),
    "two configurations": ([member("model_config.yaml", b"x: 1")], "two members named 'model_config.yaml'"),
    "two files of weights": ([member("./model_weights.ckpt", b"x")], "two members named 'model_weights.ckpt'"),
    "a folder with a name of a file": ([member("./model_config.yaml", type=tarfile.DIRTYPE)], "two members named"),
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_save_to_does_not_write_is_refused_in_one_line(
    write_nemo: Writer, tmp_path: Path, mode: str, name: str
) -> None:
    members, said = HOSTILE[name]
    path = write_nemo(mode=mode, members=members)
    before = {each: each.lstat().st_mtime_ns for each in tmp_path.parent.rglob("*")}
    with pytest.raises(CheckpointError) as refusal:
        read_archive(path, [])
    message = str(refusal.value)
    assert message.startswith(str(path)) and said in message and "\n" not in message
    assert {each: each.lstat().st_mtime_ns for each in tmp_path.parent.rglob("*")} == before


def test_members_that_are_too_large_are_refused(write_nemo: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "TEXT_LIMIT", 5000)
    with pytest.raises(CheckpointError, match="'big' of 5,001 bytes"):
        read_archive(write_nemo(members=[member("big", b"x" * 5001)]), [])
    monkeypatch.setattr(archive, "TEXTS_LIMIT", 9000)
    with pytest.raises(CheckpointError, match="more than 9,000 bytes beside the weights"):
        read_archive(write_nemo(members=[member(f"{number}", b"x" * 4000) for number in range(3)]), [])
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 4)
    with pytest.raises(CheckpointError, match="more than 4 members"):
        read_archive(write_nemo(members=[member(f"{number}") for number in range(3)]), [])


def test_a_small_file_cannot_become_a_large_one(write_nemo: Writer) -> None:
    """100 MB of zeros in 100 kB: nothing of them is decompressed."""
    path = write_nemo(mode="w:gz", members=[member("zeros", bytes(100_000_000))])
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="100,000,000 bytes in a file of"):
        read_archive(path, [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_member_that_claims_more_than_the_file_holds_is_refused(write_nemo: Writer) -> None:
    path = write_nemo()
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo("claims")
    info.size = 1 << 40
    data[-10240:] = info.tobuf(tarfile.GNU_FORMAT) + bytes(10240 - 512)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="refused|damaged"):
        read_archive(path, [])


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [1 << 30, -1024])
def test_headers_that_are_read_whole_are_bounded(tmp_path: Path, kind: bytes, size: int) -> None:
    """tarfile reads long names and extended headers into memory, and steps back for a negative size."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, size
    (tmp_path / "model.nemo").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    with pytest.raises(CheckpointError, match="a header of"):
        read_archive(tmp_path / "model.nemo", [])


def test_a_chain_of_headers_ends(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    block = info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")
    (tmp_path / "model.nemo").write_bytes(block * 5000)
    with pytest.raises(CheckpointError, match="chain of headers|damaged"):
        read_archive(tmp_path / "model.nemo", [])


def test_what_is_no_archive_says_so(write_nemo: Writer, tmp_path: Path) -> None:
    for content in (b"", b"x" * 2000, b"\x1f\x8b" + b"x" * 100, b"PK\x03\x04" + bytes(600), bytes(10240)):
        (tmp_path / "other.nemo").write_bytes(content)
        with pytest.raises(CheckpointError, match="no tar archive|holds no model_config.yaml"):
            read_archive(tmp_path / "other.nemo", [])
    os.mkfifo(tmp_path / "pipe.nemo")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_archive(tmp_path / "pipe.nemo", [])
    with tarfile.open(tmp_path / "half.nemo", "w") as half:
        half.addfile(*_file("model_config.yaml", b"x: 1"))
    with pytest.raises(CheckpointError, match=r"half.nemo: holds no model_weights.ckpt: it is no archive"):
        read_archive(tmp_path / "half.nemo", [])


def test_weights_that_name_code_are_refused(tmp_path: Path, write_torch: Callable[..., Path]) -> None:
    weights = write_torch(b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R").read_bytes()
    with tarfile.open(tmp_path / "model.nemo", "w") as written:
        written.addfile(*_file("model_config.yaml", b"x: 1"))
        written.addfile(*_file("model_weights.ckpt", weights))
    with pytest.raises(CheckpointError, match=r"model.nemo: model_weights.ckpt: .*refused, nothing was executed"):
        read_archive(tmp_path / "model.nemo", [])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_damage_is_an_error_of_ours_whatever_it_is(write_nemo: Writer, mode: str) -> None:
    path = write_nemo(mode=mode)
    whole = path.read_bytes()
    generator = random.Random(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data[: generator.randrange(len(data))] if generator.random() < 0.5 else data)
        try:
            read_archive(path, [])
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 30


def _file(name: str, data: bytes) -> tuple[tarfile.TarInfo, Any]:
    info, data = member(name, data)
    return info, io.BytesIO(data)
