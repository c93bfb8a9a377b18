"""`jaxasr convert`: its options as they reach the library, and the published forms through to a model directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jaxasr.convert
from jaxasr.errors import CheckpointError

Run = Callable[..., Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def convert_checkpoint(*args: Any, **kwargs: Any) -> Any:
        made.append((args, kwargs))
        return SimpleNamespace(summary=("takes chunk 16", "int8 weights are dequantized"))

    monkeypatch.setattr(jaxasr.convert, "convert_checkpoint", convert_checkpoint)
    return made


def test_defaults_and_what_is_printed(run: Run, calls: list[Any]) -> None:
    result = run("convert", "source", "out")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[:2] == ["takes chunk 16", "int8 weights are dequantized"]
    assert result.out.splitlines()[2] == "out is ready: jaxasr transcribe AUDIO --model out"
    assert calls == [
        (
            (Path("source"), Path("out")),
            {
                "tokens": None, "config": None, "precision": None, "average": (), "chunk_seconds": None,
                "left_context_seconds": None, "overwrite": False,
            },
        )
    ]  # fmt: skip


def test_options(run: Run, calls: list[Any]) -> None:
    options = "--tokens t.txt --config zipformer_small --precision int8 --chunk-seconds 0.64 "
    options += "--left-context-seconds 2.56 --overwrite"
    assert run("convert", "source", "out", *options.split()).code == 0
    assert calls[0][1] == {
        "tokens": Path("t.txt"), "config": "zipformer_small", "precision": "int8", "average": (),
        "chunk_seconds": 0.64, "left_context_seconds": 2.56, "overwrite": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        "epoch-9.pt out --average epoch-8.pt epoch-7.pt --chunk-seconds 0.32",
        "epoch-9.pt out --average epoch-8.pt --average epoch-7.pt --chunk-seconds 0.32",
        "epoch-9.pt out --average=epoch-8.pt --average epoch-7.pt --chunk-seconds 0.32",
        "--chunk-seconds 0.32 epoch-9.pt out --average epoch-8.pt epoch-7.pt",
        "--chunk-seconds 0.32 --average epoch-8.pt epoch-7.pt -- epoch-9.pt out",
    ],
)
def test_average_takes_all_that_follow_it(run: Run, calls: list[Any], arguments: str) -> None:
    assert run("convert", *arguments.split()).code == 0
    ((args, kwargs),) = calls
    assert args == (Path("epoch-9.pt"), Path("out"))
    assert (list(kwargs["average"]), kwargs["chunk_seconds"]) == ([Path("epoch-8.pt"), Path("epoch-7.pt")], 0.32)


def test_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("x.pt: tensors are missing: a, b")

    monkeypatch.setattr(jaxasr.convert, "convert_checkpoint", refuse)
    result = run("convert", "x.pt", "out")
    assert (result.code, result.out, result.lines) == (1, "", ["jaxasr: x.pt: tensors are missing: a, b"])


def test_a_source_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("convert", tmp_path / "absent.pt", tmp_path / "out")
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert "absent.pt" in result.err and list(tmp_path.iterdir()) == []
