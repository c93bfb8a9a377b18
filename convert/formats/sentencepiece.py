"""A SentencePiece model (bpe.model, tokenizer.model): its pieces and how they are joined, read without sentencepiece.

Follows sentencepiece_model.proto: ModelProto has the pieces as field 1, in the order of their ids, the trainer's
options as field 2 and the normalizer's as field 3. The text of a piece is its field 1, its kind its field 3.
"""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from jaxasr.convert.formats import protobuf
from jaxasr.convert.formats.mapped import regular_file
from jaxasr.convert.formats.protobuf import Malformed
from jaxasr.errors import CheckpointError

MAX_FILE_BYTES = 1 << 25  # a vocabulary of 250,000 pieces has 5 MB
MAX_PARTS = 4_000_000


class Kind(enum.IntEnum):
    """What a piece is: SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """Pieces by their ids, the kind of each, and what the trainer was told that matters to decoding.

    `unknown_text`: what the unknown piece is printed as. `adds_mark`: a "▁" is put before every text. `drops_spaces`:
    spaces at the ends of a text, and more than one, are dropped. `marks_end_words`: "▁" ends words.
    """

    pieces: tuple[str, ...]
    kinds: tuple[Kind, ...]
    unknown_text: str = " ⁇ "
    adds_mark: bool = True
    drops_spaces: bool = True
    marks_end_words: bool = False


def read_pieces(path: Path) -> tuple[str, ...]:
    """The pieces by their ids. CheckpointError for a file that cannot be read or is no SentencePiece model."""
    return read_model(path).pieces


def read_model(path: Path) -> SentencePieceModel:
    """The model in a file. CheckpointError for a file that cannot be read or is no SentencePiece model."""
    with regular_file(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    return parse_model(data, str(path))


def parse_model(data: bytes, where: str) -> SentencePieceModel:
    """The model that `data` holds; `where` names its file in the CheckpointError for what is none."""
    try:
        if len(data) > MAX_FILE_BYTES:
            raise Malformed(f"more than {MAX_FILE_BYTES:,} bytes")
        return _model(memoryview(data))
    except Malformed as fault:
        raise CheckpointError(f"{where}: is no SentencePiece model ({fault}); fetch or copy it again") from None


def _model(data: memoryview) -> SentencePieceModel:
    budget = protobuf.Budget(MAX_PARTS)
    pieces: list[tuple[str, Kind]] = []
    model = SentencePieceModel((), ())
    for number, wire, value in protobuf.fields(data, budget):
        if number == 1:
            pieces.append(_piece(protobuf.message(wire, value), budget))
        elif number == 2:
            model = _with_trainer(model, protobuf.message(wire, value), budget)
        elif number == 3:
            model = _with_normalizer(model, protobuf.message(wire, value), budget)
    if not pieces:
        raise Malformed("no pieces")
    texts, kinds = zip(*pieces, strict=True)
    return dataclasses.replace(model, pieces=texts, kinds=kinds)


def _piece(piece: memoryview, budget: protobuf.Budget) -> tuple[str, Kind]:
    texts, kind = [], Kind.NORMAL
    for number, wire, value in protobuf.fields(piece, budget):
        if number == 1:
            texts.append(protobuf.text(wire, value))
        elif number == 3:
            try:
                kind = Kind(protobuf.integer(wire, value))
            except ValueError:
                raise Malformed("a piece of an unknown kind") from None
    if len(texts) != 1 or not texts[0]:
        raise Malformed("a piece without a text")
    return texts[0], kind


def _with_trainer(model: SentencePieceModel, options: memoryview, budget: protobuf.Budget) -> SentencePieceModel:
    for number, wire, value in protobuf.fields(options, budget):
        if number == 24:  # treat_whitespace_as_suffix
            model = dataclasses.replace(model, marks_end_words=bool(protobuf.integer(wire, value)))
        elif number == 44:  # unk_surface
            model = dataclasses.replace(model, unknown_text=protobuf.text(wire, value))
    return model


def _with_normalizer(model: SentencePieceModel, options: memoryview, budget: protobuf.Budget) -> SentencePieceModel:
    for number, wire, value in protobuf.fields(options, budget):
        if number == 3:  # add_dummy_prefix
            model = dataclasses.replace(model, adds_mark=bool(protobuf.integer(wire, value)))
        elif number == 4:  # remove_extra_whitespaces
            model = dataclasses.replace(model, drops_spaces=bool(protobuf.integer(wire, value)))
    return model
