"""The .nemo archive: a tar, compressed by gzip up to NeMo 1.6, read member by member and never extracted.

Its weights are read where they lie in the file. Those of a compressed archive are decompressed into a file without a
name, which vanishes when nothing uses it. Refused as a whole is an archive with anything that NeMo's `save_to` does not
write: links, devices and sparse members, names that lead elsewhere or stand there twice, members beyond the limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxasr.convert.formats.mapped import regular_file
from jaxasr.convert.formats.torch.pickles import read_open_torch
from jaxasr.convert.formats.torch.states import State, find_state
from jaxasr.errors import CheckpointError, printable
from jaxasr.files import reason

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"

MEMBER_LIMIT = 4096
NAME_LIMIT = 256  # characters
HEADER_LIMIT = 1 << 20  # bytes of one header; tarfile reads extended ones whole
TEXT_LIMIT = 32 << 20  # bytes of a member that is not the weights; a vocabulary of 250,000 pieces has 5 MB
TEXTS_LIMIT = 256 << 20  # bytes of all of them together
SWELLING_LIMIT = 64  # of a compressed archive: all members together to the file; weights shrink by a tenth
BLOCK = 1 << 20  # bytes copied at a time

_GZIP = b"\x1f\x8b"
_SHOWN = 80  # characters of a foreign name


@dataclasses.dataclass(frozen=True)
class Archive:
    """What an archive holds: `texts`, its small members by name without a leading "./", and its `tensors` by name."""

    path: Path
    texts: dict[str, bytes]
    tensors: State


def read_archive(path: Path, notes: list[str]) -> Archive:
    """The archive at `path`; `notes` gets a line where damage to the weights could not be seen.

    CheckpointError, one line, for what is no archive of NeMo, is damaged, or is refused.
    """
    with regular_file(path) as file, contextlib.ExitStack() as copies:
        try:
            texts, (weights, start, size) = _read_members(file, copies)
        except CheckpointError as fault:
            raise CheckpointError(f"{path}: {fault}") from None
        except RecursionError:
            raise CheckpointError(f"{path}: {_refusal('a chain of headers without an end')}") from None
        except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise CheckpointError(f"{path}: cannot be read or decompressed ({reason(error)})") from None
            raise CheckpointError(
                f"{path}: is no tar archive, or a damaged one: name a .nemo file, or fetch it again"
            ) from None
        state = read_open_torch(weights, start, size, f"{path}: {WEIGHTS}", (), notes)
    return Archive(path, texts, find_state(path, state))


def _read_members(file: BinaryIO, copies: contextlib.ExitStack) -> tuple[dict[str, bytes], tuple[BinaryIO, int, int]]:
    """All small members, and where the weights lie: in which file, from which byte on, how many bytes.

    Decompressed weights are in a file that `copies` closes.
    """
    size = os.fstat(file.fileno()).st_size
    compressed = file.read(2) == _GZIP
    file.seek(0)
    # GzipFile goes forward only: members are read in the order in which they stand.
    unpacked = _Guarded(gzip.GzipFile(fileobj=file) if compressed else file)
    texts: dict[str, bytes] = {}
    weights: tuple[BinaryIO, int, int] | None = None
    total = 0
    for name, start, length in _members(unpacked):
        total += length
        if total > size * (SWELLING_LIMIT if compressed else 1):
            raise CheckpointError(_refusal(f"member {_shown(name)} of {length:,} bytes in a file of {size:,}"))
        if name == WEIGHTS:
            weights = (file, start, length)
            if compressed:
                copy = copies.enter_context(tempfile.TemporaryFile())
                for block in unpacked.blocks(start, length):
                    copy.write(block)
                copy.flush()
                weights = (copy, 0, length)
            continue
        if length > TEXT_LIMIT:
            raise CheckpointError(_refusal(f"member {_shown(name)} of {length:,} bytes, more than {TEXT_LIMIT:,}"))
        if sum(map(len, texts.values())) + length > TEXTS_LIMIT:
            raise CheckpointError(_refusal(f"members of more than {TEXTS_LIMIT:,} bytes beside the weights"))
        texts[name] = unpacked.whole(start, length)
    missing = [name for name, found in ((CONFIG, CONFIG in texts), (WEIGHTS, weights)) if not found]
    if missing or weights is None:
        raise CheckpointError(f"holds no {' and no '.join(missing)}: it is no archive that NeMo's save_to wrote")
    return texts, weights


def _members(file: _Guarded) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, bytes) of each file in the archive, refused where NeMo would not have written it."""
    seen: set[str] = set()
    # tarfile names its arguments BinaryIO-like; it reads and seeks only.
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            if len(seen) >= MEMBER_LIMIT:
                raise CheckpointError(_refusal(f"more than {MEMBER_LIMIT:,} members"))
            name = _checked_name(member.name)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise CheckpointError(_refusal(f"member {_shown(member.name)}, which is a link or no plain file"))
            if member.size < 0 or (member.isdir() and member.size):
                raise CheckpointError(_refusal(f"member {_shown(member.name)} of {member.size} bytes"))
            if name in seen:
                raise CheckpointError(_refusal(f"two members named {_shown(name)}"))
            seen.add(name)
            if member.isreg():
                yield name, member.offset_data, member.size


def _checked_name(name: str) -> str:
    """The name without a leading "./", "" for the folder itself; refused where it leads out of the archive."""
    parts = name.removesuffix("/").split("/")
    if parts[0] == ".":
        parts = parts[1:]
    odd = {"", ".", ".."} & set(parts) or set("\\:") & set(name) or not name.isprintable()
    if odd or len(name) > NAME_LIMIT:
        raise CheckpointError(_refusal(f"a member named {_shown(name)}"))
    return "/".join(parts)


class _Guarded:
    """A file as tarfile reads it, which refuses a header that would take much memory."""

    def __init__(self, file: gzip.GzipFile | BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_LIMIT:
            raise CheckpointError(_refusal(f"a header of {size} bytes"))
        return self._file.read(size)

    def whole(self, start: int, size: int) -> bytes:
        """All of a small member; EOFError where the file ends before."""
        return b"".join(self.blocks(start, size))

    def blocks(self, start: int, size: int) -> Iterator[bytes]:
        """The bytes of a member, a block at a time; EOFError where the file ends before."""
        self._file.seek(start)
        while size:
            block = self._file.read(min(size, BLOCK))
            if not block:
                raise EOFError
            size -= len(block)
            yield block


def _refusal(what: str) -> str:
    return f"{what}: refused, nothing was extracted; ask the publisher for the file that NeMo's save_to wrote"


def _shown(name: str) -> str:
    return repr(printable(name, _SHOWN))
