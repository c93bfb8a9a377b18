"""Any audio file, stream or array to float32 mono at 16 kHz, in blocks, so that an hour of stereo stays small."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np

from jaxasr.audio.mono import SAMPLE_RATE, Channels, Mixer, checked_channels, ending, gather, mixed, pieces
from jaxasr.audio.paths import EXTENSIONS, expand_paths
from jaxasr.audio.recording import Recording
from jaxasr.errors import AudioError
from jaxasr.files import reason, refuse_pointer

__all__ = [
    "EXTENSIONS",
    "SAMPLE_RATE",
    "AudioSource",
    "Channels",
    "checked_channels",
    "ending",
    "expand_paths",
    "load",
    "load_channels",
    "load_pieces",
    "opened",
]

AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray"

_BLOCK = 1 << 20  # values of an array that are converted at a time
_ARRAY = "audio array"  # what lines call one
_MOST_CHANNELS = 32  # of an array: more are features or a batch, not a recording

_logger = logging.getLogger("jaxasr")


def load(source: AudioSource, sample_rate: float | None = None, channels: int | None = None) -> np.ndarray:
    """Decode, mix down to one channel (their mean) and resample to 16 kHz: (samples,) float32, full scale at 1.

    source: a path, "-" (standard input), the bytes of a file, a binary file object, or an array. Files go by content,
    whatever their extension: WAV, FLAC, Ogg, Opus, MP3, AIFF, CAF and more by libsndfile; M4A, MP4, WebM, AAC and
    others where PyAV is installed. Arrays are int16, int32, uint8 or floating point (-1..1), of shape (samples,), or
    with channels on the shorter of two axes (the last if they are equal).
    sample_rate: that of an array in Hz, 16000 if None; files state their own.
    channels: the number of the one channel to hear, from 1 on, instead of the mean of all.

    A file without samples gives an empty array. What is damaged is left out, or silence stands for it; that, channels
    that cancel, and samples at the scale of integers are reported in one line each on the logger "jaxasr". AudioError,
    in one line, for all that cannot be read, for NaN and for infinity.
    """
    (samples,) = load_channels(source, sample_rate, "mix" if channels is None else channels)
    return samples


def load_channels(
    source: AudioSource, sample_rate: float | None = None, channels: Channels = "each"
) -> list[np.ndarray]:
    """What is heard of a source, each channel by itself: arrays (samples,) as `load` gives one."""
    if hasattr(source, "__array__"):
        heard, remarks = _load_array(np.asarray(source), SAMPLE_RATE if sample_rate is None else sample_rate, channels)
    else:
        with opened(cast("str | bytes", source)) as recording:
            name, rate = recording.name, recording.rate
            heard, mixer = mixed(
                lambda mixer: gather(recording.blocks(), rate, mixer, name), name, channels, floating=recording.floating
            )
            remarks = [*recording.remarks, *mixer.remarks(rate)]
    for remark in remarks:
        _logger.warning("%s", remark)
    return heard


def load_pieces(
    source: AudioSource, sample_rate: float | None, channels: Channels, size: int
) -> Generator[list[np.ndarray], None, None]:
    """What `load_channels` gives, in pieces while it is decoded: arrays (size,) of samples, the last ones shorter.

    There is always a last piece, if need be of no samples. Damage of later sound is known when its piece is asked for.
    """
    if hasattr(source, "__array__"):
        array = _checked_array(np.asarray(source), sample_rate)
        rate = SAMPLE_RATE if sample_rate is None else float(sample_rate)
        mixer = Mixer(_ARRAY, channels)
        if array.dtype.kind == "f" and len(array) > size * rate / SAMPLE_RATE:
            mixer = mixer.looked_through(_array_blocks(array))
        mixer = yield from pieces(lambda: _array_blocks(array), rate, mixer, _ARRAY, size)
        remarks = mixer.remarks(rate)
    else:
        with opened(cast("str | bytes", source)) as recording:
            name, rate = recording.name, recording.rate
            mixer = Mixer(name, channels, floating=recording.floating)
            if recording.frames is None or recording.frames > size * rate / SAMPLE_RATE:
                mixer = mixer.looked_through(recording.blocks() if recording.floating else ())
            mixer = yield from pieces(recording.blocks, rate, mixer, name, size)
            remarks = [*recording.remarks, *mixer.remarks(rate)]
    for remark in remarks:
        _logger.warning("%s", remark)


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO) -> Iterator[Recording]:
    """A file, its bytes or its stream as it is decoded, block by block. Raises AudioError."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield Recording(io.BytesIO(source), "audio bytes")
    elif isinstance(source, str) and source == "-":
        yield Recording(io.BytesIO(_standard_input().read()), "standard input")
    elif isinstance(source, (str, os.PathLike)):
        with _opened_path(os.fspath(source)) as recording:
            yield recording
    elif hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "audio stream"
        yield Recording(_whole_stream(source, name), name)
    else:
        raise AudioError(
            f"audio must be a path, bytes, a binary file object or a numpy array, not {type(source).__name__}; "
            "wrap lists with numpy.asarray(values, dtype='float32')"
        )


