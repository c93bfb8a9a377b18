"""A file's bytes as decoders see them: without a name, from some offset on, with corrected headers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO

_STREAMED = 0x7FFF0000  # bytes; programs that cannot know the size write a number from here to 0xFFFFFFFF


class View:
    """A seekable binary file from `start` on, in which `patches` (position to bytes) replace what the file holds.

    libsndfile calls it from C, where an exception would be printed and forgotten, be it that of a disk or Ctrl-C: none
    leaves `seek`, `tell`, `read` and `readinto`, and `error` keeps the first. A damaged file makes libsndfile seek to
    impossible positions. There is no name, since from one that ends in .raw soundfile would conclude that the samples
    have no header.
    """

    def __init__(self, file: BinaryIO, start: int = 0, patches: Mapping[int, bytes] | None = None) -> None:
        self.file, self.start, self.patches = file, start, dict(patches or {})
        self.error: BaseException | None = None
        self._position = 0
        self.seek(0)

    def tell(self) -> int:
        """The position, from `start`."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position from `start`; stay where that is impossible."""
        try:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
            position = (self.size() if base is None else base) + offset
            if position >= 0:
                self.file.seek(self.start + position)
                self._position = position
        except (OSError, ValueError, OverflowError):
            pass
        except BaseException as error:
            self.error = self.error or error
        return self._position

    def size(self) -> int:
        """Bytes from `start` to the end."""
        here = self.file.tell()
        size = self.file.seek(0, os.SEEK_END) - self.start
        self.file.seek(here)
        return max(size, 0)

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes, all that are left for -1; none after an error."""
        here = self._position
        try:
            content = self.file.read(count) if self.error is None else b""
            self._position += len(content)
        except BaseException as error:
            self.error = self.error or error
            return b""
        for position, patch in self.patches.items():
            first, last = max(position, here), min(position + len(patch), here + len(content))
            if first < last:
                patched = patch[first - position : last - position]
                content = content[: first - here] + patched + content[last - here :]
        return content

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer as far as there are bytes; how many they were."""
        into = memoryview(buffer).cast("B")
        content = self.read(len(into))
        into[: len(content)] = content
        return len(content)


def corrected(file: BinaryIO) -> tuple[View, int]:
    """The view of a file, and how many bytes of its sound are missing at the end, as far as a WAV header tells.

    A recorder writes the length of the sound when it stops. Where it never did, the data chunk of a WAV or RF64 file
    has size 0: the sound then lasts to the end of the file, unless whole chunks follow.
    """
    view = View(file)
    head, size = view.read(12), view.size()
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        view.seek(0)
        return view, 0
    wide: tuple[int, int] | None = None
    patches: dict[int, bytes] = {}
    missing = 0
    for tag, begin, length in _chunks(view, 12, size):
        if tag == b"ds64":
            view.seek(begin)
            sizes = view.read(16)
            wide = (begin + 8, int.from_bytes(sizes[8:], "little"))
        if tag != b"data":
            continue
        if wide is not None and length in (0, 0xFFFFFFFF):
            claimed = wide[1]
        else:
            claimed, wide = length, None
        rest = size - begin
        if claimed == 0 and rest and not _whole_chunks(view, begin, size):
            patches[begin - 4] = min(rest, 0xFFFFFFFF).to_bytes(4, "little") if wide is None else b"\xff" * 4
            if wide is not None:
                patches[wide[0]] = rest.to_bytes(8, "little")
        elif claimed > rest and (wide is not None or claimed < _STREAMED):
            missing = claimed - rest
        break
    return View(file, patches=patches), missing


def _chunks(view: View, position: int, size: int) -> list[tuple[bytes, int, int]]:
    """The chunks from a position on, up to the sound: tag, where the content begins, its length as the file says."""
    found: list[tuple[bytes, int, int]] = []
    while position + 8 <= size and len(found) < 1000:
        view.seek(position)
        head = view.read(8)
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        found.append((tag, position + 8, length))
        if tag == b"data":
            break
        position += 8 + length + length % 2
    return found


def _whole_chunks(view: View, begin: int, size: int) -> bool:
    """Whether chunks with legible tags fill the file from `begin` to its end."""
    position = begin
    while position + 8 <= size:
        view.seek(position)
        head = view.read(8)
        length = int.from_bytes(head[4:], "little")
        if not all(32 <= byte < 127 for byte in head[:4]):
            return False
        position += 8 + length + length % 2
    return position - size in (0, 1)
