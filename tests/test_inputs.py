"""One recording in any form is one recording, the same whichever library holds it; all else says what it is."""

from __future__ import annotations

import array
import io
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxasr import audio
from jaxasr.errors import AudioError
from jaxasr.inputs import AudioInput, listed, named_source

CLIP = Path(__file__).parent / "data" / "espeak_sentence.wav"
CHANNELS = np.random.default_rng(1).uniform(-0.5, 0.5, (3, 1600)).astype(np.float32)


class OnlyDLPack:
    """An array that knows no other protocol, and must not be iterated."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __dlpack__(self, **options: Any) -> object:
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.held.__dlpack_device__()

    def __iter__(self) -> Any:
        raise AssertionError("iterated sample by sample")


class Tensor:
    """What a tensor of PyTorch does: numpy cannot read it before it is detached, on the CPU, and of a type of numpy."""

    def __init__(self, held: np.ndarray, *, attached: bool = True, device: str = "cuda", narrow: bool = True) -> None:
        self.held, self.attached, self.device, self.narrow = held, attached, device, narrow

    def detach(self) -> Tensor:
        return Tensor(self.held, attached=False, device=self.device, narrow=self.narrow)

    def cpu(self) -> Tensor:
        return Tensor(self.held, attached=self.attached, device="cpu", narrow=self.narrow)

    def is_floating_point(self) -> bool:
        return self.held.dtype.kind == "f"

    def float(self) -> Tensor:
        return Tensor(self.held, attached=self.attached, device=self.device, narrow=False)

    def __array__(self, *_: Any) -> np.ndarray:
        if self.attached or (self.narrow and self.is_floating_point()):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.held

    def __iter__(self) -> Any:
        raise AssertionError("iterated sample by sample")


class Decoder:
    """What torchcodec's decoder gives, which newer versions of `datasets` put into their rows."""

    def __init__(self, held: np.ndarray, rate: int) -> None:
        self.data, self.sample_rate = Tensor(held), rate

    def get_all_samples(self) -> Decoder:
        return self

    def __getitem__(self, key: str) -> Any:
        raise AssertionError("iterated")


def load(value: Any, rate: float | None = None) -> np.ndarray:
    found = named_source(value, rate)
    return audio.load(found.source, found.sample_rate)


ARRAYS = {
    "numpy": CHANNELS,
    "transposed": CHANNELS.T,
    "float64": CHANNELS.astype(np.float64),
    "jax": jnp.asarray(CHANNELS),
    "tensor": Tensor(CHANNELS),
    "dlpack of numpy": OnlyDLPack(CHANNELS),
    "dlpack of jax": OnlyDLPack(jnp.asarray(CHANNELS)),
    "memoryview": memoryview(CHANNELS),
    "mapping": {"array": CHANNELS, "sampling_rate": 16000},
    "mapping of a tensor": {"path": None, "array": Tensor(CHANNELS), "sampling_rate": 16000},
    "mapping of lists": {"array": CHANNELS.tolist(), "sampling_rate": 16000},
    "decoder": Decoder(CHANNELS, 16000),
}
NARROW = {
    "ml_dtypes": CHANNELS.astype(ml_dtypes.bfloat16),
    "jax": jnp.asarray(CHANNELS, jnp.bfloat16),
    "dlpack": OnlyDLPack(jnp.asarray(CHANNELS, jnp.bfloat16)),
}


@pytest.mark.parametrize("form", ARRAYS)
def test_three_rows_are_three_channels_in_every_library(form: str) -> None:
    (value,) = listed(ARRAYS[form])
    np.testing.assert_allclose(load(value), CHANNELS.mean(axis=0), atol=1e-7)


@pytest.mark.parametrize("form", NARROW)
def test_bfloat16_is_read(form: str) -> None:
    (value,) = listed(NARROW[form])
    expected = CHANNELS.astype(ml_dtypes.bfloat16).astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(load(value), expected, atol=1e-7)


def test_integers_keep_their_scale() -> None:
    whole = np.array([0, 8192, -16384, 16384], np.int16)
    for value in (whole, Tensor(whole), array.array("h", whole.tolist()), OnlyDLPack(whole)):
        (value,) = listed(value)
        np.testing.assert_array_equal(load(value), np.float32([0, 0.25, -0.5, 0.5]))


