"""Spelling against sherpa-onnx: stored results of its package for odd tables, and every run of the goldens.

sherpa_onnx_spelling.jsonl was made by sherpa-onnx 2.0.1 itself: models that emit given ids, with token tables of random
pieces (marks, spaces, punctuation, CJK, accents, byte-fallback pieces, byte-level BPE). One case per line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from jaxasr.text.sherpa_onnx import SherpaOnnxConfig, SherpaOnnxSpelling
from jaxasr.text.tokens import ByteCoding, TokenTable

Recognizer = Literal["offline_transducer", "ctc", "online"]
STORED = (Path(__file__).parent / "sherpa_onnx_spelling.jsonl").read_text(encoding="utf-8")
CASES = [json.loads(line) for line in STORED.split("\n") if line]
RECOGNIZERS: tuple[Recognizer, ...] = ("offline_transducer", "ctc", "online")


def spell(pieces: list[str], recognizer: Recognizer, byte_coding: ByteCoding = "none") -> tuple[str, list[str]]:
    return SherpaOnnxSpelling(SherpaOnnxConfig(recognizer=recognizer))(pieces, byte_coding)


@pytest.mark.parametrize("recognizer", RECOGNIZERS)
def test_odd_tables_are_spelt_as_sherpa_onnx_does(recognizer: Recognizer) -> None:
    assert {case["byte_coding"] for case in CASES} == {"none", "fallback", "byte_bpe"}
    for case in CASES:
        text, tokens = spell(case["pieces"], recognizer, case["byte_coding"])
        assert text == case["text"][f"sherpa_onnx_{recognizer}"], case["pieces"]
        assert tokens == case["tokens"], case["pieces"]


# Seen by running sherpa-onnx 2.0.1, as the stored cases.
@pytest.mark.parametrize(
    ("pieces", "transducer", "ctc", "online"),
    [
        (
            "▁HE LLO ▁ ' S ▁, ▁世 ▁界 ▁。 ▁WORLD",
            "HELLO'S, 世界。 WORLD",
            "HELLO 'S , 世 界 。 WORLD",
            "HELLO'S, 世界。 WORLD",
        ),
        ("' S ▁B", "'S B", "'S B", "S B"),
        ("' ▁B", "' B", "' B", "B"),
        ("▁ ▁ 。 世 ▁", "。世 ", "。世 ", "世"),
        ("- - A", "--A", "--A", "-A"),
        ("“ A ▁”", "“A ”", "“A ”", "“A ”"),
        ("A ▁ ▁", "A  ", "A  ", "A"),
        ("▁▁A ▁▁ B▁C", "▁A ▁B▁C", "▁A ▁B▁C", "▁A ▁B▁C"),
        ("▁", "", "", ""),
        ("▁!", "!", "!", ""),
        ("A <sos/eos> B", "A<sos/eos>B", "A<sos/eos>B", "A<sos/eos>B"),
        ("", "", "", ""),
    ],
)
def test_rules(pieces: str, transducer: str, ctc: str, online: str) -> None:
    texts = [spell(pieces.split(), recognizer)[0] for recognizer in RECOGNIZERS]
    assert texts == [transducer, ctc, online]


def test_tokens_stay_aligned_where_a_piece_is_left_out_of_the_text() -> None:
    pieces = ["A", "SIL", "</s>", "<unk>", "▁B"]
    assert spell(pieces, "ctc") == ("A<unk> B", ["A", "SIL", "</s>", "<unk>", " B"])
    assert spell(pieces, "online") == ("ASIL</s> B", ["A", "SIL", "</s>", "<unk>", " B"])


def test_bytes_of_a_cut_character() -> None:
    pieces = ["▁A", "<0xE4>", "<0xB8>", "B"]
    assert spell(pieces, "offline_transducer", "fallback")[0] == "A\ufffd\ufffdB"
    assert spell(pieces, "ctc", "fallback")[0] == "AB"
    assert spell(["<0xE4>", "<0xB8>", "<0x96>"], "online", "fallback")[0] == "世"
    # The leading zero is not matched by sherpa-onnx: the piece is printed as it is written.
    assert spell(["<0x0A>", "<0x41>"], "online", "fallback")[0] == "0x0A>A"
    # Without all 256 bytes in the table such pieces are plain text.
    assert spell(pieces, "ctc")[0] == "A<0xE4><0xB8>B"


@pytest.mark.parametrize(
    ("model", "recognizer"),
    [
        ("zipformer-tiny", "offline_transducer"),
        ("zipformer-ja-tiny", "offline_transducer"),
        ("zipformer-streaming-tiny", "online"),
        ("zipformer-ctc-tiny", "ctc"),
    ],
)
def test_every_run_of_the_goldens(shared: Path, model: str, recognizer: Recognizer) -> None:
    folder = shared / "golden" / model
    table = TokenTable.read(folder / "tokens.txt")
    piece_of = {spell([piece], recognizer)[1][0]: piece for piece in table.pieces}
    runs = json.loads((folder / "sherpa_onnx.json").read_text(encoding="utf-8"))["runs"]
    checked = 0
    for run, clips in runs.items():
        for clip, expected in clips.items():
            pieces = [piece_of[token] for token in expected["tokens"]]
            assert spell(pieces, recognizer) == (expected["text"], expected["tokens"]), (run, clip)
            checked += 1
    assert checked == 6 * len(runs) >= 18
