"""The zip archives that `torch.save` writes, opened so that nobody can smuggle a second reading into them.

Their directory is parsed here instead of by zipfile, which keeps the last of two equal names and compares a member's
own header with the directory by name only, not by sizes, checksums and methods (published proofs show a scanner one
member and the loader another). Accepted is what torch writes and no more: uncompressed members that fill the file from
its first byte to the directory without hole or overlap, padded with what torch pads with, below one folder, each name
once, checksums right where there are any.
"""

from __future__ import annotations

import collections
import struct
import zlib
from typing import NamedTuple

from jaxasr.convert.formats.mapped import Readable
from jaxasr.errors import CheckpointError

MEMBER_LIMIT = 1 << 16  # a training checkpoint of 160 M parameters has about 6,000
DIRECTORY_LIMIT = 16 << 20  # bytes
NAME_LIMIT = 256  # bytes
BLOCK = 1 << 20  # bytes read at a time while checksums are taken

FLAGS = 0x0808  # checksum and sizes follow the data (bit 3), the name is UTF-8 (11); others: encrypted, masked, patched
LOCAL, DIRECTORY, DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END, LOCATOR, WIDE_END = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
ESCAPE = 0xFFFFFFFF  # of a 32-bit field whose value stands in a 64-bit one


class Member(NamedTuple):
    """Where the bytes of a member lie in the file."""

    start: int
    size: int


class Archive(NamedTuple):
    """The members of an archive by their names without the top folder. `checked`: it has checksums, and all are right.

    Without them (torch.serialization.set_crc32_options(False)) every checksum of the archive is 0.
    """

    members: dict[str, Member]
    checked: bool


def open_torch_zip(file: Readable, size: int) -> Archive:
    """The archive in `file` (of `size` bytes).

    CheckpointError, without the file's name, which the caller puts before it, for what torch.save does not write.
    Every byte is read once, in blocks, for the checksums.
    """
    _check_head(file, size)
    entries, directory_start = _entries(file, size)
    names = _names(entries)
    _check_contents(names, entries)
    checked = any(entry.checksum for entry in entries)
    members = {}
    for name, entry, member in zip(names, entries, _members(file, names, entries, directory_start), strict=True):
        if checked and _checksum(file, member) != entry.checksum:
            raise damaged(f"member {shown(name)} differs from its checksum")
        members[name] = member
    if "byteorder" in members and contents(file, members["byteorder"], 16) != b"little":
        raise CheckpointError("written on a big-endian machine: load it there and save its numbers as little-endian")
    return Archive(members, checked)


def contents(file: Readable, member: Member, limit: int) -> bytes:
    """All bytes of a small member; CheckpointError if there are more than `limit`."""
    if member.size > limit:
        raise refused(f"{member.size} bytes where at most {limit} are plausible")
    file.seek(member.start)
    return file.read(member.size)


def damaged(what: str) -> CheckpointError:
    """The error for a file that is not as it was written."""
    return CheckpointError(f"{what}: the file is damaged, fetch or copy it again")


def refused(what: str) -> CheckpointError:
    """The error for a file that asks for more than its weights to be read."""
    return CheckpointError(
        f"{what}: refused, nothing was executed; ask the publisher for torch.save({{'model': model.state_dict()}}, ...)"
    )


def shown(name: str) -> str:
    """A foreign name as it may stand in a one-line message."""
    return ascii(name[:80])


def _check_head(file: Readable, size: int) -> None:
    """Recognise what else is met under the name .pt, each with its own remedy."""
    file.seek(0)
    head = file.read(64)
    if size == 0:
        raise damaged("an empty file")
    if head.startswith((b"\x80", b"L1195470371460388")):  # protocols 2 to 5; 0 and 1
        raise CheckpointError(
            "a bare pickle, torch's format before 1.6: load it with your own PyTorch and torch.save it again"
        )
    if not head.startswith(LOCAL):
        raise CheckpointError("not a PyTorch checkpoint: name a .pt file that torch.save wrote")


def _check_contents(names: list[str], entries: list[_Entry]) -> None:
    """Recognise zip archives that torch.save did not write."""
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(
            "a TorchScript export, which holds code: convert epoch-N.pt, or the pretrained.pt of export.py (no --jit)"
        )
    if "data.pkl" not in names:
        raise CheckpointError("a zip archive, but not one of torch.save: name a PyTorch checkpoint")
    if any(entry.flags & ~FLAGS for entry in entries):
        raise refused("a member that is encrypted or written in an unusual way")
    if any(entry.method or entry.packed_size != entry.size for entry in entries):
        raise CheckpointError("its members are compressed, as torch.save never does: save it again with PyTorch")


class _Entry(NamedTuple):
    name: bytes
    offset: int  # of the member's own header
    size: int
    packed_size: int
    checksum: int
    flags: int
    method: int  # of compression; 0: none
    common: bytes  # version, flags, method and time, which stand in the member's own header too


def _entries(file: Readable, size: int) -> tuple[list[_Entry], int]:
    """The directory's entries in the order of the file, and where the directory begins."""
    count, start, length = _directory_place(file, size)
    if count > MEMBER_LIMIT or length > DIRECTORY_LIMIT:
        raise refused(f"an archive of {count} members")
    file.seek(start)
    directory = file.read(length)
    entries, position = [], 0
    for _ in range(count):
        if directory[position : position + 4] != DIRECTORY or position + 46 > length:
            raise damaged("the archive's directory is broken")
        common = directory[position + 6 : position + 16]
        flags, method = struct.unpack_from("<2H", common, 2)
        checksum, packed, unpacked, name_size, extra_size, comment_size, disk = struct.unpack_from(
            "<3I4H", directory, position + 16
        )
        (offset,) = struct.unpack_from("<I", directory, position + 42)
        if comment_size or disk:  # torch writes no comments
            raise damaged("the archive's directory is broken")
        name_end = position + 46 + name_size
        name, extra = directory[position + 46 : name_end], directory[name_end : name_end + extra_size]
        position = name_end + extra_size
        unpacked, packed, offset = _widened([unpacked, packed, offset], extra)
        entries.append(_Entry(name, offset, unpacked, packed, checksum, flags, method, common))
    if position != length:
        raise damaged("the archive's directory is broken")
    return sorted(entries, key=lambda entry: entry.offset), start


