"""Vocabularies of .nemo archives: SentencePiece models, lists of labels, and aggregates of one vocabulary a language.

The blank, NeMo's last id, gets the last row of the table. What a SentencePiece model knows beside its pieces becomes
part of the spelling, so that the model itself is not needed any more.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxasr.convert.formats.sentencepiece import Kind, SentencePieceModel, parse_model, read_model
from jaxasr.convert.nemo.archive import Archive
from jaxasr.convert.nemo.settings import Section
from jaxasr.errors import CheckpointError, printable
from jaxasr.text.nemo import NemoConfig
from jaxasr.text.tokens import TokenTable

BLANK = "<blk>"

_ARTIFACT = "nemo:"  # begins the name of a member of the archive
# Tokens whose marks are no punctuation (NeMo, asr/parts/utils/tokenizer_utils.py): [CLS], <unk>, ##ing, ▁, spaces.
_SPECIAL = re.compile(r"\[.*\]$|<.*>$|##|▁|\s*$")


def vocabulary(
    archive: Archive, settings: Mapping[str, Any], given: Path | None, size: int
) -> tuple[TokenTable, NemoConfig]:
    """The table of `size` ids, blank included, and how its pieces are spelt.

    `given`: a SentencePiece model to take instead of the archive's. CheckpointError where there is none that fits.
    """
    section = Section(settings, "tokenizer")
    if given is not None:
        model = read_model(given)
        pieces, spelling = model.pieces, spelling_of(model, str(given))
    elif not section.values:
        pieces, spelling = tuple(_labels(settings)), NemoConfig(tokenizer="characters")
    elif section.text("type", "bpe").lower() == "agg":
        if "custom_tokenizer" in section.values:
            raise section.refuse("custom_tokenizer", "known are plain aggregates of SentencePiece models")
        pieces, spelling = _aggregate(archive, section), NemoConfig(tokenizer="aggregate")
    else:
        model, where = _model(archive, section)
        pieces, spelling = model.pieces, spelling_of(model, where)
    if len(pieces) + 1 != size:
        raise CheckpointError(
            f"the vocabulary has {len(pieces)} tokens, but the model emits {size - 1} beside its blank: give the "
            "tokenizer.model that belongs to it as tokens"
        )
    unwritable = [piece for piece in pieces if piece != " " and (not piece or piece != piece.strip(" \t\r\v\f\n"))]
    if unwritable:
        raise CheckpointError(f"the token {unwritable[0]!r} of the vocabulary cannot be written to a tokens.txt")
    marks = "".join(sorted(_punctuation(pieces)))
    return TokenTable((*pieces, BLANK)), dataclasses.replace(spelling, punctuation=marks)


def _labels(settings: Mapping[str, Any]) -> list[str]:
    """The characters of a model without a tokenizer, wherever its configuration lists them."""
    sections = [Section({"model": settings}, "model"), Section(settings, "decoder"), Section(settings, "joint")]
    for section, key in ((sections[1], "vocabulary"), (sections[0], "labels"), (sections[2], "vocabulary")):
        if labels := section.texts(key):
            return labels
    raise CheckpointError("model_config.yaml has neither a tokenizer nor labels: give a tokenizer.model as tokens")


def _aggregate(archive: Archive, section: Section) -> tuple[str, ...]:
    """The pieces of all languages, in the order of the configuration."""
    languages = section.section("langs")
    if not languages.values:
        raise section.refuse("langs", "an aggregate names the tokenizer of each language there")
    pieces: tuple[str, ...] = ()
    for language in languages.values:
        model, _ = _model(archive, languages.section(language))
        pieces += model.pieces
    return pieces


def _model(archive: Archive, section: Section) -> tuple[SentencePieceModel, str]:
    """The SentencePiece model that a tokenizer's mapping names, and where it lies."""
    kind = section.text("type", "bpe").lower()
    if kind != "bpe" or "custom_tokenizer" in section.values:
        key = "custom_tokenizer" if kind == "bpe" else "type"
        raise section.refuse(key, "known are bpe (SentencePiece), agg, and models of labels")
    path = section.text("model_path", "")
    name = path.removeprefix(_ARTIFACT)
    if name not in archive.texts:
        # `dir` and plain paths are those of the machine that trained; the file's own name ends in theirs.
        ends = [member for member in archive.texts if member.endswith("tokenizer.model")]
        if path.startswith(_ARTIFACT) or len(ends) != 1:
            raise section.refuse("model_path", "no such file lies in the archive; give a tokenizer.model as tokens")
        (name,) = ends
    where = f"{archive.path}: {printable(name, 80)}"
    return parse_model(archive.texts[name], where), where


def spelling_of(model: SentencePieceModel, where: str) -> NemoConfig:
    """How the pieces of one SentencePiece model are joined; CheckpointError for a way that is not known."""
    if model.marks_end_words:
        raise CheckpointError(f"{where}: marks the ends of words instead of their beginnings, which is not known here")
    unknown = [piece for piece, kind in zip(model.pieces, model.kinds, strict=True) if kind == Kind.UNKNOWN]
    return NemoConfig(
        tokenizer="sentencepiece",
        unknown=unknown[0] if unknown else "<unk>",
        unknown_text=model.unknown_text,
        silent=tuple(piece for piece, kind in zip(model.pieces, model.kinds, strict=True) if kind == Kind.CONTROL),
        leading_marks="all" if model.drops_spaces else "first" if model.adds_mark else "none",
    )


def _punctuation(pieces: Sequence[str]) -> set[str]:
    """The punctuation marks that tokens hold, but for tokens that are special as a whole or begin a word."""
    return {
        character
        for piece in pieces
        if not _SPECIAL.match(piece)
        for character in piece
        if unicodedata.category(character).startswith("P")
    }
