"""Transcripts as txt, json, srt, vtt and tsv; words and subtitle cues from tokens; files that appear whole."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from jaxasr.errors import ConfigError

if TYPE_CHECKING:
    from jaxasr.recognizer import Transcript

Format = Literal["txt", "json", "srt", "vtt", "tsv"]
FORMATS: tuple[Format, ...] = get_args(Format)

# Subtitles: two lines of 42 columns, seven seconds at most (the limits of broadcasters' style guides).
LINE_COLUMNS = 42
CUE_COLUMNS = 2 * LINE_COLUMNS
CUE_SECONDS = 7.0
# A pause longer than this, from token to token, begins another cue.
PAUSE_SECONDS = 1.0
# Tokens have a start but no end: a word is taken to end with the next token, at most this long after its last one.
LAST_TOKEN_SECONDS = 0.5
# A cue must last to be valid, also where its token stands at the very end of the audio: one encoded frame.
SHORTEST_SECONDS = 0.04

# Scripts written without spaces: Han, kana and their extensions. Hangul has spaces.
_UNSPACED = re.compile(
    "[\u2e80-\u2fff\u3005-\u3007\u3021-\u312f\u31a0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_WIDE_PUNCTUATION = re.compile("[\u3001-\u3003\u3008-\u3020\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")
_SENTENCE_END = re.compile("[.?!…。．？！｡][\"'”’)\\]」』】）]*$")
_BYTE = re.compile("<0x([0-9A-F]{1,2})>")


@dataclass(frozen=True)
class Word:
    """A word (a character in Chinese and Japanese) of `text[begin:end]`, with its times in seconds.

    `last` is the start of its last token, `stop` where the word is taken to end.
    """

    begin: int
    end: int
    start: float
    last: float
    stop: float


@dataclass(frozen=True)
class Cue:
    """What a subtitle shows from `start` to `stop` (s)."""

    start: float
    stop: float
    text: str


class Document:
    """A text in one of FORMATS that grows by transcripts; `add` gives what to append for the next one."""

    def __init__(self, format: Format) -> None:
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
        self.format = format
        self._transcripts = 0
        self._cues = 0

    def add(self, transcript: Transcript) -> str:
        """The next part of the document: a line of txt or json, or the lines of the transcript's cues."""
        first = self._transcripts == 0
        self._transcripts += 1
        if self.format == "txt":
            return _one_line(transcript.text) + "\n"
        if self.format == "json":
            return json_line(transcript)
        if self.format == "tsv":
            return ("audio\tstart\tend\ttext\n" if first else "") + _tsv_rows(transcript)
        parts = ["WEBVTT\n\n"] if first and self.format == "vtt" else []
        for cue in cues(transcript):
            self._cues += 1
            number = f"{self._cues}\n" if self.format == "srt" else ""
            text = "\n".join(_wrap(cue.text))
            # "-->" may not stand in a cue's text in either format.
            text = html.escape(text, quote=False) if self.format == "vtt" else text.replace("-->", "->")
            comma = "," if self.format == "srt" else "."
            parts.append(f"{number}{clock(cue.start, comma)} --> {clock(cue.stop, comma)}\n{text}\n\n")
        return "".join(parts)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Callable[[str], None]]:
    """A function that appends text to the file `path`, which appears when the block ends and not at all if it fails.

    The text goes to a sibling that is renamed, in UTF-8. Devices and pipes are written to directly. Raises ConfigError
    where the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        direct = target.exists() and not target.is_file()
        part = target if direct else target.with_name(f".{secrets.token_hex(6)}.part")
        file = open(part, "w", encoding="utf-8", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise _unwritable(path, error) from None

    def write(text: str) -> None:
        try:
            file.write(text)
        except OSError as error:
            raise _unwritable(path, error) from None

    try:
        yield write
        try:
            file.close()
            if not direct:
                os.replace(part, target)
        except OSError as error:
            raise _unwritable(path, error) from None
    finally:
        # After a failure the buffer may hold what cannot be written.
        with contextlib.suppress(OSError):
            file.close()
        if not direct:
            part.unlink(missing_ok=True)


def _unwritable(path: str | os.PathLike[str], error: OSError) -> ConfigError:
    return ConfigError(f"{os.fspath(path)}: cannot be written ({error.strerror or error}); give another --output")


def json_line(transcript: Transcript) -> str:
    """One JSON object and a newline: audio, duration (s), text, tokens, token_ids, timestamps (s), log_probs."""
    fields = {
        "audio": transcript.audio,
        "duration": round(float(transcript.duration), 6),
        "text": transcript.text,
        "tokens": list(transcript.tokens),
        "token_ids": [int(token_id) for token_id in transcript.token_ids],
        "timestamps": [round(float(time), 6) for time in transcript.timestamps],
        "log_probs": [round(float(value), 6) for value in transcript.log_probs],
    }
    line = json.dumps(fields, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        # A file name that is no UTF-8 comes in with lone surrogates, which only the escaped form can carry.
        line = json.dumps(fields)
    return line + "\n"


def clock(seconds: float, point: str = ".") -> str:
    """Seconds as HH:MM:SS and milliseconds after `point`."""
    minutes, milliseconds = divmod(round(max(seconds, 0.0) * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def words(transcript: Transcript) -> list[Word]:
    """The words of the text in order, each with the times of the tokens that spell it.

    Words are parted by spaces; characters of scripts without spaces stand alone, with the punctuation that follows
    them. What is wider than a subtitle's line is parted between tokens.
    """
    text, times, duration = transcript.text, transcript.timestamps, float(transcript.duration)
    owners = _owners(text, transcript.tokens)
    found = []
    for begin, end in _word_spans(text, owners):
        first, last = owners[begin], owners[end - 1]
        start = min(max(times[first], 0.0), max(duration - SHORTEST_SECONDS, 0.0))
        final = max(times[last], start)
        stop = final + LAST_TOKEN_SECONDS
        if last + 1 < len(times):
            stop = min(stop, times[last + 1])
        stop = max(min(stop, duration), start + SHORTEST_SECONDS)
        found.append(Word(begin, end, start, final, stop))
    return found


def cues(transcript: Transcript) -> list[Cue]:
    """The text in pieces to be read: parted at pauses and ends of sentences, and before they grow too wide or long."""
    groups: list[list[Word]] = []
    for word in words(transcript):
        if groups and not _begins_cue(transcript.text, groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [
        Cue(group[0].start, group[-1].stop, _one_line(transcript.text[group[0].begin : group[-1].end]))
        for group in groups
    ]


def _begins_cue(text: str, group: list[Word], word: Word) -> bool:
    return (
        word.start - group[-1].last > PAUSE_SECONDS
        or _SENTENCE_END.search(text[group[0].begin : group[-1].end]) is not None
        or _columns(text[group[0].begin : word.end]) > CUE_COLUMNS
        or word.stop - group[0].start > CUE_SECONDS
    )


def _owners(text: str, tokens: list[str]) -> list[int]:
    """For each character of `text` the index of the token that it comes from (spaces: of the token before them).

    Spelling drops characters of tokens (spaces, a leading punctuation mark) but adds none, so the tokens' characters
    are found one after another. Tokens that do not show their characters (byte-level BPE) share the text evenly.
    """
    characters = [(character, index) for character, index in _characters(tokens) if not character.isspace()]
    owners: list[int] = []
    position = 0
    for character in text:
        if character.isspace():
            owners.append(owners[-1] if owners else 0)
            continue
        match = next((i for i in range(position, len(characters)) if characters[i][0] == character), None)
        if match is None:
            return [min(i * len(tokens) // len(text), len(tokens) - 1) for i in range(len(text))]
        owners.append(characters[match][1])
        position = match + 1
    return owners


def _characters(tokens: list[str]) -> Iterator[tuple[str, int]]:
    """The characters of the tokens with the token's index; a run of byte tokens gives the characters it encodes."""
    for is_bytes, run in itertools.groupby(enumerate(tokens), key=lambda item: _BYTE.fullmatch(item[1]) is not None):
        items = list(run)
        if not is_bytes:
            yield from ((character, index) for index, token in items for character in token)
            continue
        data = bytes(int(match[1], 16) for _, token in items if (match := _BYTE.fullmatch(token)))
        offset = 0
        for character in data.decode(errors="surrogateescape"):
            width = 1 if "\udc80" <= character <= "\udcff" else len(character.encode())
            yield "\ufffd" if "\udc80" <= character <= "\udcff" else character, items[offset][0]
            offset += width


