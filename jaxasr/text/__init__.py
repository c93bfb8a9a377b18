"""Token ids to text: the table of spellings, one file a publisher, and what the other rooms ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxasr.configuration import Table
from jaxasr.text.funasr import FunasrConfig, FunasrSpelling
from jaxasr.text.nemo import NemoConfig, NemoSpelling
from jaxasr.text.sherpa_onnx import SherpaOnnxConfig, SherpaOnnxSpelling
from jaxasr.text.tokenizer_json import TokenizerJsonConfig, TokenizerJsonSpelling
from jaxasr.text.tokens import ByteCoding, Span


class SpellingConfig(Protocol):
    """What a spelling's configuration answers."""

    @property
    def kind(self) -> str: ...


class Spelling(Protocol):
    """The rules by which a publisher's runtime joins pieces."""

    def __call__(self, pieces: Sequence[str], byte_coding: ByteCoding = "none") -> tuple[str, list[str]]:
        """The text of `pieces`, and the printable form of each: one per piece, so that ids and times stay aligned."""
        ...


@runtime_checkable
class PartedSpelling(Spelling, Protocol):
    """A spelling that may look at parts of a recording one by one: a window, or what a call of a stream has found."""

    @property
    def apart(self) -> bool:
        """Whether the parts have texts of their own, which are then joined."""
        ...


@runtime_checkable
class TimedSpelling(Spelling, Protocol):
    """A spelling whose publisher moves tokens in time."""

    def timed(self, pieces: Sequence[str], spans: Sequence[Span]) -> list[Span]:
        """Where each of `pieces` begins and how long it lasts, from where the search found them; one span a piece."""
        ...


# Every spelling by its `kind`: made as (config).
SPELLINGS: Table[Spelling] = Table(
    {
        "sherpa_onnx": (SherpaOnnxConfig, SherpaOnnxSpelling),
        "nemo": (NemoConfig, NemoSpelling),
        "tokenizer_json": (TokenizerJsonConfig, TokenizerJsonSpelling),
        "funasr": (FunasrConfig, FunasrSpelling),
    }
)
