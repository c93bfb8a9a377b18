"""The cache of compiled programs is JAX's: its options are the host's again afterwards, and so is the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxasr.caches import programs_kept

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
