"""Pieces to text, byte for byte as the publisher's runtime spells them (sherpa-onnx 2.0.1).

Read from sherpa-onnx's sources at 1.13.4 (csrc/symbol-table.cc, csrc/text-utils.cc, the Convert functions of
csrc/*-recognizer-*-impl.h) and checked against the package 2.0.1, whose online recogniser has one rule more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from jaxasr.text.tokens import MARK, ByteCoding

_LEFT_OUT: dict[str, tuple[bytes, ...]] = {
    "offline_transducer": (),
    "ctc": (b"SIL", b"</s>"),
    "online": (b"<unk>",),
}
# IsCJK and IsPunct of csrc/text-utils.cc.
_CJK = "\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff"
_PUNCTUATION = "!-/:-@\\[-`{-~\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
# The first character is always kept: RemoveSpaceBetweenCjk looks at spaces from the second one on.
_DROPPED_SPACE = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])|(?<=.) (?=[{_PUNCTUATION}])", re.DOTALL)
_LEADING_PUNCTUATION = re.compile(f"[{_PUNCTUATION}]")

# `<0x0A>` stays as it is written: sherpa-onnx compares with the hexadecimal number without its leading zero.
_BYTE = re.compile(r"<0x([1-9A-F][0-9A-F])>")

# icefall's byte-level BPE (icefall/byte_utils.py): printable ASCII is itself, the other bytes are in order the letters
# from U+0100 on that NFKC leaves alone.
_LETTERS = iter(sorted(set(range(0x100, 0x1A7)) - {0x132, 0x133, 0x13F, 0x140, 0x149, 0x17F}))
_BYTE_OF = {chr(byte if 32 <= byte <= 126 else next(_LETTERS)): byte for byte in range(256)}
# SplitUtf8: ASCII letters, digits, "'", control characters and these accented letters run together, others stand alone.
_ACCENTED = "ÀÁÂÄÇÈÉÊËÍÎÏÑÓÔÖÙÚÛÜßàáâäçèéêëíîïñóôöùúûü"
_WORDS_AND_OTHERS = re.compile(rf"[A-Za-z0-9'\x00-\x08\x0e-\x1f\x7f{_ACCENTED}]+|\S", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SherpaOnnxConfig:
    """Which of sherpa-onnx's recognisers spells: each joins pieces by rules of its own.

    The offline recognisers of transducers and of CTC models differ; the online one has one rule for both.
    """

    kind: Literal["sherpa_onnx"] = "sherpa_onnx"
    recognizer: Literal["offline_transducer", "ctc", "online"]


class SherpaOnnxSpelling:
    """Pieces to text and printable tokens, as one of sherpa-onnx's recognisers prints them."""

    def __init__(self, config: SherpaOnnxConfig) -> None:
        self.recognizer = config.recognizer

    def __call__(self, pieces: Sequence[str], byte_coding: ByteCoding = "none") -> tuple[str, list[str]]:
        """The text of `pieces` and the printable form of each (one per piece, "▁" at its start as a space).

        `byte_coding` is the table's (`TokenTable.byte_coding`). Pieces that the recogniser leaves out of its text
        (`<unk>` online; `SIL`, `</s>` with CTC) are left out of the text here too, but keep their place among the
        tokens, so that these stay aligned with ids and times.
        """
        symbols = [_symbol(piece, byte_coding) for piece in pieces]
        data = b"".join(symbol for symbol in symbols if symbol not in _LEFT_OUT[self.recognizer])
        if byte_coding == "byte_bpe":
            data = _decode_byte_bpe(data.decode())
        if self.recognizer == "ctc":
            text = data.decode(errors="ignore").lstrip(" ")
        else:
            text = _remove_spaces(data).lstrip(" ")
        if self.recognizer == "online":
            # The package 2.0.1 drops one leading punctuation character, which the sources of 1.13.4 do not; its Python
            # front end strips both ends.
            text = _LEADING_PUNCTUATION.sub("", text[:1]) + text[1:]
            text = text.strip()
        return text, [_printable(symbol) for symbol in symbols]


def _symbol(piece: str, byte_coding: ByteCoding) -> bytes:
    if byte_coding == "fallback" and (match := _BYTE.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    if byte_coding != "byte_bpe" and piece.startswith(MARK):
        piece = " " + piece[1:]
    return piece.encode()


def _printable(symbol: bytes) -> str:
    if len(symbol) == 1 and not 0x20 <= symbol[0] <= 0x7E:
        return f"<0x{symbol[0]:X}>"
    return symbol.decode()


def _remove_spaces(data: bytes) -> str:
    """RemoveSpaceBetweenCjk, then RemoveInvalidUtf8Sequences: drops spaces between CJK and before punctuation."""
    characters = data.decode(errors="surrogateescape")
    if len(characters) < 2:
        return data.decode(errors="ignore")
    # Every byte that does not decode becomes one U+FFFD, not one per sequence as Python's "replace" has it.
    text = re.sub("[\udc80-\udcff]", "\ufffd", characters)
    return _DROPPED_SPACE.sub("", text)


def _decode_byte_bpe(text: str) -> bytes:
    """DecodeByteBpe: stand-ins to bytes; "▁" is a space where the byte before it is printable ASCII."""
    out = bytearray()
    for word in _WORDS_AND_OTHERS.findall(text):
        if word == MARK:
            if out and out[-1] != 0x20 and 0x20 <= out[-1] <= 0x7E:
                out.append(0x20)
        elif word in _BYTE_OF:
            out.append(_BYTE_OF[word])
        elif 0x20 <= word.encode()[0] <= 0x7E:
            out += word.encode()
    return bytes(out)
