"""Any audio file, stream or array to float32 mono at 16 kHz, in blocks, so that an hour of stereo stays small."""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from jaxasr.errors import AudioError
from jaxasr.files import reason
from jaxasr.process import mpg123_silence

AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray"

SAMPLE_RATE = 16000  # Hz: what every recogniser here listens to
# What `expand_paths` looks for in folders; `load` goes by content alone.
EXTENSIONS = frozenset(
    "wav wave w64 rf64 flac ogg oga opus mp3 aif aiff aifc au snd caf "
    "m4a m4b mp4 mov 3gp aac webm mka mkv wma amr".split()
)

ending = threading.Event()  # of the process: what is being decoded is given up

_BLOCK = 1 << 20  # values decoded at a time
_RATES = (1_000, 1_000_000)  # Hz; what a damaged header says outside would blow up memory when resampled
_LOUDEST = float(2**31)  # full scale of the widest integers; larger values are no audio and overflow the features
_MOST_CHANNELS = 32  # of an array: more are features or a batch, not a recording
_UNRECOGNISED = 1  # SF_ERR_UNRECOGNISED_FORMAT
_READ_AHEAD = 1 << 16  # bytes; more than decoders take in beyond what they have decoded
_NEXT_STREAM = {"OGG": b"OggS\x00\x02", "FLAC": b"fLaC\x00\x00\x00\x22"}  # how a stream begins inside a file
_MP3_PADDING = SAMPLE_RATE // 4  # samples; what encoders add and a length header takes away again is less
# FFmpeg's names of what it may read: no playlists and no scripts, which name other files and addresses.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,aac,asf,amr,flv,avi,mpegts,mp3,ogg,wav,flac"