def test_files_in_any_form(tmp_path: Path) -> None:
    content = CLIP.read_bytes()
    expected = audio.load(content)

    class OfBytes:
        def __fspath__(self) -> bytes:
            return os.fsencode(CLIP)

    forms = [
        str(CLIP), CLIP, OfBytes(), content, bytearray(content), memoryview(content), io.BytesIO(content),
        {"bytes": content, "path": "elsewhere.wav"}, {"bytes": None, "path": str(CLIP)}, {"path": CLIP},
    ]  # fmt: skip
    for form in forms:
        (value,) = listed(form)
        np.testing.assert_array_equal(load(value), expected)
    assert [named_source(form, None).name for form in forms] == [
        *[str(CLIP)] * 3, *[""] * 4, "elsewhere.wav", str(CLIP), str(CLIP)
    ]  # fmt: skip


def test_a_mapping_states_its_rate() -> None:
    clip = CHANNELS[0]
    for value in ({"array": clip, "sampling_rate": 8000}, {"array": clip, "sample_rate": 8000}, Decoder(clip, 8000)):
        assert load(value, 16000).shape == (3200,)
    assert load({"array": clip}, 8000).shape == (3200,)
    with pytest.raises(AudioError, match="^a.wav: has `array` but no `sampling_rate`; add it, or pass sample_rate$"):
        load({"array": clip, "path": "a.wav"})


MANY: dict[str, Any] = {
    "list": [CHANNELS, CHANNELS[0]],
    "tuple of paths": (CLIP, "a.wav"),
    "array of strings": np.array(["a.wav", "b.wav"]),
    "array of objects": np.array(["a.wav", None], dtype=object),
    "list with a number among others": [1.0, "a.wav"],
    "list of lists": [[0.1, 0.2], [0.3]],
    "nothing": [],
}


@pytest.mark.parametrize("name", MANY)
def test_lists_are_many(name: str) -> None:
    assert len(list(listed(MANY[name]))) == len(MANY[name])


def test_generators_are_many_and_are_not_begun() -> None:
    def never() -> Any:
        raise AssertionError("begun")
        yield

    generator = never()
    assert listed(generator) is generator
    assert listed({"a.wav": 1}.keys()) == {"a.wav"}


class Refusing:
    def __array__(self, *_: Any) -> np.ndarray:
        raise OSError("the device\nis gone")

    @property
    def read(self) -> Any:
        raise AttributeError


NONE: dict[str, tuple[Any, str]] = {
    "None": (None, "not NoneType"),
    "number": (16000, "not int; the rate of arrays is the argument sample_rate"),
    "samples in a list": ([0.0] * 1000, "not list; samples in a list: numpy.asarray"),
    "numbers of numpy in a list": ([np.float32(0.5)] * 10, "not list; samples in a list"),
    "object": (object(), "not object"),
    "class": (io.BytesIO, "cannot be read"),
    "row without audio": ({"text": "HELLO"}, "needs `array` and `sampling_rate`, or `bytes`, or `path`, and has text"),
    "empty row": ({}, "has nothing"),
    "one sample": (np.float32(0.5), "0 axes"),
    "text for an array": ({"array": "abc", "sampling_rate": 8000}, "dtype"),
    "no rate": ({"array": CHANNELS, "sampling_rate": "16k"}, "sample_rate must be a number of Hz"),
    "refusing": (Refusing(), "the device is gone"),
    "integers of 64 bits": (Tensor(np.arange(9)), "dtype int64"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_recording_fails_once_and_says_what_it_is(name: str) -> None:
    value, message = NONE[name]
    (one,) = listed(value)
    with pytest.raises(AudioError) as raised:
        load(one)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_memory_that_is_not_there_is_told_as_such() -> None:
    class Large:
        def __array__(self, *_: Any) -> np.ndarray:
            raise MemoryError

    large: AudioInput = Large()
    for value in (large, {"array": large, "sampling_rate": 16000}):
        with pytest.raises(MemoryError):
            named_source(value, None)
