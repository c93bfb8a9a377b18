"""A file of sound, by the decoder that reads it, from its first sample to its last one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np

from jaxasr.audio.ffmpeg import FFmpegDecoder, pyav
from jaxasr.audio.protocol import Undecodable, with_channels
from jaxasr.audio.sndfile import SndfileDecoder
from jaxasr.audio.views import View, corrected
from jaxasr.errors import AudioError

_NOTICEABLE: Final = 0.02  # s; decoders differ by less at the end of a compressed stream
_SHORTEST_SUCCESSOR: Final = 0.25  # s; what decodes to less after the end of an MP3 is a tag and not a second file
_INSTALL: Final = "pip install av"
_PYAV: Final = f"PyAV (the extra media): {_INSTALL}"


class Recording:
    """A file that libsndfile or else FFmpeg decodes. Raises AudioError, in one line, where neither does.

    `rate` (Hz), `channels`. `floating`: samples are stored as floating-point numbers, at whatever scale. `frames`:
    samples a channel, None where only decoding tells. `exact`: whether `frames` is what will be decoded, and `blocks`
    can begin anywhere without decoding what comes before. After `blocks`: `lost`, the seconds of sound that could not
    be decoded, and `remarks`, lines for the user.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.lost = 0.0
        self.remarks: list[str] = []
        self._view, self._missing = corrected(file)
        head = self._view.read(16)
        if not head:
            raise AudioError(f"{name}: is empty (0 bytes); record or copy it again")
        self._decoder: SndfileDecoder | FFmpegDecoder
        try:
            self._decoder = SndfileDecoder(self._view)
            self.frames, self.exact = self._decoder.frames, self._decoder.exact and not self._missing
            if self._decoder.successor is not None:
                self.frames = None
        except Undecodable as refusal:
            self._raise_broken_disk()
            if pyav() is None:
                raise AudioError(f"{name}: {_missing_decoder(head, refusal)}") from None
            try:
                self._decoder = FFmpegDecoder(self._view)
            except Undecodable as error:
                raise AudioError(f"{name}: {_refusal(head, refusal, error)}") from error
            self.frames, self.exact = None, False
        self._raise_broken_disk()
        self.rate, self.channels, self.floating = self._decoder.rate, self._decoder.channels, self._decoder.floating

    def blocks(self, start: int = 0) -> Iterator[np.ndarray]:
        """The sound from sample `start` on: (n, channels) float32, full scale at 1. Raises AudioError."""
        self.lost, self.remarks = 0.0, []
        done = start
        try:
            for block in self._decoder.blocks(start):
                done += len(block)
                yield block
            if isinstance(self._decoder, FFmpegDecoder):
                self._lose(self._decoder.lost)
            else:
                yield from self._after_sndfile(self._decoder, done)
        except Undecodable as error:
            raise AudioError(f"{self.name}: damaged or cut off ({error.reason}); copy or export it again") from error
        finally:
            self._raise_broken_disk()

    def _after_sndfile(self, decoder: SndfileDecoder, done: int) -> Iterator[np.ndarray]:
        """What libsndfile leaves: the rest after a damaged place, further streams; and how much is lost."""
        if decoder.kind.startswith("MP3"):
            short = ((decoder.frames or 0) - done) / self.rate
            yield from self._later_mp3(decoder)
            self._lose(short)
            return
        if self._missing and decoder.frames:
            rest = self._view.size()
            self._lose(decoder.frames / self.rate * self._missing / max(rest - 44, 1))
            return
        if decoder.fault is None and decoder.successor is None:
            short = ((decoder.frames or 0) - done) / self.rate
            gaps = 0.0
            if decoder.kind.startswith("OGG") and pyav() is not None:
                # libsndfile skips damaged pages without a word.
                with contextlib.suppress(Undecodable):
                    gaps = FFmpegDecoder(self._view).gaps()
            self._lose(max(short, gaps))
            return
        if pyav() is None:
            if decoder.successor is not None:
                container = decoder.kind.split()[0]
                raise AudioError(
                    f"{self.name}: holds several {container} streams, one after another, of which only {_PYAV} reads "
                    "more than one; or make one: ffmpeg -i IN OUT.flac"
                )
            self._lose(((decoder.frames or done) - done) / self.rate, f"; to decode more of it, install {_PYAV}")
            return
        try:
            second = FFmpegDecoder(self._view, self.rate)
            yield from (with_channels(block, self.channels) for block in second.blocks(done))
            self._lose(second.lost)
        except Undecodable:
            self._lose(((decoder.frames or done) - done) / self.rate)

    def _later_mp3(self, decoder: SndfileDecoder) -> Iterator[np.ndarray]:
        """The MPEG streams that follow the first one in a file that was joined from several."""
        import soxr

        position = decoder.successor
        while position is not None and (start := _next_mpeg(self._view, position)) is not None:
            try:
                later = SndfileDecoder(View(self._view.file, start))
            except Undecodable:
                return
            converter = soxr.ResampleStream(later.rate, self.rate, self.channels, dtype="float32")
            held: list[np.ndarray] = []
            length = 0
            for block in later.blocks():
                block = with_channels(block, self.channels)
                length += len(block)
                held.append(block if later.rate == self.rate else converter.resample_chunk(block))
                if length > _SHORTEST_SUCCESSOR * later.rate:
                    yield from held
                    held = []
            if length > _SHORTEST_SUCCESSOR * later.rate and later.rate != self.rate:
                yield converter.resample_chunk(np.zeros((0, self.channels), np.float32), last=True)
            position = None if later.successor is None else start + later.successor

    def _lose(self, seconds: float, remedy: str = "") -> None:
        if seconds > _NOTICEABLE:
            self.lost += seconds
            self.remarks.append(f"{self.name}: {seconds:.2f} s of its sound are damaged or missing{remedy}")

    def _raise_broken_disk(self) -> None:
        if self._view.error is not None:
            raise self._view.error


