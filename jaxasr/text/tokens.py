"""The table of token ids and pieces: icefall's and sherpa-onnx's tokens.txt, read strictly and written back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from jaxasr.errors import CheckpointError
from jaxasr.files import refuse_pointer

ByteCoding = Literal["none", "fallback", "byte_bpe"]
# Where a token begins, and how long it lasts, in one unit.
Span = tuple[float, float]
# What pieces of SentencePiece write for the space before a word.
MARK = "▁"

# The whitespace that separates the columns; others (U+00A0, U+3000, U+0085, ...) may belong to a piece.
_BLANKS = " \t\r\v\f"
_LINE = re.compile(rf"(?s:(?P<piece>.*?))(?:^|[{_BLANKS}]+)(?P<id>[0-9]{{1,9}})")
_DISAMBIGUATION = re.compile(r"#\d+", re.ASCII)
_BLANK_NAMES = ("<blk>", "<blank>", "<eps>")


@dataclass(frozen=True)
class TokenTable:
    """Pieces in the order of their ids, 0 to len - 1, as the publisher writes them ("▁" included)."""

    pieces: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, token_id: int) -> str:
        if token_id < 0:
            raise IndexError(f"token id {token_id} is negative")
        return self.pieces[token_id]

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for token_id, piece in enumerate(self.pieces):
            ids.setdefault(piece, token_id)
        return ids

    def id_of(self, piece: str) -> int | None:
        """The id of `piece` (the first where several have it), None where the table has no such piece."""
        return self._ids.get(piece)

    @property
    def unk_id(self) -> int | None:
        """The id of `<unk>`, None without one."""
        return self.id_of("<unk>")

    @property
    def blank_id(self) -> int | None:
        """The id of the blank by its usual names, None without one."""
        return next((self._ids[name] for name in _BLANK_NAMES if name in self._ids), None)

    @cached_property
    def byte_coding(self) -> ByteCoding:
        """How pieces stand for bytes, told from the whole table as sherpa-onnx does (csrc/symbol-table.cc).

        "fallback": `<0x00>` to `<0xFF>` are the 256 bytes. "byte_bpe": every piece is made of the 256 stand-ins of
        icefall's byte-level BPE, the highest of which (U+0180 to U+01A6) begin with byte 0xC6.
        """
        if self.id_of("<0x00>") is not None:
            first = self._ids["<0x00>"]
            if self.pieces[first : first + 256] == tuple(f"<0x{byte:02X}>" for byte in range(256)):
                return "fallback"
        highest = 0
        for piece in self.pieces:
            after_marks = piece.lstrip(MARK).encode()
            after_one_mark = piece.removeprefix(MARK).encode()
            if max(after_marks, default=0) > 0xC6:
                return "none"
            highest = max(highest, max(after_one_mark, default=0))
        return "byte_bpe" if highest == 0xC6 else "none"

    @classmethod
    def read(cls, path: str | Path, size: int | None = None) -> TokenTable:
        """Read a tokens.txt: one "piece id" per line, separated by blanks or tabs, the last column being the id.

        A line that holds only an id is the piece " ". A byte order mark, CR LF, empty lines and a missing last newline
        are accepted. `size` is the vocabulary of the model: the disambiguation symbols `#0`, `#1`, … at and above it
        are cut off. Raises CheckpointError for what is unreadable, repeated, missing, or does not fit `size`.
        """
        path = Path(path)
        refuse_pointer(path, CheckpointError)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read as a token table ({error.strerror or error})") from None
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not a token table in UTF-8 (byte {error.start} does not decode)") from None
        pieces: dict[int, str] = {}
        # Not splitlines(): a piece may hold U+2028, U+0085 and the like.
        for number, line in enumerate(text.split("\n"), start=1):
            line = line.strip(_BLANKS)
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise CheckpointError(f'{path}: line {number} is not "piece id": {line[:40]!r}')
            token_id, piece = int(match["id"]), match["piece"] or " "
            if token_id in pieces:
                raise CheckpointError(
                    f"{path}: line {number} repeats id {token_id} for {piece!r}, which {pieces[token_id]!r} has already"
                )
            pieces[token_id] = piece
        return cls._checked(path, pieces, size)

    @classmethod
    def _checked(cls, path: Path, pieces: dict[int, str], size: int | None) -> TokenTable:
        if not pieces:
            raise CheckpointError(f"{path}: holds no tokens")
        beyond = {} if size is None else {token_id: piece for token_id, piece in pieces.items() if token_id >= size}
        strangers = [token_id for token_id, piece in sorted(beyond.items()) if not _DISAMBIGUATION.fullmatch(piece)]
        if strangers:
            raise CheckpointError(
                f"{path}: has the token {pieces[strangers[0]]!r} with id {strangers[0]}, but the model's vocabulary "
                f"ends at {size} tokens; give the tokens.txt that belongs to it as tokens"
            )
        count = max(pieces) + 1 if size is None else size
        # A stray huge id must not make a huge list: the first few holes are enough to say.
        present = len(pieces) - len(beyond)
        if present < count:
            holes = [token_id for token_id in range(min(count, present + 4)) if token_id not in pieces][:4]
            raise CheckpointError(
                f"{path}: has {present} tokens where {count} are needed (the first id without one is {holes[0]}); "
                "give the tokens.txt that belongs to the model as tokens"
            )
        return cls(tuple(pieces[token_id] for token_id in range(count)))

    def write(self, path: str | Path) -> None:
        """Write the table in its canonical form: "piece id" and a newline per token, in the order of ids, UTF-8.

        Raises ValueError for a piece that would be read back as another one (outer blanks, newlines).
        """
        for token_id, piece in enumerate(self.pieces):
            if piece != " " and (not piece or piece != piece.strip(_BLANKS) or "\n" in piece):
                raise ValueError(f"token {token_id} ({piece!r}) cannot be written to a tokens.txt")
        lines = [f"{piece} {token_id}\n" for token_id, piece in enumerate(self.pieces)]
        Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")
