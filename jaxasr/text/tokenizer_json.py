"""Pieces to text as a tokenizer.json says: by the decoders of the package tokenizers, one after the other.

Source: Hugging Face, tokenizers 0.23, src/decoders and src/pre_tokenizers/metaspace.rs; transformers 5.24.0,
tokenization_utils_tokenizers.py, `_decode` with skip_special_tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Protocol

from jaxasr.configuration import Table
from jaxasr.text.tokens import MARK, ByteCoding

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Spaces that `clean_up` drops: before these, and around a lone apostrophe.
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaspaceConfig:
    """`mark` is a space; with `prepended` the marks of the first piece are nothing, as texts were written with one."""

    kind: Literal["metaspace"] = "metaspace"
    mark: str = MARK
    prepended: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplaceConfig:
    """Every `pattern` in a piece is `content`."""

    kind: Literal["replace"] = "replace"
    pattern: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteFallbackConfig:
    """Runs of `<0x00>` to `<0xFF>` are the characters of these bytes, or as many U+FFFD where they are none."""

    kind: Literal["byte_fallback"] = "byte_fallback"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """All pieces are one, with `separator` between them."""

    kind: Literal["fuse"] = "fuse"
    separator: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripConfig:
    """A piece loses at most `start` times `content`, one character, at its begin, and `stop` times at its end."""

    kind: Literal["strip"] = "strip"
    content: str = " "
    start: int = 0
    stop: int = 0

    def __post_init__(self) -> None:
        if len(self.content) != 1 or self.start < 0 or self.stop < 0:
            raise ValueError("content must be one character, start and stop numbers of them")


class DecoderConfig(Protocol):
    """What a decoder's configuration answers."""

    @property
    def kind(self) -> str: ...


Decoder = Callable[[list[str]], list[str]]


def _metaspace(config: MetaspaceConfig, pieces: list[str]) -> list[str]:
    first = "" if config.prepended else " "
    return [piece.replace(config.mark, first if number == 0 else " ") for number, piece in enumerate(pieces)]


def _replace(config: ReplaceConfig, pieces: list[str]) -> list[str]:
    return [piece.replace(config.pattern, config.content) for piece in pieces]


def _byte_fallback(config: ByteFallbackConfig, pieces: list[str]) -> list[str]:
    joined: list[str] = []
    run = bytearray()
    for piece in (*pieces, ""):
        if match := _BYTE.fullmatch(piece):
            run.append(int(match[1], 16))
            continue
        if run:
            joined.append(_characters(run))
            run.clear()
        joined.append(piece)
    return joined[:-1]


def _characters(run: bytearray) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


def _fuse(config: FuseConfig, pieces: list[str]) -> list[str]:
    return [config.separator.join(pieces)]


def _strip(config: StripConfig, pieces: list[str]) -> list[str]:
    begin = re.compile(rf"{re.escape(config.content)}{{0,{config.start}}}")
    end = re.compile(rf"{re.escape(config.content)}{{0,{config.stop}}}\Z")
    stripped = []
    for piece in pieces:
        piece = begin.sub("", piece, count=1)
        stripped.append(end.sub("", piece, count=1) if config.stop else piece)
    return stripped


# Every decoder by its `kind`: made as (config), from the pieces before it to those after it.
DECODERS: Table[Decoder] = Table(
    {
        "metaspace": (MetaspaceConfig, lambda config: partial(_metaspace, config)),
        "replace": (ReplaceConfig, lambda config: partial(_replace, config)),
        "byte_fallback": (ByteFallbackConfig, lambda config: partial(_byte_fallback, config)),
        "fuse": (FuseConfig, lambda config: partial(_fuse, config)),
        "strip": (StripConfig, lambda config: partial(_strip, config)),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerJsonConfig:
    """How a tokenizer.json joins pieces: those not `silent` go through the `decoders` in their order.

    `silent`: special tokens, printed as nothing. `clean_up`: spaces before some English punctuation are dropped
    (clean_up_tokenization_spaces).
    """

    kind: Literal["tokenizer_json"] = "tokenizer_json"
    decoders: tuple[Annotated[DecoderConfig, DECODERS], ...] = ()
    silent: tuple[str, ...] = ()
    clean_up: bool = False


class TokenizerJsonSpelling:
    """Pieces to text and printable tokens, as Transformers' `decode(..., skip_special_tokens=True)` prints them."""

    def __init__(self, config: TokenizerJsonConfig) -> None:
        self.config = config
        self._decoders: list[Any] = [DECODERS.make(decoder) for decoder in config.decoders]
        self._silent = frozenset(config.silent)

    def __call__(self, pieces: Sequence[str], byte_coding: ByteCoding = "none") -> tuple[str, list[str]]:
        """The text of `pieces` and the printable form of each, "▁" as a space; decoders know bytes themselves."""
        tokens = ["" if piece in self._silent else piece.replace(MARK, " ") for piece in pieces]
        decoded = [piece for piece in pieces if piece not in self._silent]
        for decode in self._decoders:
            decoded = decode(decoded)
        text = "".join(decoded)
        if self.config.clean_up:
            for spaced in _CLEANED:
                text = text.replace(spaced, spaced.strip())
        return text, tokens
