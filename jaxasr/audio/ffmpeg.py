"""Decoding by FFmpeg, through PyAV: what libsndfile does not read, and what it does not read to the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

import numpy as np

from jaxasr.audio.protocol import BLOCK, Undecodable, with_channels
from jaxasr.audio.views import View
from jaxasr.files import reason

# FFmpeg's names of the formats that it may read: every one that holds sound and reads only its own bytes. Playlists,
# scripts and image sequences (hls, dash, concat, imf, sdp, image2, ...) name other files and addresses, and are none.
_FORMATS: Final = (
    "aac,aax,ac3,ac4,aea,aiff,alaw,amr,amrnb,amrwb,ape,aptx,aptx_hd,asf,asf_o,au,avi,avr,bfstm,bonk,brstm,caf,codec2,"
    "daud,dfpwm,dsf,dss,dts,dtshd,dv,eac3,epaf,flac,flv,g722,g723_1,g726,g726le,g729,gsm,gxf,hca,hcom,iamf,iff,ilbc,"
    "ircam,kux,laf,lc3,live_flv,loas,m4v,matroska,matroska,webm,mlp,mmf,mov,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,"
    "mpegts,mpegvideo,mxf,nistsphere,nsv,nut,ogg,oma,osq,paf,pva,pvf,qcp,qoa,rka,rm,rso,sbc,sds,sdx,shn,sln,smjpeg,sol,"
    "sox,spdif,sup,swf,tak,tta,truehd,vag,voc,vqf,w64,wav,webm,wsd,wtv,wv,xa,xwma"
)
# Containers that state how long the sound is. Of the others FFmpeg guesses it from the bit rate.
_STATES_LENGTH: Final = ("wav", "w64", "flac", "ogg", "mov,mp4,m4a,3gp,3g2,mj2", "caf", "aiff")
_JITTER: Final = 0.03  # s; what time stamps may differ from the samples that came before
_LONGEST_GAP: Final = 600.0  # s; a longer jump of the time stamps is no pause, the stamps are wrong


def pyav() -> ModuleType | None:
    """PyAV, where it is installed; a folder named av is not taken for it."""
    try:
        import av
    except ImportError:
        return None
    return av if hasattr(av, "AudioResampler") else None


class FFmpegDecoder:
    """A file as FFmpeg decodes it. Raises Undecodable where it refuses the file, or has no decoder for its sound.

    The first track that has a decoder is taken. `rate` (Hz) and `channels` of the sound, or the rate that is asked for.
    `floating`: samples are stored as floating-point numbers. `lost`: seconds of sound that could not be decoded, so
    far. Silence stands for them where the time stamps tell how long they were. PyAV must be there.
    """

    def __init__(self, view: View, rate: int | None = None) -> None:
        self._view = view
        self.lost = 0.0
        self._failed = 0.0  # s, of packets that cannot be decoded
        with self._opened() as (container, stream):
            self.rate, self.channels = int(rate or stream.rate or 0), len(stream.layout.channels)
            self.floating = str(stream.codec_context.name).startswith("pcm_f")
            self._length = None
            if container.format.name in _STATES_LENGTH and stream.duration and stream.time_base:
                self._length = float(stream.duration * stream.time_base)

    def blocks(self, start: int = 0) -> Iterator[np.ndarray]:
        """The sound from sample `start` on: (n, channels) float32, full scale at 1."""
        gathered: list[np.ndarray] = []
        size = done = 0
        try:
            for samples in self._resampled():
                begin = max(start - done, 0)
                done += len(samples)
                if begin < len(samples):
                    gathered.append(samples[begin:])
                    size += gathered[-1].size
                if size >= BLOCK:
                    yield np.concatenate(gathered)
                    gathered, size = [], 0
        except Undecodable:
            # What came before it has been decoded.
            if not done:
                raise
        if gathered:
            yield np.concatenate(gathered)
        if not done and self._failed:
            raise Undecodable("no packet of its sound can be decoded", recognised=True)
        self.lost = max(self.lost, self._failed)
        if self._length is not None and self._length - done / self.rate > 0.1:
            self.lost += self._length - done / self.rate

    def gaps(self) -> float:
        """Seconds of sound that are missing between packets, by their time stamps alone; nothing is decoded."""
        missing = 0.0
        expected: float | None = None
        with contextlib.suppress(Undecodable), self._opened() as (container, stream), _caught():
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                time = float(packet.pts * packet.time_base)
                if expected is not None and _JITTER < time - expected < _LONGEST_GAP:
                    missing += time - expected
                expected = time + float((packet.duration or 0) * packet.time_base)
        return missing

    def _resampled(self) -> Iterator[np.ndarray]:
        """Frames (n, channels) at `rate`, with silence for what is missing between them."""
        av = pyav()
        assert av is not None
        with self._opened() as (container, stream):
            resampler: Any = None
            resampled_kind: tuple[str, str, int] | None = None
            clock = _Clock()
            for frame in self._frames(av, container, stream):
                missing = clock.missing(frame)
                if missing and resampler is not None:
                    self.lost += missing
                    yield np.zeros((round(missing * self.rate), self.channels), np.float32)
                with _caught():
                    kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                    if kind != resampled_kind:  # the first, or one of a stream that was joined from several
                        if resampler is not None:
                            yield from _arrays(resampler.resample(None), self.channels)
                        resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=self.rate)
                        resampled_kind = kind
                    frame.pts = None
                    resampled = resampler.resample(frame)
                yield from _arrays(resampled, self.channels)
            if resampler is not None:
                with _caught():
                    rest = resampler.resample(None)
                yield from _arrays(rest, self.channels)

    def _frames(self, av: ModuleType, container: Any, stream: Any) -> Iterator[Any]:
        """The decoded frames of the track; packets that cannot be decoded are left out."""
        with _caught():
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self._failed += float((packet.duration or 0) * (packet.time_base or 0)) or _JITTER
                    continue
                yield from frames

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        av = pyav()
        assert av is not None
        self._view.seek(0)
        options = {"format_whitelist": _FORMATS}
        with _caught():
            # Tags that are not UTF-8: since 19 PyAV decodes them when it is asked for them.
            lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
            container = av.open(self._view, mode="r", options=options, **lenient)
        with container:
            with _caught():
                tracks = list(container.streams.audio)
                usable = [track for track in tracks if track.codec_context is not None and track.rate]
            if not usable:
                what = "FFmpeg has no decoder for its sound" if tracks else "it holds no audio track"
                raise Undecodable(what, recognised=True)
            # What does not have its checksum is damaged, and not the noise that comes of decoding it.
            if usable[0].codec_context.name == "flac":
                usable[0].codec_context.options = {"err_detect": "crccheck+explode"}
            yield container, usable[0]
        if self._view.error is not None:
            raise self._view.error


class _Clock:
    """Where the sound stands by the number of its samples, against the time stamps."""

    def __init__(self) -> None:
        self._expected: float | None = None

    def missing(self, frame: Any) -> float:
        """Seconds between the end of the frames so far and the time stamp of this one; 0 where it follows them."""
        time = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        missing = 0.0
        if time is not None and self._expected is not None and _JITTER < time - self._expected < _LONGEST_GAP:
            missing = time - self._expected
        if time is not None and (self._expected is None or abs(time - self._expected) > _JITTER):
            # Time stamps that go back, or far ahead: a stream that was joined from several.
            self._expected = time
        if self._expected is not None:
            self._expected += frame.samples / frame.sample_rate
        return missing


def _arrays(frames: list[Any], channels: int) -> Iterator[np.ndarray]:
    for frame in frames:
        samples = with_channels(frame.to_ndarray().T, channels)
        if len(samples):
            yield samples


@contextlib.contextmanager
def _caught() -> Iterator[None]:
    """PyAV raises whatever FFmpeg, or a surprise in its own code, makes of a file: all of it is Undecodable."""
    try:
        yield
    except (Undecodable, MemoryError):
        raise
    except Exception as error:
        raise Undecodable(reason(error)) from error