def _directory_place(file: Readable, size: int) -> tuple[int, int, int]:
    """(number of members, first byte, length) of the directory, from the end record and its 64-bit twin, if any."""
    tail_size = min(size, 22 + 20 + 56)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    if len(tail) < 22 or tail[-22:-18] != END:
        raise damaged("it ends before the archive does")
    disk, first_disk, here, count, length, start, comment = struct.unpack("<4H2IH", tail[-18:])
    end = size - 22
    if tail[-42:-38] == LOCATOR:
        end = size - 98
        if len(tail) < 98 or tail[:4] != WIDE_END or struct.unpack("<IQI", tail[-38:-22]) != (0, end, 1):
            raise damaged("the archive's 64-bit end is not where it should be")
        narrow = (here, count, length, start)
        record, _, disk, first_disk, here, count, length, start = struct.unpack("<QI2I4Q", tail[4:56])
        escapes = zip(narrow, (here, count, length, start), (0xFFFF, 0xFFFF, ESCAPE, ESCAPE), strict=True)
        if record != 44 or any(short not in (wide, escape) for short, wide, escape in escapes):
            raise damaged("the archive's two ends contradict each other")
    if disk or first_disk or comment or here != count or start + length != end:
        raise damaged("the archive's end contradicts the file")
    return count, start, length


def _widened(fields: list[int], extra: bytes) -> list[int]:
    """Put 64-bit values, which the extra field 0x0001 holds in the same order, for fields of all ones."""
    while ESCAPE in fields and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{len(value) // 8}Q", value))
            return [next(wide, field) if field == ESCAPE else field for field in fields]
    return fields


def _names(entries: list[_Entry]) -> list[str]:
    """The names without the top folder: all lie in one, none is there twice, none points elsewhere."""
    names = [entry.name.decode("utf-8", errors="replace") for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        parts = name.split("/")
        if len(parts) < 2 or {"", ".", ".."} & set(parts) or not name.isprintable() or set("\\\ufffd:") & set(name):
            raise refused(f"a member named {shown(name)}")
        if len(entry.name) > NAME_LIMIT:
            raise refused(f"a member whose name, {shown(name)}, is longer than {NAME_LIMIT} bytes")
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise refused(f"two members named {shown(twice[0])}")
    if len({name.partition("/")[0] for name in names}) != 1:
        raise refused("members outside the archive's one folder")
    return [name.partition("/")[2] for name in names]


def _members(file: Readable, names: list[str], entries: list[_Entry], directory_start: int) -> list[Member]:
    """Where the data lie, comparing each member's own header with its entry and its place with its neighbours'."""
    ends = [entry.offset for entry in entries[1:]] + [directory_start]
    members, expected = [], 0
    for name, entry, end in zip(names, entries, ends, strict=True):
        if entry.offset != expected or not expected <= end <= directory_start:
            raise damaged(f"member {shown(name)} overlaps another or leaves a hole")
        file.seek(entry.offset)
        header = file.read(30).ljust(30, b"\0")
        checksum, packed, unpacked, name_size, extra_size = struct.unpack_from("<3I2H", header, 14)
        member = Member(entry.offset + 30 + name_size + extra_size, entry.size)
        deferred = bool(entry.flags & 0x0008)  # torch then leaves checksum and sizes zero in the header
        if (
            header[:4] != LOCAL
            or header[4:14] != entry.common
            or file.read(name_size) != entry.name
            or not _is_padding(file.read(extra_size))
            or checksum not in ({0, entry.checksum} if deferred else {entry.checksum})
            or not {packed, unpacked} <= ({0, entry.size, ESCAPE} if deferred else {entry.size, ESCAPE})
            or not _ends_at(file, member, end, entry.checksum if deferred else None)
        ):
            raise damaged(f"member {shown(name)} and the archive's directory contradict each other")
        members.append(member)
        expected = end
    return members


def _is_padding(extra: bytes) -> bool:
    """Whether a member's own extra field is 64-bit sizes and torch's filling ("FB", letters Z), nothing else."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind not in (1, 0x4246) or len(value) != length or (kind == 0x4246 and value.strip(b"Z")):
            return False
    return not extra


def _ends_at(file: Readable, member: Member, end: int, checksum: int | None) -> bool:
    """Whether the data, and a descriptor after them if their checksum is deferred, fill the file up to `end`."""
    data_end = member.start + member.size
    if checksum is None or data_end > end:
        return data_end == end
    file.seek(data_end)
    descriptor = file.read(min(end - data_end, 25))
    wide = struct.pack("<4sI2Q", DESCRIPTOR, checksum, member.size, member.size)
    return descriptor == wide or (
        member.size < ESCAPE and descriptor == struct.pack("<4sI2I", DESCRIPTOR, checksum, member.size, member.size)
    )


def _checksum(file: Readable, member: Member) -> int:
    """CRC-32 of the member's bytes."""
    file.seek(member.start)
    checksum, left = 0, member.size
    while left:
        block = file.read(min(left, BLOCK))
        if not block:
            raise damaged("it ends early")
        checksum, left = zlib.crc32(block, checksum), left - len(block)
    return checksum
