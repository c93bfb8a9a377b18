"""`jaxasr bench`: what is measured, for people and as JSON."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import jaxasr
from jaxasr.errors import ModelError

Run = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def measure(model: str | None = None, *, dtype: str, head: str | None, beam: int | None) -> dict[str, Any]:
        if model == "absent":
            raise ModelError("absent is no model")
        calls.append((model, dtype, head, beam))
        return {"model": model, "real_time_factor": 31.25, "programs": 3, "compile_s": 2.5}

    module = ModuleType("jaxasr.benchmark")
    module.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jaxasr.benchmark", module)
    monkeypatch.setattr(jaxasr, "benchmark", module, raising=False)
    return calls


def test_figures(run: Run, asked: list[tuple[Any, ...]]) -> None:
    result = run("bench", "--model", "m", "--dtype", "bfloat16")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[:-1] == ["model: m", "real time factor: 31.25", "programs: 3", "compile: 2.5 s"]
    assert json.loads(run("bench", "--model", "m", "--json").out)["real_time_factor"] == 31.25
    assert run("bench", "--search", "joint", "--beam", "8").code == 0
    assert asked == [("m", "bfloat16", None, None), ("m", "float32", None, None), (None, "float32", "joint", 8)]


def test_errors_are_one_line(run: Run, asked: list[tuple[Any, ...]]) -> None:
    result = run("bench", "--model", "absent", "--json")
    assert (result.code, result.out, result.lines) == (1, "", ["jaxasr: absent is no model"])


def test_the_library_has_what_the_command_calls() -> None:
    from jaxasr import benchmark

    assert {"model", "dtype", "head", "beam"} <= set(inspect.signature(benchmark.measure).parameters)
