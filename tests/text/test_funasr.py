"""FunASR's spelling: every row of the reference data, and the rules by themselves where that is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxasr.text.funasr import FunasrConfig, FunasrSpelling, spell_with_times

spell = FunasrSpelling(FunasrConfig())


def test_every_row_of_the_reference(shared: Path) -> None:
    rows = json.loads((shared / "golden/paraformer-tiny/postprocess.json").read_text(encoding="utf-8"))["cases"]
    assert len(rows) == 51
    for row in rows:
        assert spell(row["tokens"])[0] == row["text"], row["tokens"]
        timed = row["with_timestamps"]
        text, spans = spell_with_times(row["tokens"], [(begin, end) for begin, end in timed["timestamps_in"]])
        assert (text, [list(span) for span in spans]) == (timed["text"], timed["timestamps_out"]), row["tokens"]
        assert FunasrSpelling(FunasrConfig(spaces="all"))(row["tokens"])[0] == timed["text"]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ("今 天 好", "今天好"),
        ("hel@@ lo wor@@ ld", "hello world"),
        ("我 在 i b m 上 班", "我在IBM上班"),
        ("hello 你 world 好", "hello你world好"),
        ("th@@ 你 e", "你the"),
        ("你 th@@", "你"),
        ("<s> <unk> 你 </s>", "你"),
        ("hello . 你", "hello 你"),
        ("don't go", "don't go"),
        ("a你 b", "a你 b"),
        ("a你 b 好", "a你b好"),
        ("", ""),
    ],
)
def test_a_rule(pieces: str, text: str) -> None:
    assert spell(pieces.split())[0] == text


def test_there_is_a_token_for_each_piece_as_it_is_printed() -> None:
    assert spell(["hel@@", "lo", "我", "i", "b", "<unk>", "x"]) == (
        "hello我IBX",
        ["hel", "lo", "我", "I", "B", "", "X"],
    )
    assert spell(["un@@", "x", "y"]) == ("unx y", ["un", "x", "y"])
