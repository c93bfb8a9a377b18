"""PyTorch checkpoints for tests, written without PyTorch, and trip-wires on what code in a file would do."""

from __future__ import annotations

import builtins
import importlib
import os
import pickle
import socket
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

TRIP_WIRES = {
    os: ("system", "popen", "execv", "execve", "mkdir", "remove", "fork"),
    subprocess: ("Popen", "run", "call", "check_call", "check_output", "getoutput"),
    socket: ("socket", "create_connection", "getaddrinfo"),
    pickle: ("Unpickler", "_Unpickler", "load", "loads"),
    importlib: ("import_module",),
    builtins: ("eval", "exec", "compile", "__import__"),
}
STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


def encode(value: Any, storages: dict[str, bytes]) -> bytes:
    """The opcodes (protocol 2) that build `value`: `bytes` stand for themselves, arrays add a storage each."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x08" + struct.pack("<q", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case list():
            return b"](" + b"".join(encode(item, storages) for item in value) + b"e"
        case tuple():
            return b"(" + b"".join(encode(item, storages) for item in value) + b"t"
        case dict():
            items = b"".join(encode(key, storages) + encode(item, storages) for key, item in value.items())
            return b"}(" + items + b"u"
        case np.ndarray():
            key = str(len(storages))
            storages[key] = np.ascontiguousarray(value).tobytes()
            reference = ("storage", f"ctorch\n{STORAGES[value.dtype]}\n".encode(), key, "cpu", value.size)
            strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
            hooks = b"ccollections\nOrderedDict\n)R"
            tensor = (encode(reference, storages) + b"Q", 0, value.shape, strides, False, hooks)
            return b"ctorch._utils\n_rebuild_tensor_v2\n" + encode(tensor, storages) + b"R"
    raise TypeError(type(value))


@pytest.fixture
def write_torch(tmp_path: Path) -> Callable[..., Path]:
    """write_torch(value, storages={}, name="model.pt") -> the checkpoint's path; `bytes` in `value` are raw opcodes."""

    def write(value: Any, storages: Mapping[str, bytes] | None = None, name: str = "model.pt") -> Path:
        stored = dict(storages or {})
        pickled = b"\x80\x02" + encode(value, stored) + b"."
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("model/data.pkl", pickled)
            archive.writestr("model/byteorder", b"little")
            for key, data in stored.items():
                archive.writestr(f"model/data/{key}", data)
            archive.writestr("model/version", b"3\n")
        return tmp_path / name

    return write


@pytest.fixture
def nothing_runs() -> Callable[[], AbstractContextManager[None]]:
    """`with nothing_runs():` trip-wires on what code in a file would do; none may have gone off, caught or not."""
    return _nothing_runs


@contextmanager
def _nothing_runs() -> Iterator[None]:
    tripped: list[str] = []

    def trap(name: str) -> Callable[..., Any]:
        def went_off(*arguments: Any, **named: Any) -> Any:
            tripped.append(name)
            raise RuntimeError(f"{name} was called")

        return went_off

    really_open = builtins.open

    def read_only_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        return (really_open if set(mode) <= set("rbt") else trap("open for writing"))(file, mode, *arguments, **named)

    named = [(module, name) for module, names in TRIP_WIRES.items() for name in names if hasattr(module, name)]
    originals = [(module, name, getattr(module, name)) for module, name in named]
    try:  # by hand: pytest's monkeypatch imports and compiles
        for module, name, _ in originals:
            setattr(module, name, trap(f"{module.__name__}.{name}"))
        builtins.open = read_only_open
        yield
    finally:
        builtins.open = really_open
        for module, name, original in originals:
            setattr(module, name, original)
    assert tripped == []
