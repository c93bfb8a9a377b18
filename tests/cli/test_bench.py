"""`jaxasr bench`, end to end on small models: what is measured, for people and as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxasr import benchmark
from jaxasr.configs import named_configs
from jaxasr.loading import EMBEDDED
from jaxasr.testing import tiny_model_directory

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_size_one_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure", functools.partial(benchmark.measure, sizes=((2, 1.0),), repeats=1))


@pytest.mark.slow
def test_the_embedded_model(run: Run) -> None:
    result = run("bench", "--model", EMBEDDED, "--json")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert (facts["model"], facts["search"], facts["beam"], facts["dtype"]) == ("embedded", "joint", 8, "float32")
    assert facts["programs"] == 1 and facts["cores"] >= 1 and facts["peak_memory_mib"] > 50
    (row,) = facts["sizes"]
    assert (row["clips"], row["seconds"]) == (2, 1.0) and row["first_call_s"] > 0 and row["tokens"] >= 0
    assert all(row[part] > 0 for part in ("whole", "features", "encoder", "search"))


def test_lines_for_people_and_options(run: Run, tmp_path: Path) -> None:
    model = tiny_model_directory(tmp_path / "tiny")
    result = run("bench", "--model", model, "--dtype", "bfloat16", "--search", "beam", "--beam", "2")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for line in ("model: tiny", "search: beam", "beam: 2", "dtype: bfloat16", "programs: 1"):
        assert line in lines
    assert lines[-1].startswith("whole, features, encoder, search: seconds of audio in a second")


def test_a_model_that_is_not_there_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("bench", "--model", tmp_path / "empty", "--json")
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert "empty is no model directory" in result.err


def test_a_configuration_is_filled_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.DEFAULT in named_configs()
    recognizer = benchmark.random_recognizer("gigaspeech_kws_zipformer", seed=1, beam=4)
    assert recognizer.config.name == "gigaspeech_kws_zipformer" and recognizer.programs.search.beam == 4
    kernel = np.asarray(recognizer.programs.params["transducer"]["output"]["kernel"])
    assert 0.02 < kernel.std() < 0.04
