"""Decoders of tokenizer.json against what the package tokenizers printed (transformers-tiny/decoders.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import DATA
from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.convert.hugging_face.tokenizers import vocabulary
from jaxasr.errors import CheckpointError
from jaxasr.text.tokenizer_json import FuseConfig, StripConfig, TokenizerJsonConfig, TokenizerJsonSpelling

CASES = json.loads((DATA / "transformers-tiny/decoders.json").read_text("utf-8"))


def read(tmp_path: Path, size: int = 2, blank: int = 1, config: dict[str, Any] | None = None, **whole: Any) -> Any:
    """The table and spelling of a tokenizer.json with these parts, and the notes."""
    notes: list[str] = []
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, **whole}), "utf-8")
    return (*vocabulary(path, config or {}, size, blank, notes), notes)


def test_decoders_print_what_the_package_prints(tmp_path: Path) -> None:
    assert len(CASES) == 48
    for case in CASES:
        _, config, _ = read(tmp_path, decoder=case["decoder"])
        assert from_mapping(TokenizerJsonConfig, to_mapping(config), "config.yaml") == config
        text, tokens = TokenizerJsonSpelling(config)(case["tokens"])
        assert text == case["text"], case
        assert len(tokens) == len(case["tokens"])


def test_special_tokens_are_silent_and_keep_their_place(tmp_path: Path) -> None:
    added = [{"id": 0, "content": "a", "special": True}, {"id": 2, "content": "▁c", "special": False}]
    table, config, notes = read(tmp_path, 3, added_tokens=added, config={"pad_token": {"content": "b"}})
    assert table.pieces == ("a", "b", "▁c") and config.silent == ("a", "b") and not notes
    assert TokenizerJsonSpelling(config)(["a", "▁c", "b", "▁c"]) == ("▁c ▁c", ["", " c", "", " c"])


def test_spaces_are_cleaned_up_where_that_is_asked_for_and_done(tmp_path: Path) -> None:
    asked = {"clean_up_tokenization_spaces": True}
    assert not read(tmp_path, config=asked)[1].clean_up  # of a BPE model Transformers does not
    unigram = {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}
    _, config, _ = read(tmp_path, model=unigram, config=asked)
    assert config.clean_up
    spelling = TokenizerJsonSpelling(config)
    assert spelling(["well", ",", "it", "'s", "so", ".", "do", "n't", "?", "rock", "'", "roll"])[0] == (
        "well, it's so. don't? rock'roll"
    )


def test_what_does_not_fit_is_refused_or_said(tmp_path: Path) -> None:
    table, _, notes = read(tmp_path, 1, 0, model={"vocab": {"a": 0, "x": 1}})
    assert table.pieces == ("a",) and notes == ["the model has no output for x of the tokenizer"]
    assert read(tmp_path, 3, 2)[0].pieces == ("a", "b", "<blk>")
    for whole, size, said in (
        ({}, 4, "has no token with the id 3, but the model has 4 outputs|has no token with the id 2"),
        ({}, 10**12, "has no token with the id 2, but the model has 1,000,000,000,000 outputs"),
        ({"model": {"vocab": {"a": 0, "b": 0}}}, 2, "gives two tokens the id 0"),
        ({"added_tokens": [{"id": 1, "content": "x"}]}, 2, "gives two tokens the id 1"),
        ({"added_tokens": [{"id": -1, "content": "x"}]}, 2, "an added token is .* not known here"),
        ({"model": {"vocab": {"a": "0"}}}, 2, "has no model with a vocab"),
        ({"model": None}, 2, "has no model with a vocab"),
        ({"model": {"vocab": {"a": 0, "b\n": 1}}}, 2, r"the token 'b\\\\?n' cannot be written"),
        ({"decoder": {"type": "ByteLevel"}}, 2, "a decoder is .*ByteLevel.*; known are Sequence"),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": ""}}, 2, "a decoder is .*Regex"),
        ({"decoder": {"type": "Strip", "content": "ab", "start": 1}}, 2, "content must be one character"),
        ({"decoder": {"type": "Strip", "content": " ", "start": "1"}}, 2, "expected int"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path, size, size - 1 if size == 4 else 0, **whole)
    nested: Any = {"type": "Fuse"}
    for _ in range(20):
        nested = {"type": "Sequence", "decoders": [nested]}
    with pytest.raises(CheckpointError, match="a decoder is"):
        read(tmp_path, decoder=nested)


def test_a_strip_takes_no_more_than_it_says() -> None:
    strip = StripConfig(content=" ", start=1, stop=2)
    spelling = TokenizerJsonSpelling(TokenizerJsonConfig(decoders=(FuseConfig(), strip)))
    assert spelling(["  a b", "   "])[0] == " a b "
    with pytest.raises(ValueError, match="one character"):
        StripConfig(content="")
