"""Writers: every format is read back by a parser of its own; words and cues follow the tokens and their times."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import pytest

from jaxasr.writers import CUE_COLUMNS, CUE_SECONDS, FORMATS, LINE_COLUMNS, Cue, Document, clock, cues, words


@dataclass
class Spoken:
    """The fields of a Transcript, made here so that these tests need no JAX."""

    tokens: list[str]
    timestamps: list[float]
    duration: float
    text: str = ""
    audio: str = "a.wav"
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.text or "".join(self.tokens).lstrip()
        self.token_ids = self.token_ids or list(range(len(self.tokens)))
        self.log_probs = self.log_probs or [-0.5] * len(self.tokens)


def evenly(tokens: list[str], step: float = 0.2, start: float = 0.0, **kwargs: object) -> Spoken:
    times = [round(start + step * i, 3) for i in range(len(tokens))]
    return Spoken(tokens, times, kwargs.pop("duration", start + step * len(tokens) + 1.0), **kwargs)


SILENCE = Spoken([], [], 1.5)
ENGLISH = Spoken([" HE", "LLO", " W", "OR", "LD", " NOW"], [0.2, 0.4, 0.6, 0.64, 0.68, 2.4], 3.0)


def seconds(stamp: str) -> float:
    hours, minutes, rest = re.split("[:]", stamp)
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def parse_srt(document: str) -> list[Cue]:
    """SubRip: blocks of a counter, a line of times, and lines of text, parted by empty lines."""
    found = []
    for number, block in enumerate(re.split(r"\n\n", document.strip()) if document.strip() else [], start=1):
        counter, times, *lines = block.split("\n")
        assert counter == str(number)
        match = re.fullmatch(r"(\d\d+:\d\d:\d\d,\d{3}) --> (\d\d+:\d\d:\d\d,\d{3})", times)
        assert match and lines and all(line.strip() and "-->" not in line for line in lines)
        found.append(Cue(seconds(match[1]), seconds(match[2]), "\n".join(lines)))
    return found


def parse_vtt(document: str) -> list[Cue]:
    """WebVTT: the signature, an empty line, cues parted by empty lines, markup escaped."""
    signature, blank, rest = (document + "\n\n").split("\n", 2)
    assert (signature, blank) == ("WEBVTT", "")
    found = []
    for block in [block for block in re.split(r"\n\n+", rest) if block.strip()]:
        times, *lines = block.strip("\n").split("\n")
        match = re.fullmatch(r"(\d\d+:\d\d:\d\d\.\d{3}) --> (\d\d+:\d\d:\d\d\.\d{3})", times)
        assert match and lines
        text = "\n".join(lines)
        assert "<" not in text and "-->" not in text and not re.search("&(?!amp;|lt;|gt;)", text)
        text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        found.append(Cue(seconds(match[1]), seconds(match[2]), text))
    return found


def document(format: str, *transcripts: Spoken) -> str:
    made = Document(format)
    return "".join(made.add(transcript) for transcript in transcripts)


def test_txt_is_one_line_per_audio() -> None:
    odd = Spoken(["A\nB", "\u2028", " C"], [0.0, 0.1, 0.2], 1.0)
    assert document("txt", ENGLISH, SILENCE, odd) == "HELLO WORLD NOW\n\nA B  C\n"


def test_json_has_the_fields_of_the_contract() -> None:
    spoken = Spoken([" HÉ", "。"], [0.1 + 0.2, 0.04 * 3], 1.0000000001, token_ids=[5, 7], log_probs=[-0.1234567, -1.0])
    lines = document("json", spoken, SILENCE).splitlines()
    assert len(lines) == 2
    row = json.loads(lines[0])
    assert list(row) == ["audio", "duration", "text", "tokens", "token_ids", "timestamps", "log_probs"]
    assert row["timestamps"] == [0.3, 0.12] and row["duration"] == 1.0
    assert (row["text"], row["tokens"], row["token_ids"]) == ("HÉ。", [" HÉ", "。"], [5, 7])
    assert row["log_probs"] == [-0.123457, -1.0]
    assert "HÉ。" in lines[0]
    assert json.loads(lines[1])["text"] == "" and json.loads(lines[1])["tokens"] == []


def test_json_carries_file_names_that_are_no_utf8() -> None:
    name = b"caf\xe9.wav".decode(errors="surrogateescape")
    line = document("json", Spoken([" é"], [0.0], 1.0, audio=name))
    assert json.loads(line)["audio"] == name
    line.encode()


def test_tsv_names_every_audio() -> None:
    rows = [row.split("\t") for row in document("tsv", ENGLISH, SILENCE).splitlines()]
    assert rows == [
        ["audio", "start", "end", "text"],
        ["a.wav", "0.200", "1.180", "HELLO WORLD"],
        ["a.wav", "2.400", "2.900", "NOW"],
        ["a.wav", "0.000", "1.500", ""],
    ]


def test_srt_and_vtt_say_the_same() -> None:
    expected = [Cue(0.2, 1.18, "HELLO WORLD"), Cue(2.4, 2.9, "NOW")]
    assert parse_srt(document("srt", ENGLISH)) == expected
    assert parse_vtt(document("vtt", ENGLISH)) == expected
    assert document("srt", ENGLISH).startswith("1\n00:00:00,200 --> 00:00:01,180\nHELLO WORLD\n\n2\n")
    assert document("vtt", SILENCE) == "WEBVTT\n\n" and document("srt", SILENCE) == ""


def test_several_recordings_in_one_document_stay_valid() -> None:
    assert len(parse_srt(document("srt", ENGLISH, SILENCE, ENGLISH))) == 4
    assert len(parse_vtt(document("vtt", SILENCE, ENGLISH, ENGLISH))) == 4


def test_markup_is_text() -> None:
    spoken = Spoken([" <sos/eos>", " -->", " A&B", " <i>"], [0.0, 0.1, 0.2, 0.3], 2.0)
    assert parse_vtt(document("vtt", spoken))[0].text == "<sos/eos> --> A&B <i>"
    assert parse_srt(document("srt", spoken))[0].text == "<sos/eos> -> A&B <i>"


def test_words_begin_at_tokens_with_a_space_and_end_with_the_next_token() -> None:
    found = words(ENGLISH)
    assert [ENGLISH.text[word.begin : word.end] for word in found] == ["HELLO", "WORLD", "NOW"]
    assert [word.start for word in found] == [0.2, 0.6, 2.4]
    assert [word.last for word in found] == [0.4, 0.68, 2.4]
    assert [word.stop for word in found] == pytest.approx([0.6, 1.18, 2.9])


def test_characters_of_unspaced_scripts_are_words_with_their_punctuation() -> None:
    spoken = evenly(["今", "日", "は", "。", " Google", "で", "す", "、", "한국", "어"])
    found = [spoken.text[word.begin : word.end] for word in words(spoken)]
    assert found == ["今", "日", "は。", "Google", "で", "す、", "한국어"]


def test_times_at_the_end_of_the_audio_stay_inside_and_in_order() -> None:
    spoken = Spoken([" A", " B", " C"], [0.0, 0.98, 1.2], 1.0)
    assert [(word.start, word.stop) for word in words(spoken)] == [(0.0, 0.5), (0.96, 1.0), (0.96, 1.0)]
    lone = Spoken([" A"], [0.0], 0.01)
    assert [(cue.start, cue.stop) for cue in cues(lone)] == [(0.0, 0.04)]


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_cues_are_bounded_and_lose_no_words(format: str) -> None:
    names = [" THE", " QUICK", " BR", "OWN", " FOX,", " JUMPED.", " O", "VER"] * 40
    spoken = evenly(names, 0.31)
    found = {"srt": parse_srt, "vtt": parse_vtt}[format](document(format, spoken))
    assert " ".join(cue.text.replace("\n", " ") for cue in found) == spoken.text
    for cue, following in zip(found, [*found[1:], None], strict=True):
        lines = cue.text.split("\n")
        assert len(lines) <= 2 and all(len(line) <= LINE_COLUMNS for line in lines)
        assert 0 < cue.stop - cue.start <= CUE_SECONDS + 0.001
        assert following is None or cue.stop <= following.start


def test_a_sentence_ends_a_cue_a_decimal_point_does_not() -> None:
    spoken = evenly([" I", " SAID", " 3.5.", " THEN", " “GO!”", " AND", " LEFT"])
    assert [cue.text for cue in cues(spoken)] == ["I SAID 3.5.", "THEN “GO!”", "AND LEFT"]
    japanese = evenly(["雨", "。", "明", "日", "？", "は"])
    assert [cue.text for cue in cues(japanese)] == ["雨。", "明日？", "は"]


def test_long_unspaced_text_is_cut_by_its_columns() -> None:
    spoken = evenly(["雨"] * 130, 0.05)
    assert [len(cue.text) for cue in cues(spoken)] == [CUE_COLUMNS // 2] * 3 + [4]
    lines = parse_srt(document("srt", spoken))[0].text.split("\n")
    assert [len(line) for line in lines] == [21, 21]
    letters = evenly(["ABC"] * 40, 0.05)
    assert "".join(cue.text for cue in cues(letters)) == "ABC" * 40
    assert all(len(cue.text) <= CUE_COLUMNS and len(cue.text) % 3 == 0 for cue in cues(letters))


def test_text_that_spelling_changed_still_finds_its_tokens() -> None:
    # A space dropped before punctuation, a leading mark dropped (online), bytes of one character, a bad byte.
    spoken = Spoken(["!", " A", " ,", " <0xE4>"], [0.0, 0.5, 1.0, 1.4], 3.0, text="A, <0xE4>")
    assert [word.start for word in words(spoken)] == [0.5, 1.4]
    tokens = [" A", "<0xE4>", "<0xB8>", "<0x96>", "<0xE7>", "B"]
    spoken = Spoken(tokens, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 3.0, text="A世\ufffdB")
    assert [(spoken.text[word.begin : word.end], word.start, word.last) for word in words(spoken)] == [
        ("A", 0.0, 0.0),
        ("世", 0.1, 0.1),
        ("\ufffdB", 0.4, 0.5),
    ]


def test_text_that_tokens_do_not_show_is_shared_evenly() -> None:
    spoken = Spoken(["▁ƌţ", "Ƌŷ", "ƍĩ", "ƃŝ"], [0.0, 0.5, 1.0, 1.5], 3.0, text="世界世界")
    assert [word.start for word in words(spoken)] == [0.0, 0.5, 1.0, 1.5]


def test_clock_rounds_once() -> None:
    assert clock(0.0) == "00:00:00.000"
    assert clock(59.9996) == "00:01:00.000"
    assert clock(3600 * 101 + 61.0015, ",") == "101:01:01,002"


def test_formats() -> None:
    assert FORMATS == ("txt", "json", "srt", "vtt", "tsv")
    with pytest.raises(ValueError, match="known are txt, json"):
        Document("doc")
