"""Decoding by libsndfile: WAV, FLAC, Ogg, Opus, MP3, AIFF, CAF and more."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from jaxasr.audio.protocol import BLOCK, Undecodable
from jaxasr.audio.views import View
from jaxasr.process import mpg123_silence

if TYPE_CHECKING:
    import soundfile

_UNRECOGNISED: Final = 1  # SF_ERR_UNRECOGNISED_FORMAT
_READ_AHEAD: Final = 1 << 16  # bytes; more than decoders take in beyond what they have decoded
_NEXT_STREAM: Final = {"OGG": b"OggS\x00\x02", "FLAC": b"fLaC\x00\x00\x00\x22"}  # how a stream begins inside a file
# Samples of these are stored one by one: the number of them follows from the file's size.
_PLAIN: Final = re.compile("PCM_|FLOAT$|DOUBLE$|ULAW$|ALAW$")


class SndfileDecoder:
    """A file as libsndfile decodes it. Raises Undecodable where it refuses the file.

    `rate` (Hz), `channels`. `kind`: libsndfile's names of container and coding. `floating`: samples are stored as
    floating-point numbers. `frames`: samples a channel, None where only decoding tells. `exact`: whether `frames` is
    what will be decoded, and `blocks` can begin anywhere. `fault`: why the sound stopped before its end, once it did.
    `successor`: where in the file another stream follows, which libsndfile ignores; None for none.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self.fault: str | None = None
        self.successor: int | None = None
        view.seek(0)
        head = view.read(10)
        if head[:3] == b"ID3":
            view.seek(10 + functools.reduce(lambda high, low: high << 7 | low & 0x7F, head[6:10], 0))
        # libsndfile recognises MPEG audio by the same bytes; of its decoders only that one writes to standard error.
        self._mpeg = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0)
        self._audio = view.tell() if self._mpeg and head[:3] == b"ID3" else 0
        with self._opened(view) as sound:
            self.rate, self.channels, self._format = int(sound.samplerate), int(sound.channels), str(sound.format)
            self.kind = f"{sound.format} {sound.subtype}"
            self.floating = sound.subtype in ("FLOAT", "DOUBLE")
            known = sound.frames < 1 << 62  # the header of a FLAC file that was written to a pipe knows none
            self.frames = int(sound.frames) if known else None
            self.exact = known and bool(_PLAIN.match(sound.subtype))
            if self._format == "FLAC" and known:
                self.exact = self._is_whole(sound)
        self._endless = False
        if self._format == "MP3":
            # libsndfile takes the length from a header, or guesses it from the first frame's bit rate, and stops there.
            # Streams of variable bit rate and joined files may go on far beyond.
            self.successor = self._announced_end()
            self._endless = self.successor is None
            if self._endless:
                self.frames = None

    def blocks(self, start: int = 0) -> Iterator[np.ndarray]:
        """The sound from sample `start` on: (n, channels) float32, full scale at 1; `fault` says what is amiss."""
        import soundfile

        self.fault = None
        source = self._piped() if self._endless else self._opened(self._view)
        done = start
        try:
            with source as sound:
                if start and self.exact:
                    sound.seek(start)
                    start = 0
                while len(block := self._read(sound)):
                    if start < len(block):
                        yield block[start:]
                        done += len(block) - start
                    start = max(start - len(block), 0)
        except soundfile.LibsndfileError as error:
            # Of MPEG audio through a pipe that may be a tag after the sound.
            self.fault = None if self._endless else _reason(error)
        except Undecodable as error:
            self.fault = error.reason
        if self._view.error is not None:
            raise self._view.error
        if self.fault is None and self.frames is not None and done < self.frames:
            self.fault = "damaged or cut off"
        self._find_successor()

    def _read(self, sound: soundfile.SoundFile) -> np.ndarray:
        with mpg123_silence.reading() if self._mpeg else contextlib.nullcontext():
            block: np.ndarray = sound.read(max(1, BLOCK // self.channels), dtype="float32", always_2d=True)
            return block

    @contextlib.contextmanager
    def _opened(self, source: View | int) -> Iterator[soundfile.SoundFile]:
        import soundfile

        class Sound(soundfile.SoundFile):  # type: ignore[misc]
            def seekable(self) -> bool:
                """No: soundfile would seek after each block to where it is, which fails at the end of some files."""
                return False

        if isinstance(source, View):
            source.seek(0)
        try:
            with mpg123_silence.reading() if self._mpeg else contextlib.nullcontext():
                sound = Sound(source, closefd=False)
        except soundfile.LibsndfileError as error:
            raise Undecodable(_reason(error), recognised=error.code != _UNRECOGNISED) from error
        except (RuntimeError, ValueError, TypeError) as error:  # soundfile's own checks of a header's values
            raise Undecodable(str(error), recognised=True) from error
        with sound:
            yield sound

    @contextlib.contextmanager
    def _piped(self) -> Iterator[soundfile.SoundFile]:
        """The file through a pipe and without a header that announces a length: MPEG audio to its very end."""
        end, sink = os.pipe()

        def feed() -> None:
            # The reading end is closed early where the decoder gives up.
            with contextlib.suppress(BrokenPipeError), open(sink, "wb") as pipe:
                self._view.seek(self._audio)
                pipe.write(re.sub(rb"Xing|Info|VBRI", bytes(4), self._view.read(_READ_AHEAD)))
                while content := self._view.read(_READ_AHEAD):
                    pipe.write(content)

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        try:
            with self._opened(end) as sound:
                yield sound
        finally:
            os.close(end)
            feeder.join()

    def _is_whole(self, sound: soundfile.SoundFile) -> bool:
        """Whether the last sample that a FLAC header announces is there."""
        import soundfile

        if not sound.frames:
            return True
        try:
            sound.seek(sound.frames - 1)
            whole = len(sound.read(1)) == 1
        except soundfile.LibsndfileError:
            return False
        self._find_successor()
        return whole and self.successor is None

    def _find_successor(self) -> None:
        marker = _NEXT_STREAM.get(self._format)
        if marker is None or self.successor is not None:
            return
        position = max(1, self._view.tell() - _READ_AHEAD)
        self._view.seek(position)
        place = self._view.read(2 * _READ_AHEAD).find(marker)
        self.successor = position + place if place >= 0 else None

    def _announced_end(self) -> int | None:
        """Where MPEG audio ends by the header in its first frame; None where there is no header, or none with a size.

        Xing's (as LAME writes it, "Info" for constant bit rates) and Fraunhofer's VBRI.
        """
        self._view.seek(self._audio)
        head = self._view.read(_READ_AHEAD)
        frame = re.search(rb"\xff[\xe2-\xff]", head)
        if frame is None:
            return None
        beyond = head[frame.start() : frame.start() + 200]
        if match := re.search(rb"(?:Xing|Info)...([\x02\x03\x06\x07\x0a\x0b\x0e\x0f])", beyond, re.DOTALL):
            # Flags: 1 frames, 2 bytes; each a number of 4 bytes after the flags.
            place = match.end() + (4 if match[1][0] & 1 else 0)
        elif (vbri := beyond.find(b"VBRI")) >= 0:
            place = vbri + 10
        else:
            return None
        size = int.from_bytes(beyond[place : place + 4], "big")
        return self._audio + frame.start() + size if size else None


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".") or f"error {error.code}"
