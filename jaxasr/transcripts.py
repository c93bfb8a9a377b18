"""What was recognised: the text of a recording with its tokens, its words and its segments in time; plain Python."""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxasr.errors import JaxasrError

# Segments fit a subtitle: two lines of 42 columns, seven seconds at most (the limits of broadcasters' style guides).
LINE_COLUMNS = 42
SEGMENT_COLUMNS = 2 * LINE_COLUMNS
SEGMENT_SECONDS = 7.0
# A pause longer than this, from token to token, begins another segment.
PAUSE_SECONDS = 1.0
# Most models give a token a start but no end: a word is then taken to end with the next token, at most this long after
# its last one.
LAST_TOKEN_SECONDS = 0.5
# A subtitle must last to be valid: no word is shorter than this, also where its token stands at the audio's very end.
SHORTEST_SECONDS = 0.04

# Scripts written without spaces: Han, kana and their extensions. Hangul has spaces.
UNSPACED = re.compile(
    "[\u2e80-\u2fff\u3005-\u3007\u3021-\u312f\u31a0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_WIDE_PUNCTUATION = re.compile("[\u3001-\u3003\u3008-\u3020\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")
# Scripts without spaces whose letters are no words by themselves: Thai, Lao, Burmese and Khmer. Tokens spell the words.
_UNPARTED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
# No line begins with these, nor ends with those (JIS X 4051's rules; vowels that Thai and Lao write around a letter).
_NO_LINE_BEGIN = re.compile(
    "[\u3005\u303b\u3041\u3043\u3045\u3047\u3049\u3063\u3083\u3085\u3087\u308e\u3095\u3096\u309d\u309e"
    "\u30a1\u30a3\u30a5\u30a7\u30a9\u30c3\u30e3\u30e5\u30e7\u30ee\u30f5\u30f6\u30fc-\u30fe\u31f0-\u31ff\uff67-\uff70"
    "\u0e2f\u0e30\u0e32\u0e33\u0e45\u0e46\u0eaf\u0eb0\u0eb2\u0eb3\u0ec6]"
)
_NO_LINE_END = re.compile("[\u0e40-\u0e44\u0ec0-\u0ec4\u1039\u17d2]")
_OPENING = ("Ps", "Pi")  # Unicode's categories of brackets and quotation marks that open
_SENTENCE_END = re.compile("[.?!…。．？！｡][\"'”’)\\]」』】）]*$")
_BYTE = re.compile("<0x([0-9A-F]{1,2})>")


@dataclass(frozen=True)
class Word:
    """A word of a text; in scripts without spaces a character.

    `start`: the time of its first token. `stop`: where the word is taken to end. `last`: the time of its last token.
    All in seconds. `begin`, `end`: the word is `transcript.text[begin:end]`.
    """

    text: str
    start: float
    stop: float
    last: float
    begin: int
    end: int


@dataclass(frozen=True)
class Segment:
    """A piece of a text that is read at once, as a subtitle, with its times in seconds; `text` is one line."""

    text: str
    start: float
    stop: float


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording.

    `audio`: the file's name, or "" for an array.
    `duration`: of the recording, in seconds.
    `text`: the words spoken.
    `tokens`: the pieces that spell the text. The lists below run beside them, one entry a token.
    `token_ids`: the tokens' numbers in the model's table.
    `timestamps`: the begin (s) of the frame that emitted each token.
    `log_probs`: of each token, under the search's softmax at temperature 1.
    `durations`: how long each token lasts (s), where the search says it (TDT; the publisher's times), else empty.
    `channel`: the number of the recording's channel that was heard, from 1 on; None for the mean of all.
    """

    audio: str
    duration: float
    text: str
    tokens: list[str]
    token_ids: list[int]
    timestamps: list[float]
    log_probs: list[float]
    durations: list[float] = field(default_factory=list)
    channel: int | None = None

    @property
    def words(self) -> list[Word]:
        """The words of the text in order, each with the times of the tokens that spell it.

        Words are parted by spaces; characters of scripts without spaces stand alone, with the punctuation that follows
        them. What is wider than LINE_COLUMNS is parted between tokens.
        """
        owners = _owners(self.text, self.tokens)
        return [self._word(begin, end, owners) for begin, end in _word_spans(self.text, owners)]

    @property
    def segments(self) -> list[Segment]:
        """The text in pieces: parted at pauses and ends of sentences, and before they grow too wide or too long."""
        groups: list[list[Word]] = []
        for word in self.words:
            if groups and not _begins_segment(self.text, groups[-1], word):
                groups[-1].append(word)
            else:
                groups.append([word])
        return [
            Segment(one_line(self.text[group[0].begin : group[-1].end]), group[0].start, group[-1].stop)
            for group in groups
        ]

    def _word(self, begin: int, end: int, owners: list[int]) -> Word:
        times, duration = self.timestamps, float(self.duration)
        first, last = owners[begin], owners[end - 1]
        start = min(max(times[first], 0.0), max(duration - SHORTEST_SECONDS, 0.0))
        final = max(times[last], start)
        stop = final + (self.durations[last] if self.durations else LAST_TOKEN_SECONDS)
        if last + 1 < len(times):
            stop = min(stop, times[last + 1])
        stop = max(min(stop, duration), start + SHORTEST_SECONDS)
        return Word(self.text[begin:end], start, stop, final, begin, end)


@dataclass(frozen=True)
class Failure:
    """A recording that could not be transcribed: `audio` as in Transcript, and the error that says why."""

    audio: str
    error: JaxasrError


def one_line(text: str) -> str:
    """The text without what would end a line or a column; other control characters are the replacement character."""
    return re.sub("[\x00-\x1f\x7f-\x9f]", "\ufffd", re.sub("[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", " ", text))


def columns(text: str) -> int:
    """How wide a text is on a terminal or in a subtitle: wide characters count twice."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str) -> list[str]:
    """The one or two lines of a subtitle; two of nearly equal width where the text is wider than LINE_COLUMNS.

    Lines part at spaces, and in scripts without spaces between characters. What cannot be parted stays one line.
    """
    if columns(text) <= LINE_COLUMNS:
        return [text]
    lines = [text]
    for inside_words in (False, True):  # of Thai and its like only where the spaces do not suffice
        breaks = [i for i in range(1, len(text)) if _parts_lines(text, i, inside_words)]
        if breaks:
            middle = min(breaks, key=lambda i: abs(columns(text[:i]) - columns(text[i:].lstrip())))
            lines = [text[:middle], text[middle:].lstrip()]
            if max(map(columns, lines)) <= LINE_COLUMNS:
                break
    return lines


def _fits(text: str) -> bool:
    """Whether the text is no wider than SEGMENT_COLUMNS and `wrap` keeps it to LINE_COLUMNS a line."""
    widths = list(itertools.accumulate(map(_width, text), initial=0))
    if widths[-1] <= LINE_COLUMNS:
        return True
    if widths[-1] > SEGMENT_COLUMNS:
        return False
    end = bisect.bisect_right(widths, LINE_COLUMNS) - 1  # where the fullest first line ends, were it no matter where
    last = next((i for i in range(end, 0, -1) if _parts_lines(text, i, True)), None)
    return last is not None and columns(text[last:].lstrip()) <= LINE_COLUMNS


def _parts_lines(text: str, i: int, inside_words: bool) -> bool:
    """Whether a line may end before character i, which begins the next one unless it is a space."""
    before, after = text[i - 1], text[i]
    if " " in (before, after):
        return after == " "
    ending, beginning = unicodedata.category(before), unicodedata.category(after)
    if ending in _OPENING or beginning[0] == "M" or (beginning[0] == "P" and beginning not in _OPENING):
        return False
    if _NO_LINE_END.match(before) or _NO_LINE_BEGIN.match(after):
        return False
    if inside_words and _UNPARTED.match(before) and _UNPARTED.match(after):
        return True
    return any(UNSPACED.match(character) for character in (before, after)) or bool(_WIDE_PUNCTUATION.match(before))


def _begins_segment(text: str, group: list[Word], word: Word) -> bool:
    return (
        word.start - group[-1].last > PAUSE_SECONDS
        or _SENTENCE_END.search(text[group[0].begin : group[-1].end]) is not None
        or word.stop - group[0].start > SEGMENT_SECONDS
        or not _fits(text[group[0].begin : word.end])
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
    if UNSPACED.match(text[i]):
        return True
    if UNSPACED.match(text[i - 1]) or _WIDE_PUNCTUATION.match(text[i - 1]):
        return unicodedata.category(text[i])[0] not in "PM"
    return owners[i] != owners[i - 1] and columns(text[begin : i + 1]) > LINE_COLUMNS
