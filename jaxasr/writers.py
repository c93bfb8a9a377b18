"""Transcripts as txt, json, srt, vtt and tsv."""

from __future__ import annotations

import html
import json
from typing import Literal, get_args

from jaxasr.transcripts import LINE_COLUMNS, UNSPACED, Segment, Transcript, columns, one_line

Format = Literal["txt", "json", "srt", "vtt", "tsv"]
FORMATS: tuple[Format, ...] = get_args(Format)


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
            return ("audio\tstart\tend\ttext\n" if first else "") + _tsv_rows(transcript)
        parts = ["WEBVTT\n\n"] if first and self.format == "vtt" else []
        for segment in transcript.segments:
            self._cues += 1
            number = f"{self._cues}\n" if self.format == "srt" else ""
            text = "\n".join(_wrap(segment.text))
            # "-->" may not stand in a cue's text in either format.
            text = html.escape(text, quote=False) if self.format == "vtt" else text.replace("-->", "->")
            comma = "," if self.format == "srt" else "."
            parts.append(f"{number}{clock(segment.start, comma)} --> {clock(segment.stop, comma)}\n{text}\n\n")
        return "".join(parts)


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


def _wrap(text: str) -> list[str]:
    """One line, or two of nearly equal width parted at a space or between characters of a script without spaces."""
    if columns(text) <= LINE_COLUMNS:
        return [text]
    breaks = [i for i in range(1, len(text)) if text[i] == " " or (UNSPACED.match(text[i]) and text[i - 1] != " ")]
    if not breaks:
        return [text]
    middle = min(breaks, key=lambda i: abs(columns(text[:i]) - columns(text[i:].lstrip())))
    return [text[:middle], text[middle:].lstrip()]


def _tsv_rows(transcript: Transcript) -> str:
    """A row per segment; audio without words has one row with an empty text, so that every file is named."""
    audio = one_line(transcript.audio)
    found = transcript.segments or [Segment("", 0.0, float(transcript.duration))]
    return "".join(f"{audio}\t{segment.start:.3f}\t{segment.stop:.3f}\t{segment.text}\n" for segment in found)
