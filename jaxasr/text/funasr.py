"""Pieces to text, as FunASR 1.4 spells them (utils/postprocess_utils.py, sentence_postprocess).

Chinese characters stand alone, English words are parted by spaces, and "@@" at the end of a piece joins it to the next.
Three rules are the publisher's own and kept: of a text with both scripts a Chinese character removes whatever stands
before it where the last piece that was understood is a word; pieces that end in "@@" are kept across Chinese
characters; and those that wait at the end are lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxasr.text.tokens import ByteCoding

Span = tuple[int, int]  # from, to, in milliseconds

_DROPPED = frozenset({"<s>", "</s>", "<unk>", "<OOV>"})
_SPECIAL = (" ", "</s>", "<s>", "<unk>", "<OOV>")  # what pieces are looked at without
_JOINT = "@@"
_SPACE = " "


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunasrConfig:
    """Options of FunASR's spelling.

    `calls`: "apart" makes a text of what each call of a stream has found, as FunASR does, so that spaces and pieces at
    their edges are lost; "together" one of all tokens.
    `spaces`: "words" parts words by them; "all" also Chinese characters, as FunASR prints a text that has timestamps.
    """

    kind: Literal["funasr"] = "funasr"
    calls: Literal["together", "apart"] = "together"
    spaces: Literal["words", "all"] = "words"


class _Item(NamedTuple):
    """An element of the text, a space included; `pieces`: the numbers of those that it is made of; its `span`."""

    text: str
    pieces: tuple[int, ...] = ()
    span: Span | None = None


class FunasrSpelling:
    """Pieces to text and printable tokens, as FunASR's `generate` prints them."""

    def __init__(self, config: FunasrConfig) -> None:
        self.config = config

    @property
    def apart(self) -> bool:
        """Whether the parts of a recording have texts of their own."""
        return self.config.calls == "apart"

    def __call__(self, pieces: Sequence[str], byte_coding: ByteCoding = "none") -> tuple[str, list[str]]:
        """The text of `pieces`, and each as it appears there: without "@@", letters of an abbreviation in capitals."""
        items = _items(pieces, None)
        tokens = ["" if piece in _DROPPED else piece.replace(_JOINT, "") for piece in pieces]
        for item in items:
            if len(item.pieces) > 1 and item.text == "".join(tokens[i] for i in item.pieces).upper():
                for i in item.pieces:
                    tokens[i] = tokens[i].upper()
        if self.config.spaces == "all":
            return _spaced(items), tokens
        return "".join(item.text for item in items).strip(), tokens


def spell_with_times(pieces: Sequence[str], spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """FunASR's text with timestamps, all words parted by spaces, and the span of each word that has one.

    `spans`: of the pieces that are left without `<s>`, `</s>`, `<unk>` and `<OOV>`, one each.
    """
    items = _items(pieces, spans)
    return _spaced(items), [item.span for item in items if item.span is not None]


def _spaced(items: Sequence[_Item]) -> str:
    """The text with a space between all words and characters."""
    return " ".join(item.text for item in items if item.text != _SPACE).strip()


def _items(pieces: Sequence[str], spans: Sequence[Span] | None) -> list[_Item]:
    kept = [i for i, piece in enumerate(pieces) if piece not in _DROPPED]
    bare = [_bare(pieces[i]) for i in kept]
    if bare and all(map(_compares_as_chinese, bare)):
        times: Sequence[Span | None] = spans or [None] * len(kept)
        return [_Item(pieces[i].replace(_SPACE, ""), (i,), time) for i, time in zip(kept, times, strict=True)]
    # Of a text that is English alone whole pieces are looked at, so that a letter before a Chinese one makes a word.
    english = bool(bare) and all(map(_is_letter, bare))
    return _abbreviated(_parted(pieces, kept, spans, english))


def _parted(pieces: Sequence[str], kept: Sequence[int], spans: Sequence[Span] | None, english: bool) -> list[_Item]:
    """Words and characters with the spaces between them; `english`: every piece is a word."""
    items: list[_Item] = []
    word, members = "", list[int]()  # of pieces that end in "@@", and wait
    after_word = False
    span, open_span = None, False
    for place, i in enumerate(kept):
        piece = pieces[i]
        if spans is not None:
            # A span that a waiting piece has begun goes on, except over Chinese characters.
            span = spans[place] if span is None or not open_span else span
        bare = _bare(piece)
        if bare and all(map(_compares_as_chinese, bare)) and not english:
            if after_word:
                items.pop()
            items.append(_Item(piece, (i,), span))
            after_word = open_span = False
        elif _JOINT in piece:
            word, members = word + piece.replace(_JOINT, ""), [*members, i]
            after_word, open_span = False, True
            span = _until(span, spans, place)
        elif english or (bare and all(map(_is_letter, bare))):
            items += [_Item(word + piece, (*members, i), _until(span, spans, place)), _Item(_SPACE)]
            word, members = "", []
            after_word, open_span = True, False
        else:
            items.append(_Item(piece, (i,)))
    return items


def _until(span: Span | None, spans: Sequence[Span] | None, place: int) -> Span | None:
    return None if span is None or spans is None else (span[0], spans[place][1])


def _abbreviated(items: Sequence[_Item]) -> list[_Item]:
    """Single ASCII letters with one space between them become one word in capitals."""
    joined: list[_Item] = []
    place = 0
    while place < len(items):
        end = place
        if _is_single(items[place]):
            while end + 2 < len(items) and items[end + 1].text == _SPACE and _is_single(items[end + 2]):
                end += 2
        run = [item for item in items[place : end + 1] if item.text != _SPACE] if end > place else [items[place]]
        if len(run) > 1:
            first, last = run[0].span, run[-1].span
            span = None if first is None or last is None else (first[0], last[1])
            members = tuple(i for item in run for i in item.pieces)
            joined.append(_Item("".join(item.text for item in run).upper(), members, span))
        else:
            joined.append(run[0])
        place = end + 1
    return joined


def _is_single(item: _Item) -> bool:
    return len(item.text) == 1 and item.text.isascii() and item.text.isalpha()


def _bare(piece: str) -> str:
    for special in _SPECIAL:
        piece = piece.replace(special, "")
    return piece


def _compares_as_chinese(text: str) -> bool:
    """FunASR compares strings of any length so: their first characters nearly always decide."""
    return "\u4e00" <= text <= "\u9fff" or "0" <= text <= "9" or text == "@"


def _is_letter(text: str) -> bool:
    return (text.isalpha() and not _compares_as_chinese(text)) or text == "'"