def _word_spans(text: str, owners: list[int]) -> Iterator[tuple[int, int]]:
    begin = 0
    for i in range(1, len(text) + 1):
        if i < len(text) and not _parts(text, owners, begin, i):
            continue
        stripped = text[begin:i].rstrip()
        skipped = len(stripped) - len(stripped.lstrip())
        if stripped:
            yield begin + skipped, begin + len(stripped)
        begin = i


def _parts(text: str, owners: list[int], begin: int, i: int) -> bool:
    """Whether a word ends before character i."""
    if text[i].isspace() or text[i - 1].isspace():
        return not text[i].isspace()
    if _UNSPACED.match(text[i]):
        return True
    if _UNSPACED.match(text[i - 1]) or _WIDE_PUNCTUATION.match(text[i - 1]):
        return unicodedata.category(text[i])[0] not in "PM"
    return owners[i] != owners[i - 1] and _columns(text[begin : i + 1]) > LINE_COLUMNS


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _wrap(text: str) -> list[str]:
    """One line, or two of nearly equal width parted at a space or between characters of a script without spaces."""
    if _columns(text) <= LINE_COLUMNS:
        return [text]
    breaks = [i for i in range(1, len(text)) if text[i] == " " or (_UNSPACED.match(text[i]) and text[i - 1] != " ")]
    if not breaks:
        return [text]
    middle = min(breaks, key=lambda i: abs(_columns(text[:i]) - _columns(text[i:].lstrip())))
    return [text[:middle], text[middle:].lstrip()]


def _tsv_rows(transcript: Transcript) -> str:
    """A row per cue; audio without words has one row with an empty text, so that every file is named."""
    audio = _one_line(transcript.audio)
    found = cues(transcript) or [Cue(0.0, float(transcript.duration), "")]
    return "".join(f"{audio}\t{cue.start:.3f}\t{cue.stop:.3f}\t{cue.text}\n" for cue in found)


def _one_line(text: str) -> str:
    """The text without what would end a line or a column."""
    return re.sub("[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", " ", text)
