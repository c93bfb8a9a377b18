"""The cache of compiled programs is JAX's: its options are the host's again afterwards, and so is the cache."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxasr import caches
from jaxasr.caches import is_compiled, make_room_for_programs, programs_kept

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def options() -> list[Any]:
    return [getattr(jax.config, name) for name in OPTIONS]


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host without a cache; ours is in a folder of the test."""
    before = options()
    for name, value in zip(OPTIONS, (None, 1.0, 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path / "ours"))
    yield
    for name, value in zip(OPTIONS, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_anew(number: float) -> None:
    jax.jit(lambda x: jnp.sin(x) * number).lower(jnp.zeros(3)).compile()


def programs(folder: Path) -> int:
    return len(list(folder.glob("*-cache"))) if folder.exists() else 0


def test_programs_are_kept_inside_and_the_options_put_back(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours" / "programs", tmp_path / "theirs"
    with programs_kept():
        compile_anew(1.5)
        with programs_kept():
            compile_anew(2.5)
        compile_anew(3.5)
    assert options() == [None, 1.0, 0]
    kept = programs(ours)
    assert kept >= 3
    # What the host compiles afterwards is not kept with ours, and lies where the host says from then on.
    jax.config.update(OPTIONS[1], 0)
    compile_anew(4.5)
    jax.config.update(OPTIONS[0], str(theirs))
    compile_anew(5.5)
    assert (programs(ours), programs(theirs)) == (kept, 1)
    with programs_kept():
        compile_anew(6.5)
    assert (programs(ours), programs(theirs)) == (kept, 2)
    assert options() == [str(theirs), 0, 0]


def test_what_the_host_sets_meanwhile_stays() -> None:
    with programs_kept():
        jax.config.update(OPTIONS[1], 7.0)
    assert options() == [None, 7.0, 0]


def test_threads_leave_in_any_order() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with programs_kept():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    with programs_kept():
        thread.start()
        assert inside.wait(60)
    assert options()[1] == 0
    leave.set()
    thread.join()
    assert options() == [None, 1.0, 0]


def test_the_options_are_put_back_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), programs_kept():
        raise ZeroDivisionError
    assert options() == [None, 1.0, 0]


def write(folder: Path, name: str, age: float, size: int = 100) -> Path:
    """A file of the cache that was used for the last time `age` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"jit_{name}-0123-cache"
    file.write_bytes(bytes(size))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_programs_that_were_not_used_for_longest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ours" / "programs"
    make_room_for_programs()  # where there is nothing yet
    ancient, old, older, new = (
        write(folder, name, age) for name, age in (("a", 3e6), ("b", 500), ("c", 900), ("d", 9))
    )
    make_room_for_programs()
    assert sorted(folder.iterdir()) == [old, older, new]
    assert is_compiled("c") and not is_compiled("a")  # which is its use
    monkeypatch.setattr(caches, "PROGRAMS_LIMIT", 250)
    make_room_for_programs()
    assert sorted(folder.iterdir()) == [older, new]


@pytest.mark.parametrize("by", ["an option", "the environment", "our own folder's name"])
def test_a_folder_that_the_host_has_named_is_left_alone(
    tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "theirs" if by != "our own folder's name" else tmp_path / "ours" / "programs"
    if by != "an option":
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    jax.config.update(OPTIONS[0], str(folder))
    file, converted = write(folder, "a", 3e6), write(tmp_path / "ours" / "models", "b", 3e6)
    before = file.stat().st_mtime
    assert is_compiled("a")
    make_room_for_programs()
    assert file.stat().st_mtime == before and converted.exists()


def test_what_is_kept_in_a_bucket_is_taken_to_be_there() -> None:
    jax.config.update(OPTIONS[0], "gs://bucket/programs")
    assert is_compiled("whatever")
    make_room_for_programs()
