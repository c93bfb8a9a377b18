"""Which names are a model directory of FunASR's."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from jaxasr.convert.funasr.candidates import find


def found(*names: str, named: str | None = None) -> list[tuple[str, str | None]]:
    paths = [PurePosixPath(name) for name in names]
    candidates = find(paths, None, PurePosixPath(named) if named else None)
    return [(str(each.files[0]), None if each.tokens is None else str(each.tokens)) for each in candidates]


@pytest.mark.parametrize(
    ("names", "candidates"),
    [
        (["model.pt", "config.yaml", "am.mvn", "tokens.json", "tokens.txt"], [("model.pt", "tokens.json")]),
        (["model.pb", "config.yaml", "am.mvn"], [("model.pb", None)]),
        (["model.pb", "model.pt", "config.yaml", "am.mvn"], [("model.pt", None), ("model.pb", None)]),
        (["a/model.pt", "a/config.yaml", "a/am.mvn", "a/tokens.txt"], [("a/model.pt", "a/tokens.txt")]),
        (["model.pt", "config.yaml"], []),
        (["model.pt", "a/config.yaml", "a/am.mvn"], []),
        (["../model.pt", "../config.yaml", "../am.mvn"], []),
        (["model.onnx", "config.yaml", "am.mvn"], [("model.onnx", None)]),
        (["vad.pb", "vad.yaml", "vad.mvn", "b_vad.onnx"], [("vad.pb", None), ("b_vad.onnx", None)]),
        (["other.onnx", "config.yaml", "am.mvn"], []),
    ],
)
def test_of_a_folder(names: list[str], candidates: list[tuple[str, str | None]]) -> None:
    assert found(*names) == candidates


def test_a_named_file_may_be_called_otherwise() -> None:
    names = ("model.pt.ep10", "model.pt", "config.yaml", "am.mvn")
    assert found(*names, named="model.pt.ep10") == [("model.pt.ep10", None)]
    assert found(*names, named="config.yaml") == []
