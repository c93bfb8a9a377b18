"""Arrays that were read once are mapped afterwards: without Orbax, without a copy, and never without their hashes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxasr import mapped, store, testing
from jaxasr.caches import FORGOTTEN_AFTER, make_room
from jaxasr.errors import ModelError
from jaxasr.programs import Programs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arrays"


@pytest.fixture
def directory(tmp_path: Path, cache: Path) -> Path:
    return testing.tiny_model_directory(tmp_path / "model")


def read(directory: Path, *, verify: bool = True) -> dict[str, np.ndarray]:
    return store.flatten(store.open_model(directory).params(verify=verify))


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert array.dtype == theirs[path].dtype and array.shape == theirs[path].shape
        assert array.tobytes() == theirs[path].tobytes()


def test_a_warm_start_needs_no_orbax(directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(directory)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    for verify in (True, False):
        assert_same(read(directory, verify=verify), first)
    params = testing.random_parameters(store.unflatten(first))
    assert_same(first, store.flatten(params))


def test_a_damaged_file_is_made_anew(directory: Path, cache: Path) -> None:
    first = {path: array.copy() for path, array in read(directory).items()}
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    flipped = [bytearray(whole) for _ in range(3)]
    for data, place in zip(flipped, (0, len(whole) // 2 // 64 * 64, len(whole) // 64 * 64 - 64), strict=True):
        data[place] ^= 1
    for damaged in (*flipped, whole[:-1], whole + b"\0", bytes(len(whole)), b""):
        # A file of its own, as another process would put there: the old one may be mapped.
        file.unlink()
        file.write_bytes(damaged)
        assert_same(read(directory), first)
        assert file.read_bytes() == whole
    file.unlink()
    file.mkdir()
    assert_same(read(directory), first)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a file that is mapped cannot be made shorter")
def test_no_program_writes_into_a_mapped_file_by_mistake(directory: Path, cache: Path) -> None:
    """Who shortens a file that is mapped ends the process that reads it."""
    read(directory)
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o444
    file.chmod(0o644)
    damaged = cache / "damaged"
    damaged.write_bytes(bytes(file.stat().st_size))
    os.replace(damaged, file)
    read(directory)  # made anew
    assert file.stat().st_mode & 0o777 == 0o444
    make_room(cache, 0, 0)
    assert list(cache.iterdir()) == []


def test_what_happens_to_the_model_directory_is_noticed(directory: Path) -> None:
    read(directory)
    files = {file: file.read_bytes() for file in (directory / "params").rglob("*") if file.is_file()}
    for file, data in files.items():
        file.write_bytes(bytes(len(data)))
        os.utime(file, (1e9, 1e9))
    with pytest.raises(ModelError, match="params is damaged"):
        read(directory)
    for file, data in files.items():
        file.write_bytes(data)
    read(directory)
    shutil.rmtree(directory / "params")
    with pytest.raises(ModelError, match="params is damaged"):
        read(directory)


def test_a_container_finds_what_was_kept_while_its_image_was_built(
    directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have lost the fractions of their seconds."""
    first = read(directory)
    for file in [directory, *directory.rglob("*")]:
        os.utime(file, ns=(0, file.stat().st_mtime_ns // 10**9 * 10**9))
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert_same(read(directory), first)
    assert len(list(cache.iterdir())) == 1


def test_arrays_are_not_kept_unverified(directory: Path, cache: Path) -> None:
    read(directory, verify=False)
    assert not cache.exists()


@pytest.mark.parametrize("hindrance", ["a file in its place", "a full disk", "an interrupted write"])
def test_without_a_place_to_keep_them(
    directory: Path, cache: Path, hindrance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if hindrance == "a file in its place":
        cache.parent.write_text("")
    elif hindrance == "a full disk":
        usage = shutil.disk_usage(directory)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
    else:
        monkeypatch.setattr(os, "replace", refuse)
    params = read(directory)
    assert_same(params, store.flatten(testing.random_parameters(store.unflatten(params))))
    assert all(array.ctypes.data % 64 == 0 and not array.flags.writeable for array in params.values())
    assert not cache.exists() or list(cache.iterdir()) == []


def test_every_type_and_shape(cache: Path) -> None:
    generator = np.random.default_rng(0)
    types = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32, ml_dtypes.int4, np.bool_)
    arrays: dict[str, Any] = {
        f"{np.dtype(dtype)}.{len(shape)}.{size}": generator.integers(0, 2, shape).astype(dtype)
        for dtype in types
        for size in (0, 1, 7)
        for shape in ((), (size,), (3, size, 5))
    }
    arrays["transposed"] = generator.standard_normal((3, 5)).T
    described = store._describe_arrays(arrays)
    file = cache / "x"
    assert mapped.read(file, described) is None
    written = mapped.keep(file, described, arrays)
    again = mapped.read(file, described)
    assert written is not None and again is not None
    for kept in (written, again, mapped.pack(described, dict(arrays))):
        assert_same(kept, arrays)
        assert all(array.ctypes.data % 64 == 0 and not array.flags.writeable for array in kept.values() if array.size)
    assert mapped.keep(cache / "none", {}, {}) == mapped.read(cache / "none", {}) == mapped.pack({}, {}) == {}


def test_programs_on_a_cpu_take_them_without_a_copy(directory: Path) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("another device has a memory of its own")
    stored = store.open_model(directory)
    params = stored.params()
    programs = Programs(stored.config, params, search=stored.config.search, devices=jax.local_devices()[:1])
    on_device = store.flatten(programs.params)
    for path, array in store.flatten(params).items():
        if array.size:
            assert on_device[path].unsafe_buffer_pointer() == array.ctypes.data


def test_the_files_used_last_stay(tmp_path: Path) -> None:
    now = os.stat(tmp_path).st_mtime
    for name, age in (("a", 30), ("b", 20), ("c", 10), ("old", FORGOTTEN_AFTER + 60)):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now - age, now - age))
    make_room(tmp_path, 0, 10_000)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]
    make_room(tmp_path, 60, 300)
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_a_file_that_is_read_was_used(directory: Path, cache: Path) -> None:
    read(directory)
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))
    read(directory)
    assert file.stat().st_mtime > 0
    (cache / "forgotten").write_bytes(b"x")
    os.utime(cache / "forgotten", (0, 0))
    read(directory)
    assert list(cache.iterdir()) == [file]
