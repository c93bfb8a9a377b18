"""Writers: every format is read back by a parser of its own."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from random import Random

import pytest

from jaxasr.transcripts import LINE_COLUMNS, SEGMENT_SECONDS, Segment, Transcript, columns
from jaxasr.writers import FORMATS, Document, clock
from spoken import ENGLISH, evenly, spoken

SILENCE = spoken([], [], 1.5)


def seconds(stamp: str) -> float:
    hours, minutes, rest = re.split("[:]", stamp)
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def parse_srt(document: str) -> list[Segment]:
    """SubRip: blocks of a counter, a line of times, and lines of text, parted by empty lines."""
    found = []
    for number, block in enumerate(re.split(r"\n\n", document.strip()) if document.strip() else [], start=1):
        counter, times, *lines = block.split("\n")
        assert counter == str(number)
        match = re.fullmatch(r"(\d\d+:\d\d:\d\d,\d{3}) --> (\d\d+:\d\d:\d\d,\d{3})", times)
        assert match and lines and all(line.strip() and "-->" not in line for line in lines)
        found.append(Segment("\n".join(lines), seconds(match[1]), seconds(match[2])))
    return found


def parse_vtt(document: str) -> list[Segment]:
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
        found.append(Segment(text, seconds(match[1]), seconds(match[2])))
    return found


def document(format: str, *transcripts: Transcript) -> str:
    made = Document(format)
    return "".join(made.add(transcript) for transcript in transcripts)


def test_txt_is_one_line_per_audio() -> None:
    odd = spoken(["A\nB", "\u2028", " C"], [0.0, 0.1, 0.2], 1.0)
    assert document("txt", ENGLISH, SILENCE, odd) == "HELLO WORLD NOW\n\nA B  C\n"


def test_json_has_the_fields_of_the_contract() -> None:
    said = spoken([" HÉ", "。"], [0.1 + 0.2, 0.04 * 3], 1.0000000001, token_ids=[5, 7], log_probs=[-0.1234567, -1.0])
    lines = document("json", said, SILENCE).splitlines()
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
    line = document("json", spoken([" é"], [0.0], 1.0, audio=name))
    assert json.loads(line)["audio"] == name
    line.encode()


def test_json_holds_nothing_that_a_terminal_or_a_reader_of_lines_acts_on() -> None:
    name = "\x1b[2J\x7f\x9b2J\u202egnp.\u2028\x85\r\n\udc9b.wav"
    line = document("json", spoken([" été\u3000雨"], [0.0], 1.0, audio=name))
    assert json.loads(line)["audio"] == name
    assert len(line.splitlines()) == 1 and "été\u3000雨" in line
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", line)


@pytest.mark.parametrize(
    "name", ["a\tb.wav", "a\nb.wav", '"a".wav', 'a "b".wav', "a\r\n.wav", "\x1b[2J.wav", "a\\tb.wav", " a, b.wav"]
)
def test_tsv_keeps_every_name(name: str) -> None:
    table = document("tsv", spoken([" it's", ' "so"'], [0.0, 0.1], 1.0, audio=name), SILENCE)
    rows = list(csv.reader(io.StringIO(table, newline=""), delimiter="\t"))
    assert [(row[0], row[3]) for row in rows[1:]] == [(name, 'it\'s "so"'), ("a.wav", "")]


def test_text_commands_no_terminal() -> None:
    said = spoken([" A", "\x1b[2J", " \x9b2J\x00", " \t", " B"], [0.0, 0.1, 0.2, 0.3, 0.4], 2.0)
    assert document("txt", said) == "A\ufffd[2J \ufffd2J\ufffd   B\n"
    for format in ("srt", "vtt", "tsv"):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", document(format, said))
        assert "A\ufffd[2J \ufffd2J\ufffd" in document(format, said)


def test_tsv_names_every_audio() -> None:
    rows = [row.split("\t") for row in document("tsv", ENGLISH, SILENCE).splitlines()]
    assert rows == [
        ["audio", "start", "end", "text"],
        ["a.wav", "0.200", "1.180", "HELLO WORLD"],
        ["a.wav", "2.400", "2.900", "NOW"],
        ["a.wav", "0.000", "1.500", ""],
    ]


def test_srt_and_vtt_say_the_same() -> None:
    expected = [Segment("HELLO WORLD", 0.2, 1.18), Segment("NOW", 2.4, 2.9)]
    assert parse_srt(document("srt", ENGLISH)) == expected
    assert parse_vtt(document("vtt", ENGLISH)) == expected
    assert document("srt", ENGLISH).startswith("1\n00:00:00,200 --> 00:00:01,180\nHELLO WORLD\n\n2\n")
    assert document("vtt", SILENCE) == "WEBVTT\n\n" and document("srt", SILENCE) == ""


def test_several_recordings_in_one_document_stay_valid() -> None:
    assert len(parse_srt(document("srt", ENGLISH, SILENCE, ENGLISH))) == 4
    assert len(parse_vtt(document("vtt", SILENCE, ENGLISH, ENGLISH))) == 4


def test_markup_is_text() -> None:
    said = spoken([" <sos/eos>", " -->", " A&B", " <i>"], [0.0, 0.1, 0.2, 0.3], 2.0)
    assert parse_vtt(document("vtt", said))[0].text == "<sos/eos> --> A&B <i>"
    assert parse_srt(document("srt", said))[0].text == "<sos/eos> -> A&B <i>"


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_segments_are_bounded_and_lose_no_words(format: str) -> None:
    names = [" THE", " QUICK", " BR", "OWN", " FOX,", " JUMPED.", " O", "VER"] * 40
    said = evenly(names, 0.31)
    found = {"srt": parse_srt, "vtt": parse_vtt}[format](document(format, said))
    assert " ".join(segment.text.replace("\n", " ") for segment in found) == said.text
    for segment, following in zip(found, [*found[1:], None], strict=True):
        lines = segment.text.split("\n")
        assert len(lines) <= 2 and all(len(line) <= LINE_COLUMNS for line in lines)
        assert 0 < segment.stop - segment.start <= SEGMENT_SECONDS + 0.001
        assert following is None or segment.stop <= following.start


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_lines_keep_to_their_width_wherever_words_allow(format: str) -> None:
    # 84 columns that no space parts into lines of 42: each such pair of words has a line too wide, whatever the break.
    random = Random(7)
    lengths = [*([30, 23, 29] * 20), *(random.randint(1, 42) for _ in range(600))]
    said = evenly([" " + "W" * length for length in lengths], 0.05)
    found = {"srt": parse_srt, "vtt": parse_vtt}[format](document(format, said))
    assert " ".join(segment.text.replace("\n", " ") for segment in found) == said.text
    lines = [segment.text.split("\n") for segment in found]
    assert max(map(len, lines)) == 2 and max(len(line) for pair in lines for line in pair) == LINE_COLUMNS
    # No cue ends early: the next word would not fit. All words follow one another without a pause.
    for pair, following in itertools.pairwise(lines):
        words = [*" ".join(pair).split(" "), following[0].split(" ")[0]]
        assert len(words) * 0.05 > SEGMENT_SECONDS or not any(
            max(len(" ".join(words[:i])), len(" ".join(words[i:]))) <= LINE_COLUMNS for i in range(1, len(words))
        )


def test_a_word_wider_than_a_line_stays_whole_and_alone() -> None:
    said = evenly([" A", " " + "W" * 60, " B", " C"])
    assert [segment.text for segment in parse_srt(document("srt", said))] == ["A", "W" * 60, "B C"]


@pytest.mark.parametrize(
    "tokens",
    [
        ["雨", "が", "、", "ちょ", "っ", "と", "「", "降", "る", "」", "ー"]
        * 40,  # Japanese: small kana, brackets, marks
        ["今天", "下雨", "，", "很", "大", "OK", "的"] * 40,  # Chinese with letters
        ["การ", "เรียน", "รู้", "ภาษา", "ไทย"] * 40,  # Thai: no space, vowels around their letter
        [" 비가", " 옵니다", " 오늘은"] * 40,  # Korean has spaces
    ],
)
def test_lines_of_scripts_without_spaces(tokens: list[str]) -> None:
    said = evenly(tokens, 0.05)
    cues = parse_srt(document("srt", said))
    assert "".join(cue.text for cue in cues).replace("\n", "").replace(" ", "") == said.text.replace(" ", "")
    for cue in cues:
        lines = cue.text.split("\n")
        assert len(lines) <= 2 and all(columns(line) <= LINE_COLUMNS for line in lines)
        if len(lines) == 2:
            assert lines[1][0] not in "、，っー」ょ ุู้" and lines[0][-1] not in "「เไแ "


def test_wide_lines_are_parted_in_the_middle() -> None:
    said = evenly(["雨"] * 130, 0.05)
    lines = parse_srt(document("srt", said))[0].text.split("\n")
    assert [len(line) for line in lines] == [21, 21]


def test_clock_rounds_once() -> None:
    assert clock(0.0) == "00:00:00.000"
    assert clock(59.9996) == "00:01:00.000"
    assert clock(3600 * 101 + 61.0015, ",") == "101:01:01,002"


def test_formats() -> None:
    assert FORMATS == ("txt", "json", "srt", "vtt", "tsv")
    with pytest.raises(ValueError, match="known are txt, json"):
        Document("doc")
