"""`jaxasr convert`: its options as they take effect on the reference model that lies in the repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import DATA, REPOSITORY
from golden_models import BUNDLED
from jaxasr import store

Run = Callable[..., Any]
MODEL = DATA / BUNDLED
RECIPE = ("--config", str(MODEL / "config.yaml"))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder with three checkpoints of the same weights, epoch-7.pt to epoch-9.pt, and their tokens as t.txt."""
    folder = tmp_path / "exp"
    folder.mkdir()
    for epoch in (7, 8, 9):
        shutil.copy(MODEL / "pretrained.pt", folder / f"epoch-{epoch}.pt")
    shutil.copy(MODEL / "tokens.txt", folder / "t.txt")
    return folder


def sources(model: Path) -> list[str]:
    """The files that a model directory was made of."""
    return [row["file"] for row in json.loads((model / "manifest.json").read_text(encoding="utf-8"))["source"]]


def test_a_checkpoint_becomes_a_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("convert", MODEL / "pretrained.pt", out, *RECIPE)
    result = run(*arguments)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == f"{out} is ready: jaxasr transcribe AUDIO --model {out}"
    _, _, tokens = store.load(out)
    lines = (MODEL / "tokens.txt").read_text(encoding="utf-8").splitlines()
    # Not those that only the publisher's lattices use, "#0" and "#1".
    assert [line.split()[0] for line in lines if not line.startswith("#")] == list(tokens.pieces)
    refused = run(*arguments)
    assert (refused.code, refused.out, len(refused.lines)) == (1, "", 1) and "overwrite" in refused.err
    assert run(*arguments, "--overwrite").code == 0


def test_odd_names_of_checkpoint_and_model(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / b"\xe9".decode(errors="surrogateescape")
    folder.mkdir()
    source, out = folder / "a\n|\x9b b.pt", tmp_path / "my \x1b[2J model"
    shutil.copy(MODEL / "pretrained.pt", source)
    shutil.copy(MODEL / "tokens.txt", folder)
    result = run("convert", source, out, *RECIPE)
    assert (result.code, result.err) == (0, "") and result.out.replace("\n", "").isprintable()
    shown = f"{tmp_path}/my \\x1b[2J model"
    assert result.out.splitlines()[-1] == f"{shown} is ready: jaxasr transcribe AUDIO --model '{shown}'"
    assert sources(out) == [source.name] and "| a\\n\\|\\x9b b.pt | " in (out / "README.md").read_text()
    assert run("info", out).code == 0
    # TensorStore, which reads and writes arrays, takes no path that is not UTF-8.
    refused = run("convert", source, folder / "model", *RECIPE)
    assert (refused.code, refused.out, len(refused.lines)) == (1, "", 1)
    assert f"{tmp_path}/\\udce9/model: the folder's path is not UTF-8; rename it" in refused.err
    shutil.copytree(out, folder / "model")
    refused = run("transcribe", REPOSITORY / "tests/samples/digits.wav", "--model", folder / "model")
    assert refused.code == 1 and "/\\udce9/model: the folder's path is not UTF-8; rename it" in refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        "epoch-9.pt out --average epoch-8.pt epoch-7.pt --tokens t.txt",
        "epoch-9.pt out --average epoch-8.pt --average epoch-7.pt --tokens t.txt",
        "epoch-9.pt out --average=epoch-8.pt --average epoch-7.pt --tokens t.txt",
        "--tokens t.txt epoch-9.pt out --average epoch-8.pt epoch-7.pt",
        "--tokens t.txt --average epoch-8.pt epoch-7.pt -- epoch-9.pt out",
    ],
)
def test_average_takes_all_that_follow_it(
    run: Run, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(checkpoints)
    result = run("convert", *RECIPE, *arguments.split())
    assert (result.code, result.err) == (0, "")
    assert "the weights are the plain mean of epoch-9.pt, epoch-8.pt, epoch-7.pt" in result.out.splitlines()
    assert sources(checkpoints / "out") == ["epoch-9.pt", "epoch-8.pt", "epoch-7.pt"]


def test_chunks_in_seconds(run: Run, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "zipformer-streaming-tiny"
    arguments = ("convert", folder / "pretrained.pt", tmp_path / "out", "--config", folder / "config.yaml")
    assert run(*arguments, "--chunk-seconds", "0.64", "--left-context-seconds", "2.56").code == 0
    encoder = store.load_config(tmp_path / "out").encoder
    assert (encoder.chunk_size, encoder.left_context) == (32, 128)


@pytest.mark.parametrize(("precision", "ending"), [("float32", "-avg-1.onnx"), ("int8", ".int8.onnx")])
def test_precision(run: Run, shared: Path, tmp_path: Path, precision: str, ending: str) -> None:
    """A folder holds one model's files in both; the checkpoint of the same model is left out."""
    (tmp_path / "exp").mkdir()
    for path in (*(shared / "golden" / "zipformer-tiny").glob("*.onnx"), shared / "golden/zipformer-tiny/tokens.txt"):
        (tmp_path / "exp" / path.name).symlink_to(path)
    assert run("convert", tmp_path / "exp", tmp_path / "out", "--precision", precision).code == 0
    (encoder,) = [name for name in sources(tmp_path / "out") if name.startswith("encoder")]
    assert encoder.endswith(ending)


def test_tensors_that_are_missing_are_one_line(run: Run, checkpoints: Path, tmp_path: Path) -> None:
    recipe = (MODEL / "config.yaml").read_text(encoding="utf-8").replace("1,1,1", "1,1,2")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    arguments = (checkpoints / "epoch-9.pt", tmp_path / "out", "--tokens", checkpoints / "t.txt")
    result = run("convert", *arguments, "--config", tmp_path / "recipe.yaml")
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert "epoch-9.pt" in result.err and not (tmp_path / "out").exists()


def test_a_source_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("convert", tmp_path / "absent.pt", tmp_path / "out")
    assert (result.code, result.out, len(result.lines)) == (1, "", 1)
    assert "absent.pt" in result.err and list(tmp_path.iterdir()) == []


def test_a_detector_is_shown_and_is_no_recogniser(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("convert", DATA / "nemo-detectors/frames.nemo", out)
    assert (result.code, result.err) == (0, "")
    use = f"jaxasr.load_detector('{out}')(AUDIO) in Python gives probabilities of speech"
    assert result.out.splitlines()[-1] == f"{out} is ready: {use}"
    assert {"detects: speech", "frame: 0.02 s", "longest: 30 s"} <= set(run("info", out).out.splitlines())
    for command in (("transcribe", REPOSITORY / "tests/samples/digits.wav"), ("bench",), ("compile",)):
        arguments = (*command, out) if command == ("compile",) else (*command, "--model", out)
        refused = run(*arguments)
        assert (refused.code, refused.out, len(refused.lines)) == (1, "", 1), command
        assert f"{out} is a voice activity detector, not a recogniser: jaxasr.load_detector takes it" in refused.err
