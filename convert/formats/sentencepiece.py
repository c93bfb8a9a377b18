"""The pieces of a SentencePiece model (bpe.model), read without sentencepiece.

Follows sentencepiece_model.proto: ModelProto has the pieces as field 1, in the order of their ids, and the text of a
piece is its field 1.
"""

from __future__ import annotations

from pathlib import Path

from jaxasr.convert.formats import protobuf
from jaxasr.convert.formats.mapped import regular_file
from jaxasr.convert.formats.protobuf import Malformed
from jaxasr.errors import CheckpointError

MAX_FILE_BYTES = 1 << 25  # a vocabulary of 250,000 pieces has 5 MB
MAX_PARTS = 4_000_000


def read_pieces(path: Path) -> tuple[str, ...]:
    """The pieces by their ids. CheckpointError for a file that cannot be read or is no SentencePiece model."""
    with regular_file(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        if len(data) > MAX_FILE_BYTES:
            raise Malformed(f"more than {MAX_FILE_BYTES:,} bytes")
        budget = protobuf.Budget(MAX_PARTS)
        pieces = [
            _text(protobuf.message(wire, value), budget)
            for number, wire, value in protobuf.fields(memoryview(data), budget)
            if number == 1
        ]
        if not pieces:
            raise Malformed("no pieces")
    except Malformed as fault:
        raise CheckpointError(f"{path}: is no SentencePiece model ({fault}); fetch or copy it again") from None
    return tuple(pieces)


def _text(piece: memoryview, budget: protobuf.Budget) -> str:
    texts = [protobuf.text(wire, value) for number, wire, value in protobuf.fields(piece, budget) if number == 1]
    if len(texts) != 1 or not texts[0]:
        raise Malformed("a piece without a text")
    return texts[0]