def _standard_input() -> Any:
    """In other threads than the main one without its buffer, whose lock would abort a process that ends meanwhile."""
    buffer = sys.stdin.buffer
    return buffer if threading.current_thread() is threading.main_thread() else getattr(buffer, "raw", buffer)


@contextlib.contextmanager
def _opened_path(path: str) -> Iterator[Recording]:
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder, not an audio file; name the files in it")
    refuse_pointer(path, AudioError)
    try:
        with open(path, "rb") as file:
            yield Recording(file if file.seekable() else io.BytesIO(file.read()), path)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise AudioError(f"{path}: permission denied; make the file readable for this user") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise AudioError(f"{path}: cannot be read ({reason(error)}); check the path and the disk") from None


def _whole_stream(stream: Any, name: str) -> io.BytesIO:
    try:
        content = stream.read()
    except Exception as error:  # a file object of the caller's may raise anything
        raise AudioError(f"{name}: cannot be read ({reason(error)}); open it again, in binary mode") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise AudioError(f"{name}: gives {type(content).__name__} instead of bytes; open it in binary mode")
    return io.BytesIO(content)


def _load_array(array: np.ndarray, sample_rate: Any, channels: Channels) -> tuple[list[np.ndarray], list[str]]:
    array = _checked_array(array, sample_rate)
    rate = float(sample_rate)
    heard, mixer = mixed(lambda mixer: gather(_array_blocks(array), rate, mixer, _ARRAY), _ARRAY, channels)
    return heard, mixer.remarks(rate)


def _checked_array(array: np.ndarray, sample_rate: Any) -> np.ndarray:
    """The array as (samples, channels). Raises AudioError for what is no sound, or no rate (None: the usual one)."""
    if array.dtype.newbyteorder("=") not in (np.int16, np.int32, np.uint8, np.float16, np.float32, np.float64):
        raise AudioError(
            f"{_ARRAY}: dtype {array.dtype} is none of int16, int32, uint8, float16, float32, float64; cast"
        )
    if array.ndim not in (1, 2):
        raise AudioError(
            f"{_ARRAY}: has {array.ndim} axes; pass (samples,), (samples, channels) or (channels, samples)"
        )
    known = sample_rate is None or isinstance(sample_rate, (int, float, np.integer, np.floating))
    if isinstance(sample_rate, bool) or not known:
        raise AudioError(f"{_ARRAY}: sample_rate must be a number of Hz, not {sample_rate!r}")
    if array.size == 0:
        array = array.reshape(0, 1)
    elif array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    if array.shape[1] > _MOST_CHANNELS:
        raise AudioError(
            f"{_ARRAY}: {array.shape[1]} channels are more than {_MOST_CHANNELS}; pass the samples of one recording"
        )
    return array


def _array_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array (samples, channels) as float32, block by block."""
    step = _BLOCK // array.shape[1]
    for start in range(0, len(array), step):
        yield _to_float(array[start : start + step])


def _to_float(block: np.ndarray) -> np.ndarray:
    if block.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return block.astype(np.float32)
    if block.dtype.kind == "u":
        return (block.astype(np.float32) - 128) / 128
    return block.astype(np.float32) / -float(np.iinfo(block.dtype).min)
