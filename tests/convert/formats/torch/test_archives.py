"""Zip archives as torch.save writes them, and everything that only looks like one."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxasr.convert.formats.torch import archives
from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.errors import CheckpointError

WEIGHTS = np.arange(40, dtype="<f4")
PICKLED = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x28tQK\x00K\x28\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
)
MEMBERS = {
    "model/data.pkl": PICKLED,
    "model/byteorder": b"little",
    "model/data/0": WEIGHTS.tobytes(),
    "model/version": b"3\n",
    "model/.data/serialization_id": b"0123456789",
}


LAST = "model/.data/serialization_id"


def member(
    name: str | bytes,
    data: bytes,
    offset: int,
    *,
    flags: int = 0x0808,
    method: int = 0,
    checksum: int | None = None,
    size: int | None = None,
    padding: bytes | None = None,
    local_name: bytes | None = None,
    local: tuple[int, int, int] = (0, 0, 0),  # checksum and sizes in the member's own header
    wide: bool = False,  # 64-bit sizes in the descriptor
    at: int | None = None,  # where the directory says that it is
    comment: bytes = b"",
) -> tuple[bytes, bytes]:
    """(the member with its own header and descriptor, its entry in the directory), as torch writes them."""
    raw = name if isinstance(name, bytes) else name.encode()
    checksum = zlib.crc32(data) if checksum is None else checksum
    size = len(data) if size is None else size
    if padding is None:  # data begin at multiples of 64
        fill = -(offset + 34 + len(raw)) % 64
        padding = b"FB" + struct.pack("<H", fill) + b"Z" * fill
    shared = struct.pack("<5H", 0, flags, method, 0, 0)
    own_name = raw if local_name is None else local_name
    header = b"PK\x03\x04" + shared + struct.pack("<3I2H", *local, len(own_name), len(padding)) + own_name + padding
    descriptor = b"PK\x07\x08" + struct.pack("<I2Q" if wide else "<3I", checksum, size, size) if flags & 8 else b""
    entry = b"PK\x01\x02\x00\x00" + shared + struct.pack("<3I", checksum, size, size)
    entry += struct.pack("<5H2I", len(raw), 0, len(comment), 0, 0, 0, offset if at is None else at) + raw + comment
    return header + data + descriptor, entry


def archive(
    members: list[tuple[str | bytes, bytes]] | None = None,
    changes: dict[str, dict[str, Any]] | None = None,
    *,
    wide_end: bool = True,
    directory_gap: bytes = b"",
) -> bytes:
    """A whole archive; `changes` go to `member` by name."""
    body, directory = b"", b""
    for name, data in members or list(MEMBERS.items()):
        whole, entry = member(name, data, len(body), **(changes or {}).get(str(name), {}))
        body, directory = body + whole, directory + entry
    body += directory_gap
    count = len(members or MEMBERS)
    wide = b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 0x031E, 45, 0, 0, count, count, len(directory), len(body))
    wide += b"PK\x06\x07" + struct.pack("<IQI", 0, len(body) + len(directory), 1)
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + (wide if wide_end else b"") + end


def message(path: Path, data: bytes) -> str:
    """The one line of the error that reading `data` ends in."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# What is read


@pytest.mark.parametrize("wide_end", [True, False])
@pytest.mark.parametrize("changes", [{}, {"model/data/0": {"wide": True}}, {"model/version": {"padding": b""}}])
def test_archives_as_torch_writes_them(tmp_path: Path, wide_end: bool, changes: dict[str, Any]) -> None:
    (tmp_path / "model.pt").write_bytes(archive(changes=changes, wide_end=wide_end))
    assert np.array_equal(read_torch(tmp_path / "model.pt")["w"], WEIGHTS)