def load(source: AudioSource, sample_rate: float | None = None) -> np.ndarray:
    """Decode, mix down to one channel (their mean) and resample to 16 kHz: (samples,) float32, full scale at 1.

    source: a path, "-" (standard input), the bytes of a file, a binary file object, or an array. Files go by content,
    whatever their extension: WAV, FLAC, Ogg, Opus, MP3, AIFF, CAF and more by libsndfile; M4A, MP4, WebM, AAC and
    others where PyAV is installed. Arrays are int16, int32, uint8 or floating point (-1..1), of shape (samples,), or
    with channels on the shorter of two axes (the last if they are equal). sample_rate: that of an array in Hz, 16000
    if None; files state their own. A file without samples gives an empty array. AudioError, in one line, for all that
    cannot be read, for NaN and for infinity.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _load_file(io.BytesIO(source), "audio bytes")
    if isinstance(source, str) and source == "-":
        return _load_file(io.BytesIO(_standard_input().read()), "standard input")
    if isinstance(source, (str, os.PathLike)):
        return _load_path(os.fspath(source))
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return _load_stream(source, name if isinstance(name, str) else "audio stream")
    if hasattr(source, "__array__"):
        return _load_array(np.asarray(source), SAMPLE_RATE if sample_rate is None else sample_rate)
    raise AudioError(
        f"audio must be a path, bytes, a binary file object or a numpy array, not {type(source).__name__}; "
        "wrap lists with numpy.asarray(values, dtype='float32')"
    )


def _standard_input() -> Any:
    """In other threads than the main one without its buffer, whose lock would abort a process that ends meanwhile."""
    buffer = sys.stdin.buffer
    return buffer if threading.current_thread() is threading.main_thread() else getattr(buffer, "raw", buffer)


def expand_paths(inputs: Sequence[str]) -> list[str]:
    """The audio files that command line arguments mean, in their order.

    A folder stands for its audio files (by extension) in all its subfolders, sorted, without hidden ones and without
    following links to folders; a pattern (* ? [ ] **) for what it matches, sorted. "-" and other paths stay as they
    are, missing ones too: `load` says then what is wrong with one among many. AudioError for a folder or pattern that
    holds nothing.
    """
    found: list[str] = []
    for name in map(os.fspath, inputs):
        if name != "-" and glob.has_magic(name) and not os.path.exists(name):
            matches = sorted(glob.glob(name, recursive=True))
            files = [file for match in matches for file in (_audio_below(match) if os.path.isdir(match) else [match])]
            # data/** matches a folder and, again, what is in it.
            files = list(dict.fromkeys(files))
            if not files:
                raise AudioError(f"{name}: no audio file matches this pattern; check it, or quote it for the shell")
        elif os.path.isdir(name):
            files = _audio_below(name)
            if not files:
                raise AudioError(f"{name}: no audio file in this folder; name files of other extensions one by one")
        else:
            files = [name]
        found += files
    return found


def _audio_below(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions")

    files = []
    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            extension = os.path.splitext(name)[1].lower().lstrip(".")
            if extension in EXTENSIONS and not name.startswith("."):
                files.append(os.path.join(parent, name))
    return sorted(files)


def _load_path(path: str) -> np.ndarray:
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder, not an audio file; name the files in it")
    try:
        with open(path, "rb") as file:
            return _load_file(file if file.seekable() else io.BytesIO(file.read()), path)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise AudioError(f"{path}: permission denied; make the file readable for this user") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise AudioError(f"{path}: cannot be read ({reason(error)}); check the path and the disk") from None


def _load_stream(stream: Any, name: str) -> np.ndarray:
    try:
        content = stream.read()
    except Exception as error:  # a file object of the caller's may raise anything
        raise AudioError(f"{name}: cannot be read ({reason(error)}); open it again, in binary mode") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise AudioError(f"{name}: gives {type(content).__name__} instead of bytes; open it in binary mode")
    return _load_file(io.BytesIO(content), name)


def _load_array(array: np.ndarray, sample_rate: Any) -> np.ndarray:
    name = "audio array"
    if array.dtype.newbyteorder("=") not in (np.int16, np.int32, np.uint8, np.float16, np.float32, np.float64):
        raise AudioError(f"{name}: dtype {array.dtype} is none of int16, int32, uint8, float16, float32, float64; cast")
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: has {array.ndim} axes; pass (samples,), (samples, channels) or (channels, samples)")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.integer, np.floating)):
        raise AudioError(f"{name}: sample_rate must be a number of Hz, not {sample_rate!r}")
    if array.size == 0:
        array = array.reshape(0, 1)
    elif array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    if array.shape[1] > _MOST_CHANNELS:
        raise AudioError(
            f"{name}: {array.shape[1]} channels are more than {_MOST_CHANNELS}; pass the samples of one recording"
        )
    step = _BLOCK // array.shape[1]
    blocks = (_to_float(array[start : start + step]) for start in range(0, len(array), step))
    return _gather(blocks, float(sample_rate), name)


def _to_float(block: np.ndarray) -> np.ndarray:
    if block.dtype.kind == "f":
        return block.astype(np.float32)
    if block.dtype.kind == "u":
        return (block.astype(np.float32) - 128) / 128
    return block.astype(np.float32) / -float(np.iinfo(block.dtype).min)


def _load_file(file: Any, name: str) -> np.ndarray:
    """Decode a seekable binary file by libsndfile, and by PyAV what libsndfile does not know."""
    import soundfile

    head = file.read(16)
    file.seek(0)
    if not head:
        raise AudioError(f"{name}: is empty (0 bytes); record or copy it again")
    try:
        return _load_by_libsndfile(soundfile, file, head, name)
    except soundfile.LibsndfileError as error:
        if error.code != _UNRECOGNISED:
            fault = error.error_string.rstrip(".") or f"error {error.code}"
            raise AudioError(f"{name}: damaged or cut off (libsndfile: {fault}); copy or export it again") from error
    file.seek(0)
    return _load_by_av(file, head, name)


def _load_by_libsndfile(soundfile: Any, file: Any, head: bytes, name: str) -> np.ndarray:
    # libsndfile recognises MPEG audio by the same bytes; of its decoders only that one writes to standard error.
    mpeg = head[:3] == b"ID3" or (head[0] == 0xFF and len(head) > 1 and head[1] >= 0xE0)
    quiet = mpg123_silence.reading if mpeg else contextlib.nullcontext
    calm = _CalmFile(file)
    try:
        with quiet():
            sound = soundfile.SoundFile(calm)
        with sound:
            samples = _gather(_soundfile_blocks(sound, quiet), sound.samplerate, name)
            read, frames, form = file.tell(), sound.frames, sound.format
    finally:
        if calm.error is not None:
            raise calm.error
    size = file.seek(0, os.SEEK_END)
    if frames == 0 and head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:8], "little") < size:
        # Recorders write the length when they stop.
        raise AudioError(
            f"{name}: its header announces no samples although some follow: the recording was never closed; "
            "repair it: ffmpeg -ignore_length 1 -i BROKEN.wav REPAIRED.wav"
        )
    if read == size:
        return samples
    if form == "MP3":
        # libsndfile takes the length from a header, or guesses it from the first frame's bit rate, and stops there.
        # Streams of variable bit rate and joined files may go on far beyond.
        file.seek(0)
        whole = _load_endless_mp3(soundfile, file.read(), name)
        return whole if len(whole) > len(samples) + _MP3_PADDING else samples
    file.seek(max(1, read - _READ_AHEAD))
    if form in _NEXT_STREAM and _NEXT_STREAM[form] in file.read(2 * _READ_AHEAD):
        raise AudioError(f"{name}: holds several {form} streams, one after another; make one: ffmpeg -i IN OUT.flac")
    return samples


def _load_endless_mp3(soundfile: Any, content: bytes, name: str) -> np.ndarray:
    """Decode MPEG audio as far as it goes, through a pipe and without the header that announces a length."""
    if content[:3] == b"ID3":
        size = functools.reduce(lambda high, low: high << 7 | low & 0x7F, content[6:10], 0)
        content = content[10 + size :]
    head = re.sub(rb"Xing|Info|VBRI", bytes(4), content[:_READ_AHEAD])
    source, sink = os.pipe()

    def feed() -> None:
        # The reading end is closed early where the decoder gives up.
        with contextlib.suppress(BrokenPipeError), open(sink, "wb") as pipe:
            pipe.write(head)
            pipe.write(memoryview(content)[len(head) :])

    def blocks(sound: Any) -> Iterator[np.ndarray]:
        with contextlib.suppress(soundfile.LibsndfileError):  # at tags after the audio, for one
            yield from _soundfile_blocks(sound, mpg123_silence.reading)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        with mpg123_silence.reading():
            sound = soundfile.SoundFile(source, closefd=False)
        with sound:
            return _gather(blocks(sound), sound.samplerate, name)
    finally:
        os.close(source)
        feeder.join()


def _soundfile_blocks(sound: Any, quiet: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[np.ndarray]:
    while True:
        with quiet():
            block = sound.read(max(1, _BLOCK // sound.channels), dtype="float32", always_2d=True)
        if not len(block):
            return
        yield block


def _load_by_av(file: Any, head: bytes, name: str) -> np.ndarray:
    try:
        import av
    except ImportError:
        kind = _container(head)
        if kind is None:
            raise AudioError(
                f"{name}: is no audio that libsndfile knows; convert it to WAV or FLAC, or try: pip install av"
            ) from None
        raise AudioError(f"{name}: {kind} needs PyAV to be read: pip install av") from None
    try:
        with av.open(file, mode="r", options={"format_whitelist": _FFMPEG_FORMATS}) as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: holds no audio track; check the file")
            stream = container.streams.audio[0]
            return _gather(_av_blocks(av, container, stream), stream.rate or 0, name)
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name}: is no audio that libsndfile or FFmpeg can decode ({reason(error)}); convert it to WAV or FLAC"
        ) from error


def _av_blocks(av: Any, container: Any, stream: Any) -> Iterator[np.ndarray]:
    planar = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    for packet in container.demux(stream):
        for decoded in packet.decode():
            for frame in planar.resample(decoded):
                yield frame.to_ndarray().T  # (samples, channels)


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


def _gather(blocks: Iterable[np.ndarray], rate: float, name: str) -> np.ndarray:
    """Blocks (n, channels) float32 at `rate` Hz to one array (samples,) float32 at 16 kHz."""
    import soxr

    low, high = _RATES
    if not low <= rate <= high:
        raise AudioError(f"{name}: a sample rate of {rate:g} Hz is outside {low} to {high} Hz; check it or the header")
    resampler = None
    if rate > SAMPLE_RATE:
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    samples = bytearray()  # grows in place: a list of blocks would need twice the memory when joined
    with np.errstate(invalid="ignore", over="ignore"):
        for block in blocks:
            if ending.is_set():
                raise AudioError(f"{name}: the process ends")
            mono = sum(block.T) / np.float32(block.shape[1])  # thirty times as fast as mean(axis=1)
            if len(mono) and not (mono.min() >= -_LOUDEST and mono.max() <= _LOUDEST):  # NaN fails every comparison
                raise AudioError(f"{name}: holds NaN, infinite or absurdly large samples; repair or record it again")
            samples += (mono if resampler is None else resampler.resample_chunk(mono)).tobytes()
    if resampler is not None:
        samples += resampler.resample_chunk(np.zeros(0, np.float32), last=True).tobytes()
    gathered = np.frombuffer(samples, np.float32)
    return _upsample(gathered, rate) if rate < SAMPLE_RATE and gathered.size else gathered


def _upsample(samples: np.ndarray, rate: float) -> np.ndarray:
    """From below 16 kHz, through a short filter that lets some of the mirror image above the old band pass.

    A steep filter leaves that band empty, which no recording at 16 kHz in a training corpus is: on spoken digits at
    8 kHz the published Zipformer makes 79 % word errors after soxr's HQ filter and 45 % after this one
    (docs/decisions.md).
    """
    from scipy import signal

    ratio = Fraction(SAMPLE_RATE / rate).limit_denominator(1000)
    raised: np.ndarray = signal.resample_poly(samples, ratio.numerator, ratio.denominator)
    return raised.astype(np.float32, copy=False)


class _CalmFile:
    """The file as libsndfile's callbacks see it: no exception leaves them, since they could only print it, and no name.

    A damaged file makes libsndfile seek to impossible positions. From a name that ends in .raw soundfile would conclude
    that the samples have no header.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._file.readinto(buffer))
        except OSError as error:
            self.error = error
            return 0
