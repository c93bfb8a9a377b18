"""What callers hand in as recordings: one is told from many, and each becomes what `audio.load` takes.

One recording is a path, the bytes of a file, a binary file, an array of any library, or a mapping as the package
`datasets` makes them. Every other iterable is many recordings, and an array of strings or of objects is one of these.
An array of shape (3, N) is one recording of three channels, whichever library it comes from; a list of three arrays is
three recordings.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from jaxasr.audio import AudioSource
from jaxasr.errors import AudioError, JaxasrError
from jaxasr.files import reason


class SupportsArray(Protocol):
    """An array that numpy can read, such as one of JAX or PyTorch."""

    def __array__(self) -> np.ndarray: ...


class SupportsDLPack(Protocol):
    """An array that the DLPack protocol can read."""

    def __dlpack__(self) -> object: ...


@dataclasses.dataclass(frozen=True)
class DecodedSamples:
    """Sound that was decoded: `data`, an array of samples, and `sample_rate` (Hz)."""

    data: np.ndarray
    sample_rate: float


class Decodable(Protocol):
    """What decodes when it is asked to, such as a decoder of torchcodec in a row of newer versions of `datasets`."""

    def get_all_samples(self) -> DecodedSamples: ...


AudioInput: TypeAlias = "AudioSource | SupportsArray | SupportsDLPack | Decodable | Mapping[str, object]"

_RATES = ("sampling_rate", "sample_rate")  # keys of a mapping: the package `datasets` writes the first


@dataclasses.dataclass(frozen=True)
class NamedSource:
    """What `audio.load` takes: `source`, and of an array `sample_rate` in Hz; `name` is "" where there is none."""

    name: str
    source: AudioSource
    sample_rate: float | None


def listed(sources: Iterable[AudioInput] | AudioInput) -> Iterable[AudioInput]:
    """Many recordings as they are, and one as a list of one: arrays and files can be iterated too, over other things.

    What is no recording at all, such as a number or a list of numbers, counts as one, so that it fails once.
    """
    if _is_one(sources):
        return [cast(AudioInput, sources)]
    return cast("Iterable[AudioInput]", sources)


def named_source(value: AudioInput, sample_rate: float | None) -> NamedSource:
    """The source that one input stands for; AudioError for what is none.

    `sample_rate` (Hz): of arrays that do not come with their own.
    """
    if isinstance(value, Mapping):
        return _from_mapping(value, sample_rate)
    if isinstance(value, (str, bytes, bytearray)):
        return NamedSource(value if isinstance(value, str) else "", value, None)
    if isinstance(value, os.PathLike):
        name = os.fsdecode(value)
        return NamedSource(name, value if isinstance(os.fspath(value), str) else Path(name), None)
    if isinstance(value, memoryview) and value.format in ("B", "b", "c"):
        return NamedSource("", value, None)
    try:
        if hasattr(value, "get_all_samples"):
            decoded = value.get_all_samples()
            name = getattr(value, "name", "")
            return NamedSource(name if isinstance(name, str) else "", _samples(decoded.data), decoded.sample_rate)
        if hasattr(value, "read"):
            return NamedSource("", cast(AudioSource, value), None)
        if _is_array(value):
            return NamedSource("", _samples(value), sample_rate)
    except (JaxasrError, MemoryError):
        raise
    except Exception as error:  # the caller's object may raise anything
        raise AudioError(f"audio of type {_kind(value)}: cannot be read ({reason(error)})") from error
    raise AudioError(
        "audio must be a path, bytes, a binary file, an array, or a mapping with `array` and `sampling_rate`, "
        f"not {_kind(value)}{_remedy(value)}"
    )


def _is_one(value: object) -> bool:
    if isinstance(value, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)):
        return True
    if hasattr(value, "read") or hasattr(value, "get_all_samples"):
        return True
    if _is_array(value):
        dtype = getattr(value, "dtype", None)
        return getattr(dtype, "kind", "") not in ("O", "S", "T", "U") or getattr(value, "ndim", 1) == 0
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(each, numbers.Number) for each in value)
    return not (hasattr(value, "__iter__") or hasattr(value, "__getitem__"))


def _is_array(value: object) -> bool:
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return True
    try:
        with memoryview(value):  # type: ignore[arg-type]  # asks whether it is a buffer, as `array.array` is
            return True
    except TypeError:
        return False


def _samples(value: Any) -> np.ndarray:
    """The array as one of numpy, of a type that numpy itself has."""
    if hasattr(value, "detach"):
        # A tensor of PyTorch: numpy reads none with a gradient, none of another device and none of bfloat16.
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        array = np.asarray(value)
    else:
        array = _from_dlpack(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _from_dlpack(value: Any) -> np.ndarray:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError):  # of another device, or of a type that numpy does not have
        import jax

        return np.asarray(jax.dlpack.from_dlpack(value))


def _from_mapping(value: Mapping[str, object], sample_rate: float | None) -> NamedSource:
    """A row of `datasets`: `array` and `sampling_rate`, or where it is not decoded `bytes` or `path`."""
    try:
        fields = {key: value[key] for key in ("array", "bytes", "path", *_RATES) if key in value}
        keys = ", ".join(map(str, value))
    except MemoryError:
        raise
    except Exception as error:  # a mapping may decode what it is asked for
        raise AudioError(f"audio mapping: cannot be read ({reason(error)})") from error
    path = fields.get("path")
    name = os.fsdecode(path) if isinstance(path, (str, os.PathLike)) else ""
    where = name or "audio mapping"
    if fields.get("array") is not None:
        rate = next((fields[key] for key in _RATES if fields.get(key) is not None), sample_rate)
        if rate is None:
            raise AudioError(f"{where}: has `array` but no `sampling_rate`; add it, or pass sample_rate")
        try:
            return NamedSource(name, _samples(fields["array"]), cast(float, rate))
        except MemoryError:
            raise
        except Exception as error:
            raise AudioError(f"{where}: `array` cannot be read ({reason(error)})") from error
    content = fields.get("bytes")
    if isinstance(content, (bytes, bytearray, memoryview)):
        return NamedSource(name, content, None)
    if name:
        return NamedSource(name, Path(name), None)
    raise AudioError(
        f"audio mapping: needs `array` and `sampling_rate`, or `bytes`, or `path`, and has {keys or 'nothing'}"
    )


def _kind(value: object) -> str:
    return type(value).__name__


def _remedy(value: object) -> str:
    if isinstance(value, numbers.Number):
        return "; the rate of arrays is the argument sample_rate"
    if isinstance(value, (list, tuple)):
        return "; samples in a list: numpy.asarray(values, dtype='float32')"
    return ""
