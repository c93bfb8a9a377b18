"""The vocabulary in a tokenizer.json, and how its pieces are spelt.

Pieces are those of the model, a BPE or a unigram one, and the tokens added to it. Text is encoded by nobody here, so
that merges and scores are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxasr.configuration import from_mapping
from jaxasr.convert.formats.json_objects import read_object
from jaxasr.errors import CheckpointError, ConfigError, listing, printable
from jaxasr.text.tokenizer_json import (
    ByteFallbackConfig,
    DecoderConfig,
    FuseConfig,
    MetaspaceConfig,
    ReplaceConfig,
    StripConfig,
    TokenizerJsonConfig,
)
from jaxasr.text.tokens import TokenTable

BLANK = "<blk>"  # where the tokenizer has no token with the blank's id

_SHOWN = 80  # characters of a foreign value
_DEPTH_LIMIT = 8  # of sequences of decoders


def vocabulary(
    path: Path, config: Mapping[str, Any], size: int, blank_id: int, notes: list[str]
) -> tuple[TokenTable, TokenizerJsonConfig]:
    """The table of `size` ids, and how its pieces are spelt.

    `config`: tokenizer_config.json, empty where there is none. `notes` gets a line for tokens beyond the model's
    vocabulary, which it never says. CheckpointError for a tokenizer that does not fit, or is not known.
    """
    whole = read_object(path)
    pieces: dict[int, str] = {}
    special: set[str] = set(_special(config))
    for token_id, piece in _model_pieces(path, whole.get("model")):
        if pieces.setdefault(token_id, piece) != piece:
            raise CheckpointError(f"{path}: gives two tokens the id {token_id}")
    for token in whole.get("added_tokens") or []:
        match token:
            case {"id": int(token_id), "content": str(piece)} if token_id >= 0:
                # Of the model's own tokens, some are named again to say that they are special.
                if pieces.setdefault(token_id, piece) != piece:
                    raise CheckpointError(f"{path}: gives two tokens the id {token_id}")
                special |= {piece} if token.get("special") is True else set()
            case _:
                raise CheckpointError(f"{path}: an added token is {printable(repr(token), _SHOWN)}, not known here")
    if beyond := sorted(token_id for token_id in pieces if token_id >= size):
        unheard = listing((pieces[token_id] for token_id in beyond), 3)
        notes.append(f"the model has no output for {unheard} of the tokenizer")
    pieces.setdefault(blank_id, BLANK)
    if missing := [token_id for token_id in range(min(size, len(pieces) + 1)) if token_id not in pieces]:
        raise CheckpointError(
            f"{path}: has no token with the id {missing[0]}, but the model has {size:,} outputs: give the "
            "tokenizer.json that belongs to it as tokens"
        )
    table = TokenTable(tuple(pieces[token_id] for token_id in range(size)))
    for piece in table.pieces:
        if piece != " " and (not piece or "\n" in piece or piece != piece.strip(" \t\r\v\f")):
            raise CheckpointError(f"{path}: the token {piece[:_SHOWN]!r} cannot be written to a tokens.txt")
    clean_up = config.get("clean_up_tokenization_spaces") is True and whole["model"].get("type") != "BPE"
    silent = tuple(piece for piece in table.pieces if piece in special)
    return table, TokenizerJsonConfig(decoders=tuple(_decoders(path, whole, 0)), silent=silent, clean_up=clean_up)


def _special(config: Mapping[str, Any]) -> Iterator[str]:
    """The tokens that tokenizer_config.json names for a purpose: they are special whatever tokenizer.json says."""
    for key, value in config.items():
        if key in ("unk_token", "pad_token", "bos_token", "eos_token", "sep_token", "cls_token", "mask_token"):
            token = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(token, str):
                yield token


def _model_pieces(path: Path, model: Any) -> Iterator[tuple[int, str]]:
    """(id, piece) of the model's own vocabulary: ids by piece, or pieces with their scores in the order of ids."""
    match model:
        case {"vocab": dict(ids)} if all(type(token_id) is int and token_id >= 0 for token_id in ids.values()):
            for piece, token_id in ids.items():
                yield token_id, piece
        case {"vocab": list(rows)} if all(isinstance(row, list) and row and isinstance(row[0], str) for row in rows):
            yield from ((token_id, row[0]) for token_id, row in enumerate(rows))
        case _:
            raise CheckpointError(f"{path}: has no model with a vocab: it is no tokenizer.json that jaxasr knows")


def _decoders(path: Path, holder: Mapping[str, Any], depth: int) -> Iterator[DecoderConfig]:
    """The decoders that a tokenizer.json, or a sequence in it, describes; without any, tokens stand apart."""
    described = holder.get("decoder")
    match described:
        case None:
            yield FuseConfig(separator=" ")
        case {"type": "Sequence", "decoders": list(parts)} if depth < _DEPTH_LIMIT:
            for part in parts:
                yield from _decoders(path, {"decoder": part}, depth + 1) if part is not None else ()
        case {"type": "Metaspace", "replacement": str(mark), **options} if len(mark) == 1:
            # Before the schemes there was a flag.
            scheme = options.get("prepend_scheme", "always" if options.get("add_prefix_space", True) else "never")
            yield MetaspaceConfig(mark=mark, prepended=scheme != "never")
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            yield ReplaceConfig(pattern=pattern, content=content)
        case {"type": "ByteFallback"}:
            yield ByteFallbackConfig()
        case {"type": "Fuse"}:
            yield FuseConfig()
        case {"type": "Strip", **options}:
            known = {key: options[key] for key in ("content", "start", "stop") if key in options}
            try:
                yield from_mapping(StripConfig, known, "a decoder")
            except ConfigError as error:
                raise CheckpointError(f"{path}: {printable(str(error), _SHOWN)}") from None
        case _:
            raise CheckpointError(
                f"{path}: a decoder is {printable(repr(described), _SHOWN)}; known are Sequence, Metaspace, Replace "
                "of a text, ByteFallback, Fuse and Strip"
            )
