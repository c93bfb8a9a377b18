"""Pieces to text, as NeMo 3.0.0 spells them: by SentencePiece, as joined labels, or by an aggregate of vocabularies.

Source: NeMo, collections/asr/parts/submodules/{ctc,rnnt}_decoding.py and collections/common/tokenizers; SentencePiece
0.2, sentencepiece_processor.cc, Decode.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from jaxasr.text.tokens import MARK, ByteCoding, Span

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NemoConfig:
    """How NeMo's tokenizer joins pieces.

    `tokenizer`: "sentencepiece" decodes all pieces together; "characters" joins labels as they are; "aggregate", one
    vocabulary a language, joins pieces with "▁" as a space, a leading one and "<unk>" included. `punctuation`: marks of
    the vocabulary, which lose one space before them. `punctuation_times`: a mark keeps its "own" times; or, after the
    first token, it lasts no time as NeMo's timestamps of CTC have it ("short"), or stands at the end of the token
    before as those of TDT have it ("moved"). `silent` are pieces that are printed as nothing, as SentencePiece's
    control pieces are. The others are SentencePiece's: `unknown` is the piece that is printed as `unknown_text`;
    `leading_marks` says whether "▁" at the begin of the text is dropped: all of them, the first, or none.
    """

    kind: Literal["nemo"] = "nemo"
    tokenizer: Literal["sentencepiece", "characters", "aggregate"] = "sentencepiece"
    punctuation: str = ""
    punctuation_times: Literal["own", "short", "moved"] = "own"
    unknown: str = "<unk>"
    unknown_text: str = " ⁇ "
    silent: tuple[str, ...] = ()
    leading_marks: Literal["all", "first", "none"] = "all"


class NemoSpelling:
    """Pieces to text and printable tokens, as NeMo's `transcribe` prints them."""

    def __init__(self, config: NemoConfig) -> None:
        self.config = config
        self._marks = re.compile(rf"\s([{re.escape(config.punctuation)}])") if config.punctuation else None

    def __call__(self, pieces: Sequence[str], byte_coding: ByteCoding = "none") -> tuple[str, list[str]]:
        """The text of `pieces` and the printable form of each, "▁" as a space.

        `byte_coding` is the table's: of "fallback" `<0x00>` to `<0xFF>` are bytes, those that make no character U+FFFD.
        """
        match self.config.tokenizer:
            case "sentencepiece":
                tokens = [self._printable(piece) for piece in pieces]
                text = self._decode(pieces, tokens, byte_coding == "fallback")
            case "aggregate":
                tokens = [piece.replace(MARK, " ") for piece in pieces]
                text = "".join(tokens)
            case "characters":
                tokens = ["" if piece in self.config.silent else piece for piece in pieces]
                text = "".join(tokens)
        return (self._marks.sub(r"\1", text) if self._marks else text), tokens

    def timed(self, pieces: Sequence[str], spans: Sequence[Span]) -> list[Span]:
        """Where each of `pieces` begins and how long it lasts, by `punctuation_times`; one span a piece.

        Source: NeMo, _refine_timestamps of ctc_decoding.py, _refine_timestamps_tdt of rnnt_decoding.py.
        """
        found: list[Span] = []
        for piece, (begin, lasting) in zip(pieces, spans, strict=True):
            alone = self([piece])[0]
            match self.config.punctuation_times:
                case "short" if found and alone and alone[0] in self.config.punctuation:
                    found.append((begin, 0.0))
                case "moved" if found and alone and alone in self.config.punctuation:
                    found.append((sum(found[-1]), 0.0))
                case _:
                    found.append((begin, lasting))
        return found

    def _printable(self, piece: str) -> str:
        if piece == self.config.unknown:
            return self.config.unknown_text
        return "" if piece in self.config.silent else piece.replace(MARK, " ")

    def _decode(self, pieces: Sequence[str], tokens: Sequence[str], with_bytes: bool) -> str:
        """SentencePiece's Decode: a mark at the begin of the text is dropped, once or as long as there is no text."""
        text, run = "", bytearray()
        at_start = self.config.leading_marks != "none"
        for piece, token in zip(pieces, tokens, strict=True):
            if with_bytes and (match := _BYTE.fullmatch(piece)):
                run.append(int(match[1], 16))
                continue
            text += _characters(run)
            run.clear()
            at_start = at_start and not text
            if at_start and piece.startswith(MARK) and piece != self.config.unknown and token:
                token = token[1:]
                at_start = self.config.leading_marks == "all"
            text += token
        return text + _characters(run)


def _characters(data: bytes | bytearray) -> str:
    """Bytes as text, each byte that does not decode as one U+FFFD."""
    return re.sub("[\udc80-\udcff]", "\ufffd", data.decode(errors="surrogateescape"))
