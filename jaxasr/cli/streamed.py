"""Recordings that the command line hears piece by piece, with what is understood so far on standard error."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jaxasr
from jaxasr.cli.progress import say
from jaxasr.errors import AudioError

if TYPE_CHECKING:
    import numpy as np

    from jaxasr.audio import Channels
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
    from jaxasr.reading import Clip, read_ahead

    streams = recognizer.streams(1)
    for group in read_ahead(inputs, None, group_samples=1, most=0, channels=channels):
        for item in group:
            if isinstance(item, jaxasr.Failure):
                yield item
            elif isinstance(item, Clip):
                yield from _streamed(streams, item.name, (item.channel,), iter([[item.samples]]))
            else:
                several = streams if len(item.channels) == 1 else recognizer.streams(len(item.channels))
                try:
                    yield from _streamed(several, item.name, item.channels, item.pieces)
                except AudioError as error:  # the rest of it cannot be read
                    yield jaxasr.Failure(item.name, error)


def _streamed(
    streams: Streams, name: str, channels: Sequence[int | None], pieces: Iterator[list[np.ndarray]]
) -> Iterator[jaxasr.Transcript]:
    """The transcripts of a recording's channels, of each of which `pieces` has the next samples."""
    from jaxasr.audio import SAMPLE_RATE

    size = round(streams.seconds_per_step * SAMPLE_RATE)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(streams.open()) for _ in channels]
        shown = [""] * len(opened)
        for piece in pieces:
            for begin in range(0, len(piece[0]), size):
                fed = [samples[begin : begin + size] for samples in piece]
                streams.feed(zip(opened, fed, strict=True))
                for number, stream in enumerate(opened):
                    partial = stream.partial
                    if partial.text != shown[number]:
                        shown[number] = partial.text
                        say(f"{partial.duration:.1f} s: {'…' * (len(partial.text) > SHOWN)}{partial.text[-SHOWN:]}")
        for channel, transcript in zip(channels, streams.finish(opened), strict=True):
            yield dataclasses.replace(transcript, audio=name, channel=channel)