def _next_mpeg(view: View, position: int) -> int | None:
    """Where, from a position on, an ID3 tag or a frame of MPEG audio begins, in the next 128 KiB; None if nowhere."""
    view.seek(position)
    # A frame: eleven bits set, then a version, a layer, a bit rate and a sampling rate that exist.
    begin = re.search(
        rb"ID3[\x02-\x04]|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\x1b\x20-\x2b\x30-\x3b\x40-\x4b\x50-\x5b\x60-\x6b"
        rb"\x70-\x7b\x80-\x8b\x90-\x9b\xa0-\xab\xb0-\xbb\xc0-\xcb\xd0-\xdb\xe0-\xeb]",
        view.read(1 << 17),
    )
    return None if begin is None else position + begin.start()


_ONLY_TAGS: Final = "holds tags and no MPEG audio after them; copy or export it again"


def _missing_decoder(head: bytes, refusal: Undecodable) -> str:
    if head[:3] == b"ID3":
        return _ONLY_TAGS
    kind = _container(head)
    if kind is not None:
        return f"{kind} needs {_PYAV}"
    if refusal.recognised:
        return f"libsndfile does not decode it ({refusal.reason}); to try FFmpeg, install {_PYAV}"
    return f"is no audio that libsndfile knows; convert it to WAV or FLAC, or install {_PYAV}"


def _refusal(head: bytes, refusal: Undecodable, error: Undecodable) -> str:
    if head[:3] == b"ID3" and not refusal.recognised:
        return _ONLY_TAGS
    if error.recognised and not refusal.recognised:
        return f"{error.reason}; convert it to WAV or FLAC"
    if refusal.recognised:
        return (
            f"damaged, or of a kind that neither libsndfile ({refusal.reason}) nor FFmpeg ({error.reason}) decodes; "
            "copy or export it again"
        )
    kind = _container(head)
    if kind is not None:
        return f"{kind}, damaged or cut off (FFmpeg: {error.reason}); copy or export it again"
    return f"is no audio that libsndfile or FFmpeg can decode ({error.reason}); convert it to WAV or FLAC"


def _container(head: bytes) -> str | None:
    """What a file is that libsndfile cannot read, from its first 16 bytes."""
    if head[4:8] == b"ftyp":
        return "M4A or MP4 audio"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "WebM or Matroska audio"
    if head[:4] == b"\x30\x26\xb2\x75":
        return "WMA audio"
    if head[:5] == b"#!AMR":
        return "AMR audio"
    if head[0] == 0xFF and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return "AAC audio"
    return None
