"""`jaxasr transcribe --stream` on a small model: partial texts beside the results, which are those without it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxasr import store
from jaxasr.model import AbstractModel
from jaxasr.testing import random_parameters, tiny_config, tiny_model_directory
from jaxasr.text.tokens import TokenTable

Run = Callable[..., Any]
Record = Callable[..., Path]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose encoder works in chunks."""
    config = tiny_config()
    encoder: Any = dataclasses.replace(config.encoder, causal=True, chunk_size=16, left_context=16, whole_chunks=True)
    config = dataclasses.replace(config, encoder=encoder)
    folder = tmp_path_factory.mktemp("streaming") / "model"
    card = store.ModelCard(config.name, (), ("random",), "tests", "Apache-2.0", trained=True)
    tokens = TokenTable(("<blk>", "<unk>", "▁A", "▁B", "C", "D", "E", "F"))
    store.save(folder, config, random_parameters(AbstractModel(config).parameters, 3), tokens, card)
    return folder


@pytest.fixture
def talks(tmp_path: Path, record: Record) -> list[Path]:
    rng = np.random.default_rng(4)
    return [record(tmp_path / f"{name}.wav", samples=rng.normal(0, 3000, 30000)) for name in "ab"]


def test_partial_texts_and_the_same_results(run: Run, directory: Path, talks: list[Path]) -> None:
    without = run("transcribe", *talks, "--model", directory, "--format", "json")
    streamed = run("transcribe", *talks, talks[0].with_name("none.wav"), "-m", directory, "-f", "json", "--stream")
    assert (without.code, streamed.code) == (0, 1)
    ours, theirs = ([json.loads(line) for line in result.out.splitlines()] for result in (streamed, without))
    assert [Path(row["audio"]).stem for row in ours] == ["a", "b"]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.pop("log_probs"), other.pop("log_probs"), atol=1e-3)
        assert one == other and one["text"]
    shown = [line for line in streamed.lines if " s: " in line]
    assert len(shown) > 4 and shown[0].startswith("jaxasr: 0.")
    texts = [line.partition(" s: ")[2] for line in shown]
    assert all(ours[0]["text"].startswith(text) for text in texts[:2])
    assert any("none.wav" in line for line in streamed.lines)


def test_a_model_that_cannot_stream_is_refused(run: Run, tmp_path: Path, talks: list[Path]) -> None:
    model = tiny_model_directory(tmp_path / "model")
    result = run("transcribe", talks[0], "--model", model, "--stream")
    assert (result.code, result.out) == (1, "")
    assert result.lines[-1] == (
        "jaxasr: tiny cannot stream, since its encoder is computed over whole recordings: take a model whose encoder "
        "works in chunks, such as librispeech-zipformer-medium-streaming"
    )
