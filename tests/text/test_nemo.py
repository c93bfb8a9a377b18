"""NeMo's spelling: SentencePiece's joint decoding, labels, aggregates, and marks without the space before them."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from jaxasr.convert.formats.sentencepiece import parse_model
from jaxasr.convert.nemo.tokenizers import spelling_of
from jaxasr.text.nemo import NemoConfig, NemoSpelling

TEXTS = ["the cat sat on the mat, and the rat ran.", "is that so? yes: it is", "nineteen ninety one"]


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=model, hard_vocab_limit=False, minloglevel=2, **options
    )
    return model.getvalue()


MODELS = {
    "unigram": {"model_type": "unigram", "vocab_size": 60},
    "bpe": {"model_type": "bpe", "vocab_size": 60},
    "bytes": {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True},
    "kept spaces": {"model_type": "bpe", "vocab_size": 60, "remove_extra_whitespaces": False},
    "no mark": {"model_type": "bpe", "vocab_size": 60, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "unknown": {"model_type": "bpe", "vocab_size": 60, "unk_surface": "<?>", "unk_piece": "[UNK]"},
}


@pytest.mark.parametrize("name", MODELS)
def test_pieces_are_joined_as_sentencepiece_does(name: str) -> None:
    data = train(**MODELS[name])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    model = parse_model(data, "tokenizer.model")
    assert list(model.pieces) == [theirs.id_to_piece(number) for number in range(theirs.get_piece_size())]
    spell = NemoSpelling(spelling_of(model, "tokenizer.model"))
    coding = "fallback" if name == "bytes" else "none"
    generator = random.Random(1)
    marks = [piece for piece in model.pieces if piece.startswith("▁")]
    for number in range(300):
        pool = marks[:3] if number % 3 == 0 else list(model.pieces)  # several marks at the begin, too
        pieces = [*generator.choices(pool, k=number % 4), *generator.choices(model.pieces, k=number % 9)]
        text, tokens = spell(pieces, coding)
        assert text == theirs.decode_pieces(pieces), pieces
        assert len(tokens) == len(pieces)


def test_marks_of_the_vocabulary_lose_one_space_before_them() -> None:
    spell = NemoSpelling(NemoConfig(tokenizer="characters", punctuation=".?-]"))
    assert spell(list("a . b ? c  ] , d -"))[0] == "a. b? c ] , d-"
    assert NemoSpelling(NemoConfig(tokenizer="characters"))(list("a ."))[0] == "a ."


def test_labels_that_are_printed_as_nothing() -> None:
    """NeMo's text of a TDT model with characters lacks the last ones: of "jyyayp" it prints "jap"."""
    spell = NemoSpelling(NemoConfig(tokenizer="characters", silent=("x", "y")))
    assert spell(list("jyyayp")) == ("jap", ["j", "", "", "a", "", "p"])


@pytest.mark.parametrize(
    ("rule", "begins", "lasting", "found"),
    [  # what _refine_timestamps_tdt and _refine_timestamps of NeMo 3.0.0 make of these
        ("moved", [0, 2, 7, 12, 13, 15, 30, 31], [1, 3, 1, 0, 2, 4, 2, 1], "0+1 2+3 5+0 5+0 13+2 15+4 19+0 31+1"),
        ("short", [0, 0, 2, 7, 12, 13, 15, 30], [0, 2, 5, 5, 1, 2, 15, 1], "0+0 0+2 2+0 7+0 12+1 13+2 15+0 30+1"),
    ],
)
def test_times_of_marks_as_nemo_has_them(rule: Any, begins: list[int], lasting: list[int], found: str) -> None:
    pieces, spans = ["▁,", "▁a", ",", "▁?", "b", "it's", "▁.", "▁c"], list(zip(begins, lasting, strict=True))
    spelling = NemoConfig(punctuation=",.?", punctuation_times=rule)
    assert " ".join(f"{begin:.0f}+{long:.0f}" for begin, long in NemoSpelling(spelling).timed(pieces, spans)) == found
    assert NemoSpelling(NemoConfig(punctuation=",.?")).timed(pieces, spans) == spans


def test_labels_are_joined_as_they_are_and_aggregates_keep_their_first_space() -> None:
    assert NemoSpelling(NemoConfig(tokenizer="characters"))([" ", "a", "▁"]) == (" a▁", [" ", "a", "▁"])
    spell = NemoSpelling(NemoConfig(tokenizer="aggregate"))
    assert spell(["▁the", "▁cat", "<unk>", "s"]) == (" the cat<unk>s", [" the", " cat", "<unk>", "s"])


def test_an_unknown_piece_is_printed_between_spaces() -> None:
    spell = NemoSpelling(NemoConfig(silent=("<s>",)))
    assert spell(["<s>", "▁a", "<unk>", "▁b"]) == ("a ⁇  b", ["", " a", " ⁇ ", " b"])
    assert spell([]) == ("", [])


@pytest.mark.parametrize(
    "name",
    ["conformer-ctc-tiny", "conformer-transducer-tiny", "fastconformer-tdt-tiny", "fastconformer-streaming-tiny"],
)
def test_texts_of_the_reference_models(shared: Path, name: str) -> None:
    """Every text that NeMo printed for tokens that are known, by greedy search and by beams."""
    import numpy as np

    folder = shared / "golden" / name
    texts = json.loads((folder / "texts.json").read_text("utf-8"))
    stored = np.load(folder / "golden.npz")
    spell = NemoSpelling(NemoConfig())
    compared = 0
    for head, prefix in (("transducer_head", "rnnt"), ("ctc_head", "ctc"), ("", "ctc"), ("", "rnnt")):
        printed = texts.get(head, {} if head else texts).get("files_batch1", {})
        for clip, text in printed.items():
            if f"{clip}/{prefix}_ids" in stored:
                pieces = [texts["vocabulary"][number] for number in stored[f"{clip}/{prefix}_ids"]]
                assert spell(pieces)[0] == text
                compared += 1
    for decoded in itertools.chain(*(texts.get(key, {}).values() for key in ("decode_single", "decode_batch"))):
        for clip in decoded.values():
            if "text" in clip:
                pieces = [texts["vocabulary"][number] for number in clip["ids"]]
                assert spell(pieces)[0] == clip["text"]
                compared += 1
    assert compared >= 5
