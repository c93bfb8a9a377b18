"""Recordings that the command line hears piece by piece, with what is understood so far on standard error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jaxasr
from jaxasr.cli.progress import say

if TYPE_CHECKING:
    from jaxasr.audio import Channels
    from jaxasr.reading import Clip
    from jaxasr.recognizer import Recognizer
    from jaxasr.streaming import Streams

# Characters of a text so far that are shown, its last ones.
SHOWN = 200


def streamed(
    recognizer: Recognizer, inputs: Sequence[str], channels: Channels
) -> Iterator[jaxasr.Transcript | jaxasr.Failure]:
    """The transcripts of recordings, one after another, as `Recognizer.transcribe` gives them.

    Raises ConfigError where the model cannot take a stream, before anything is read.
    """
    from jaxasr.reading import read_ahead

    streams = recognizer.streams(1)
    for clips in read_ahead(inputs, None, group_samples=1, most=0, channels=channels):
        for clip in clips:
            yield clip if isinstance(clip, jaxasr.Failure) else _streamed(streams, clip)


def _streamed(streams: Streams, clip: Clip) -> jaxasr.Transcript:
    from jaxasr.audio import SAMPLE_RATE

    size = round(streams.seconds_per_step * SAMPLE_RATE)
    shown = ""
    with streams.open() as stream:
        for begin in range(0, len(clip.samples), size):
            stream.feed(clip.samples[begin : begin + size])
            partial = stream.partial
            if partial.text != shown:
                shown = partial.text
                say(f"{partial.duration:.1f} s: {'…' * (len(shown) > SHOWN)}{shown[-SHOWN:]}")
        transcript = stream.finish()
    return dataclasses.replace(transcript, audio=clip.name, channel=clip.channel)
