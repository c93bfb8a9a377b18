"""Transcripts as txt, json, srt, vtt and tsv."""

from __future__ import annotations

import html
import json
import re
from typing import Literal, get_args

from jaxasr.transcripts import Segment, Transcript, one_line, wrap

Format = Literal["txt", "json", "srt", "vtt", "tsv"]
FORMATS: tuple[Format, ...] = get_args(Format)

# What json.dumps leaves as it is besides letters: DEL and C1, marks of direction, ends of lines, bytes of no text.
_ESCAPED_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What ends a cell or a line of a table, and what CSV takes for a quoted cell.
_BREAKS_CELL = re.compile('[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]|^"')


class Document:
    """A text in one of FORMATS that grows by transcripts; `add` gives what to append for the next one."""

    def __init__(self, format: Format) -> None:
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
        self.format = format
        self._transcripts = 0
        self._cues = 0

    def add(self, transcript: Transcript) -> str:
        """The next part of the document: a line of txt or json, or the lines of the transcript's segments."""
        first = self._transcripts == 0
        self._transcripts += 1
        if self.format == "txt":
            return one_line(transcript.text) + "\n"
        if self.format == "json":
            return json_line(transcript)
        if self.format == "tsv":
            channel = "" if transcript.channel is None else "channel\t"
            return (f"audio\t{channel}start\tend\ttext\n" if first else "") + _tsv_rows(transcript)
        parts = ["WEBVTT\n\n"] if first and self.format == "vtt" else []
        for segment in transcript.segments:
            self._cues += 1
            number = f"{self._cues}\n" if self.format == "srt" else ""
            text = "\n".join(wrap(segment.text))
            # "-->" may not stand in a cue's text in either format.
            text = html.escape(text, quote=False) if self.format == "vtt" else text.replace("-->", "->")
            comma = "," if self.format == "srt" else "."
            parts.append(f"{number}{clock(segment.start, comma)} --> {clock(segment.stop, comma)}\n{text}\n\n")
        return "".join(parts)


def json_line(transcript: Transcript) -> str:
    """One JSON object and a newline: audio, duration (s), text, tokens, token_ids, timestamps (s), log_probs.

    After audio comes channel, where a channel was asked for; after timestamps durations (s), where the model has them.
    """
    fields = {
        "audio": transcript.audio,
        **({} if transcript.channel is None else {"channel": transcript.channel}),
        "duration": round(float(transcript.duration), 6),
        "text": transcript.text,
        "tokens": list(transcript.tokens),
        "token_ids": [int(token_id) for token_id in transcript.token_ids],
        "timestamps": [round(float(time), 6) for time in transcript.timestamps],
        **({"durations": [round(float(each), 6) for each in transcript.durations]} if transcript.durations else {}),
        "log_probs": [round(float(value), 6) for value in transcript.log_probs],
    }
    return json_text(fields) + "\n"


def json_text(value: object) -> str:
    """`value` as JSON in one line, letters as they are, names escaped where a terminal or a reader of lines would act.

    Control characters and marks of direction are escaped, and bytes of file names that are no UTF-8 (lone surrogates).
    A parser gives all of them back.
    """
    # They stand in strings only, where an escape means the same.
    return _ESCAPED_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def clock(seconds: float, point: str = ".") -> str:
    """Seconds as HH:MM:SS and milliseconds after `point`."""
    minutes, milliseconds = divmod(round(max(seconds, 0.0) * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _tsv_rows(transcript: Transcript) -> str:
    """A row per segment; audio without words has one row with an empty text, so that every file is named."""
    audio = tsv_name(transcript.audio) + ("" if transcript.channel is None else f"\t{transcript.channel}")
    found = transcript.segments or [Segment("", 0.0, float(transcript.duration))]
    return "".join(f"{audio}\t{segment.start:.3f}\t{segment.stop:.3f}\t{segment.text}\n" for segment in found)


def tsv_name(name: str) -> str:
    """A name as a cell of a tab-separated table: quoted as in CSV where a tab, a line's end or a leading " is in it."""
    if not _BREAKS_CELL.search(name):
        return name
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
