"""Byte-pair encoding from a token table alone, against SentencePiece on the same pieces."""

from __future__ import annotations

import io
import random

import pytest
import sentencepiece

from jaxasr.errors import ConfigError
from jaxasr.text.encoding import TextEncoder
from jaxasr.text.tokens import TokenTable
from jaxasr.training.vocabulary import VocabularyConfig, make_vocabulary

TEXTS = [
    "THE CAT SAT ON THE MAT AND THE RAT RAN",
    "SEVENTY SEVEN SEVENTEEN NINETEEN NINETY",
    "A B C THAT AND THIS ARE LETTERS IN THE TABLE",
]


def test_ids_are_those_of_sentencepiece() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=60,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = ["<unk>", *(theirs.id_to_piece(number) for number in range(1, theirs.get_piece_size()))]
    encode = TextEncoder(TokenTable(tuple(pieces)))
    generator = random.Random(1)
    letters = sorted(set("".join(TEXTS)) - {" "})
    words = [word for text in TEXTS for word in text.split()]
    words += ["".join(generator.choices(letters, k=generator.randint(1, 9))) for _ in range(300)]
    for word in words:
        assert encode(word) == (theirs.encode(word), ""), word
    assert encode(" ".join(words))[0] == theirs.encode(" ".join(words))


def test_characters_without_a_table_entry_are_named() -> None:
    encode = TextEncoder(TokenTable(("<blk>", "▁", "A", "B", "▁A")))
    assert encode("A QAZ") == ([4, 1, 2], "QZ")


def test_a_table_without_marks_drops_the_spaces() -> None:
    assert TextEncoder(TokenTable(("<blk>", "今", "日")))("今日 今") == ([1, 2, 1], "")


def test_vocabularies_hold_blank_unknown_and_the_pieces() -> None:
    table = make_vocabulary(TEXTS, VocabularyConfig("bpe", 40))
    assert table.pieces[:2] == ("<blk>", "<unk>") and len(table) == 40
    ids, missing = TextEncoder(table)(" ".join(TEXTS))
    assert not missing and "".join(table[i] for i in ids).replace("▁", " ").strip() == " ".join(TEXTS)
    characters = make_vocabulary(["AB BA"], VocabularyConfig("characters"))
    assert characters.pieces == ("<blk>", "<unk>", "▁", "A", "B")


def test_no_text_makes_no_vocabulary() -> None:
    with pytest.raises(ConfigError, match="no text"):
        make_vocabulary(["", " "], VocabularyConfig())


def test_words_go_on_where_pieces_say_so() -> None:
    """FunASR's tables: the fewest pieces of a word, Chinese characters alone, whatever stands beside them."""
    pieces = ("<blank>", "th@@", "e", "t@@", "h@@", "he", "the@@", "re", "你", "好", "<unk>", "r@@")
    encode = TextEncoder(TokenTable(pieces))

    def spelt(text: str) -> list[str]:
        return [pieces[token] for token in encode(text)[0]]

    assert spelt("there the") == ["the@@", "re", "th@@", "e"] and spelt("你the好") == ["你", "th@@", "e", "好"]
    assert encode("thx 你们") == ([8], "htx们") and encode("") == ([], "")