def test_an_archive_of_more_than_four_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and offsets of 64 bits: a member of 4 GiB of zeros, which take no disk, lies before the weights."""
    path, zeros = tmp_path / "model.pt", (4 << 30) + 64
    name, entries = b"model/data/zeros", []
    sizes = struct.pack("<2H2Q", 1, 16, zeros, zeros)
    shared_fields = struct.pack("<3I2H", 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(sizes))
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04" + bytes(10) + shared_fields + name + sizes)
        file.truncate(file.tell() + zeros)
        file.seek(0, os.SEEK_END)
        entries.append(b"PK\x01\x02" + bytes(12) + shared_fields + bytes(14) + name + sizes)
        for other, data in MEMBERS.items():
            whole, entry = member(other, data, 0, at=0xFFFFFFFF, wide=True)
            extra = struct.pack("<2HQ", 1, 8, file.tell())
            entries.append(entry[:30] + struct.pack("<H", len(extra)) + entry[32:] + extra)
            file.write(whole)
        directory, start, count = b"".join(entries), file.tell(), len(entries)
        file.write(directory + b"PK\x06\x06")
        file.write(struct.pack("<Q2H2I4Q", 44, 0x031E, 45, 0, 0, count, count, len(directory), start))
        file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(directory), 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, len(directory), 0xFFFFFFFF, 0))
    checksum = archives._checksum  # of 4 GiB takes seconds
    monkeypatch.setattr(archives, "_checksum", lambda file, place: 0 if place.size == zeros else checksum(file, place))
    assert np.array_equal(read_torch(path)["w"], WEIGHTS)


def test_archives_without_checksums_are_read_and_said_to_be(tmp_path: Path) -> None:
    """As torch.serialization.set_crc32_options(False) writes them: 0 in every place of a checksum."""
    without = dict.fromkeys(MEMBERS, {"checksum": 0})
    (tmp_path / "model.pt").write_bytes(archive(changes=without))
    notes: list[str] = []
    assert np.array_equal(read_torch(tmp_path / "model.pt", notes=notes)["w"], WEIGHTS)
    assert notes == ["model.pt was saved without checksums: damage to its weights would go unnoticed"]
    (tmp_path / "model.pt").write_bytes(archive())
    read_torch(tmp_path / "model.pt", notes=notes)
    assert len(notes) == 1
    del without["model/version"]  # one member has its checksum, so that the others have lost theirs
    assert "checksum" in message(tmp_path / "model.pt", archive(changes=without))


# What is refused


def extended(name: str | bytes, data: bytes = b"x") -> bytes:
    """The usual archive with one member more."""
    return archive([*MEMBERS.items(), (name, data)])


ARCHIVES = {
    "the same name twice": ("two members", extended("model/data/0", bytes(160))),
    "the pickle twice": ("two members", extended("model/data.pkl", b"\x80\x02N.")),
    "outside the top folder": ("outside", extended("other/data")),
    "beside the top folder": ("named 'version'", extended("version", b"3\n")),
    "path traversal": ("..", extended("model/../../etc/passwd", b"x")),
    "absolute path": ("'/model", extended("/model/data/1", b"x")),
    "backslashes": ("named", extended("model\\..\\x", b"x")),
    "backslashes below": ("named", extended("model/..\\x", b"x")),
    "drive letter": ("named", extended("model/c:x", b"x")),
    "a folder": ("named", extended("model/data/", b"")),
    "a name with a newline": ("named", extended("model/da\nta", b"x")),
    "a name with a zero byte": ("named", extended("model/data.pkl\0.txt", b"x")),
    "a name that is not UTF-8": ("named", extended(b"model/\xff", b"x")),
    "a long name": ("longer", extended("model/" + "a" * 300, b"x")),
    "a wrong checksum": ("checksum", archive(changes={"model/data/0": {"checksum": 7}})),
    "a wrong checksum of the pickle": ("checksum", archive(changes={"model/data.pkl": {"checksum": 7}})),
    "a wrong checksum of what is not used": ("checksum", archive(changes={"model/version": {"checksum": 7}})),
    "encrypted": ("encrypted", archive(changes={"model/data/0": {"flags": 0x0809}})),
    "strongly encrypted": ("encrypted", archive(changes={"model/data/0": {"flags": 0x0849}})),
    "masked headers": ("encrypted", archive(changes={"model/data/0": {"flags": 0x2808}})),
    "said to be compressed": ("compressed", archive(changes={"model/data/0": {"method": 8}})),
    "big-endian": ("big-endian", archive([*(MEMBERS | {"model/byteorder": b"big"}).items()])),
    "odd byte order": ("big-endian", archive([*(MEMBERS | {"model/byteorder": b"little\n"}).items()])),
    "vast byte order": ("plausible", archive([*(MEMBERS | {"model/byteorder": bytes(1 << 20)}).items()])),
    "no pickle": ("not one of torch.save", archive([(n, d) for n, d in MEMBERS.items() if n != "model/data.pkl"])),
    "TorchScript": ("TorchScript", extended("model/code/__torch__.py")),
    "TorchScript's constants": ("TorchScript", extended("model/constants.pkl", b"\x80\x02).")),
    "another local name": ("contradict", archive(changes={"model/data/0": {"local_name": b"model/data/9"}})),
    "another local size": ("contradict", archive(changes={"model/data/0": {"local": (0, 80, 80)}})),
    "another local checksum": ("contradict", archive(changes={"model/data/0": {"local": (7, 0, 0)}})),
    "sizes only in the directory": ("contradict", archive(changes={"model/data/0": {"flags": 0x0800}})),
    "smaller than its data": ("contradict", archive(changes={"model/data/0": {"size": 80}})),
    "larger than its data": ("contradict", archive(changes={"model/data/0": {"size": 200}})),
    "larger than the file": ("contradict", archive(changes={"model/data/0": {"size": 0xFFFFFFFE}})),
    "64 bits without a field for them": ("contradict", archive(changes={"model/data/0": {"size": 0xFFFFFFFF}})),
    "text in the padding": ("contradict", archive(changes={"model/data/0": {"padding": b"FB\x06\x00ZZevil"}})),
    "an unknown extra field": ("contradict", archive(changes={"model/data/0": {"padding": b"XX\x02\x00ZZ"}})),
    "a broken extra field": ("contradict", archive(changes={"model/data/0": {"padding": b"FB\x09\x00ZZ"}})),
    "a comment": ("broken", archive(changes={"model/data/0": {"comment": b"PK"}})),
    "an entry elsewhere": ("contradict", archive(changes={"model/data/0": {"at": 1}})),
    "an entry at another's place": ("contradict", archive(changes={"model/data/0": {"at": 0}})),
    "an entry beyond the file": ("contradict", archive(changes={"model/data/0": {"at": 0xFFFFFFF0}})),
    "a hole before the directory": ("contradict", archive(directory_gap=b"evil")),
    "something before": ("not a PyTorch", b"#!/bin/sh\n" + archive()),
    "another archive before": ("contradicts", archive() + archive(wide_end=False)),
    "another archive before, 64 bits": ("not where", archive() + archive()),
    "something after its end": ("ends before", archive() + b"\n"),
    "a comment after its end": ("ends before", archive()[:-2] + b"\x02\x00PK"),
    "an empty archive": ("contradicts", b"PK\x03\x04PK\x05\x06" + bytes(18)),
    "a hole at the beginning": ("not a PyTorch", bytes(64) + archive()),
    "a first member elsewhere": ("overlaps", archive(changes={"model/data.pkl": {"at": 5}})),
    "a last member beyond the directory": ("overlaps", archive(changes={LAST: {"at": 0xFFFFFFF0}})),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_torch_does_not_write(tmp_path: Path, nothing_runs: Callable[[], Any], kind: str) -> None:
    saying, data = ARCHIVES[kind]
    (tmp_path / "model.pt").write_bytes(data)
    with nothing_runs(), pytest.raises(CheckpointError):
        read_torch(tmp_path / "model.pt")
    assert saying in message(tmp_path / "model.pt", data)


FOREIGN = {
    "nothing": (b"", "empty"),
    "one byte": (b"P", "not a PyTorch checkpoint"),
    "the start of an archive": (b"PK\x03\x04", "ends before"),
    "text": (b"hello", "not a PyTorch checkpoint"),
    "zeros": (bytes(4096), "not a PyTorch checkpoint"),
    "a page": (b"<!DOCTYPE html><html>" + b" " * 1000, "not a PyTorch checkpoint"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "before torch 1.6": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "torch.save it again"),
    "a bare pickle": (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "torch.save it again"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "not a PyTorch checkpoint"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "not a PyTorch checkpoint"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(tmp_path: Path, nothing_runs: Callable[[], Any], kind: str) -> None:
    data, saying = FOREIGN[kind]
    assert saying in message(tmp_path / "model.pt", data)


def test_what_is_not_a_readable_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_torch(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="name the checkpoint itself"):
        read_torch(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt")
        with pytest.raises(CheckpointError, match="name the checkpoint itself"):  # and does not wait for a writer
            read_torch(tmp_path / "pipe.pt")


def test_a_compressed_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", PICKLED)
        file.writestr("model/data/0", bytes(64 << 20))
    tracemalloc.start()
    assert "compressed" in message(path, path.read_bytes())
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_too_many_members_and_a_vast_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 4)
    assert "5 members" in message(tmp_path / "model.pt", archive())
    monkeypatch.undo()
    monkeypatch.setattr(archives, "DIRECTORY_LIMIT", 200)
    assert "5 members" in message(tmp_path / "model.pt", archive())


# Damage


def test_every_truncation_and_every_changed_byte(tmp_path: Path) -> None:
    """Cut anywhere the file is refused; a changed byte is noticed or changes nothing that is read."""
    data, path = archive(), tmp_path / "model.pt"
    for length in range(len(data)):
        message(path, data[:length])
    unnoticed = []
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 0x21
        path.write_bytes(spoilt)
        try:
            assert np.array_equal(read_torch(path)["w"], WEIGHTS)
            unnoticed.append(place)
        except CheckpointError as error:
            assert "\n" not in str(error)
    # The writer's version and the attributes in the directory, 12 bytes a member; two versions in the 64-bit end.
    assert len(unnoticed) <= 12 * len(MEMBERS) + 4
    assert all(place > data.index(b"PK\x01\x02") for place in unnoticed)


def test_golden_checkpoint_truncated_at_every_block(shared: Path, tmp_path: Path) -> None:
    data = (shared / "golden/zipformer-ctc-tiny/pretrained.pt").read_bytes()
    path = tmp_path / "pretrained.pt"
    path.write_bytes(data)
    lengths = range(0, len(data), 4096)
    assert len(lengths) > 200
    for length in reversed(lengths):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=r"pretrained\.pt"):
            read_torch(path)


def test_golden_checkpoint_with_one_changed_byte_in_each_region(shared: Path, tmp_path: Path) -> None:
    data = bytearray((shared / "golden/zipformer-ctc-tiny/pretrained.pt").read_bytes())
    path = tmp_path / "pretrained.pt"
    directory = data.index(b"PK\x01\x02")
    regions = {
        "signature": 0,
        "flags": 6,
        "time": 11,
        "header sizes": 19,
        "name length": 26,
        "name": 31,
        "padding": data.index(b"ZZZ"),
        "pickle": 2000,
        "weight": data.index(b"PK\x07\x08", 400_000) - 2,
        "descriptor": data.index(b"PK\x07\x08", 400_000) + 5,
        "directory signature": directory,
        "directory checksum": directory + 17,
        "directory size": directory + 21,
        "directory name": directory + 48,
        "directory offset": directory + 43,
        "64-bit end": len(data) - 90,
        "locator": len(data) - 30,
        "end": len(data) - 10,
        "last byte": len(data) - 1,
    }
    for region, place in regions.items():
        data[place] ^= 1
        path.write_bytes(data)
        data[place] ^= 1
        with pytest.raises(CheckpointError, match=r"pretrained\.pt"):
            read_torch(path)
            pytest.fail(f"a changed byte in the {region} went unnoticed")


def test_fuzzed_archives_raise_nothing_else(tmp_path: Path, nothing_runs: Callable[[], Any]) -> None:
    """Fields of the headers overwritten with extreme or random values, pieces moved, 2,000 times."""
    data, path = archive(), tmp_path / "model.pt"
    marks = [i for i in range(len(data)) if data[i : i + 2] == b"PK"]
    extremes = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data), len(data) - 22]
    rng = random.Random(21)
    refused = 0
    for _ in range(2000):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = min(rng.choice(marks) + rng.randrange(4, 60), len(data) - 8)
            match rng.randrange(4):
                case 0:
                    struct.pack_into("<I", mutant, place, rng.choice(extremes))
                case 1:
                    struct.pack_into("<H", mutant, place, rng.choice([0, 1, 0x7FFF, 0xFFFF]))
                case 2:
                    mutant[place] = rng.randrange(256)
                case 3:
                    other = rng.choice(marks)
                    mutant[place : place + 8] = mutant[other : other + 8]
        path.write_bytes(mutant)
        with nothing_runs():
            try:
                read = read_torch(path)["w"]
            except CheckpointError as error:
                read, message = None, str(error)
        # Outside: numpy imports what it compares with.
        if read is None:
            assert "\n" not in message
            refused += 1
        else:
            assert np.array_equal(read, WEIGHTS)
    assert refused > 1500
