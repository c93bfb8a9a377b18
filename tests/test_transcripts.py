"""Words and segments follow the tokens and their times."""

from __future__ import annotations

import pytest

from jaxasr.transcripts import SEGMENT_COLUMNS
from spoken import ENGLISH, evenly, spoken


def test_words_begin_at_tokens_with_a_space_and_end_with_the_next_token() -> None:
    found = ENGLISH.words
    assert [ENGLISH.text[word.begin : word.end] for word in found] == ["HELLO", "WORLD", "NOW"]
    assert [word.start for word in found] == [0.2, 0.6, 2.4]
    assert [word.last for word in found] == [0.4, 0.68, 2.4]
    assert [word.stop for word in found] == pytest.approx([0.6, 1.18, 2.9])


def test_characters_of_unspaced_scripts_are_words_with_their_punctuation() -> None:
    said = evenly(["今", "日", "は", "。", " Google", "で", "す", "、", "한국", "어"])
    found = [said.text[word.begin : word.end] for word in said.words]
    assert found == ["今", "日", "は。", "Google", "で", "す、", "한국어"]


def test_times_at_the_end_of_the_audio_stay_inside_and_in_order() -> None:
    said = spoken([" A", " B", " C"], [0.0, 0.98, 1.2], 1.0)
    assert [(word.start, word.stop) for word in said.words] == [(0.0, 0.5), (0.96, 1.0), (0.96, 1.0)]
    lone = spoken([" A"], [0.0], 0.01)
    assert [(segment.start, segment.stop) for segment in lone.segments] == [(0.0, 0.04)]


def test_a_sentence_ends_a_cue_a_decimal_point_does_not() -> None:
    said = evenly([" I", " SAID", " 3.5.", " THEN", " “GO!”", " AND", " LEFT"])
    assert [segment.text for segment in said.segments] == ["I SAID 3.5.", "THEN “GO!”", "AND LEFT"]
    japanese = evenly(["雨", "。", "明", "日", "？", "は"])
    assert [segment.text for segment in japanese.segments] == ["雨。", "明日？", "は"]


def test_long_unspaced_text_is_cut_by_its_columns() -> None:
    said = evenly(["雨"] * 130, 0.05)
    assert [len(segment.text) for segment in said.segments] == [SEGMENT_COLUMNS // 2] * 3 + [4]
    letters = evenly(["ABC"] * 40, 0.05)
    assert "".join(segment.text for segment in letters.segments) == "ABC" * 40
    assert all(len(segment.text) <= SEGMENT_COLUMNS and len(segment.text) % 3 == 0 for segment in letters.segments)


def test_text_that_spelling_changed_still_finds_its_tokens() -> None:
    # A space dropped before punctuation, a leading mark dropped (online), bytes of one character, a bad byte.
    said = spoken(["!", " A", " ,", " <0xE4>"], [0.0, 0.5, 1.0, 1.4], 3.0, text="A, <0xE4>")
    assert [word.start for word in said.words] == [0.5, 1.4]
    tokens = [" A", "<0xE4>", "<0xB8>", "<0x96>", "<0xE7>", "B"]
    said = spoken(tokens, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 3.0, text="A世\ufffdB")
    assert [(said.text[word.begin : word.end], word.start, word.last) for word in said.words] == [
        ("A", 0.0, 0.0),
        ("世", 0.1, 0.1),
        ("\ufffdB", 0.4, 0.5),
    ]


def test_text_that_tokens_do_not_show_is_shared_evenly() -> None:
    said = spoken(["▁ƌţ", "Ƌŷ", "ƍĩ", "ƃŝ"], [0.0, 0.5, 1.0, 1.5], 3.0, text="世界世界")
    assert [word.start for word in said.words] == [0.0, 0.5, 1.0, 1.5]
