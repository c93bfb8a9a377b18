"""The notebooks run from top to bottom, offline, and draw what they promise."""

from __future__ import annotations

import ast
import base64
import importlib.metadata
import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import jaxasr
from golden_models import Golden

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_upper_pins(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert "<" not in "".join(line for line in cell.source.splitlines() if "pip install" in line)


def install_cell(path: Path) -> str:
    """The first code of a notebook; plain Python, since it runs before anything is installed."""
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def definitions(path: Path) -> dict[str, Any]:
    """The imports and functions of a notebook's first cell, without what it does."""
    body = [node for node in ast.parse(install_cell(path)).body if isinstance(node, ast.Import | ast.ImportFrom)]
    body += [node for node in ast.parse(install_cell(path)).body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(body, []), path.name, "exec"), names)
    return names


def test_the_notebooks_install_alike() -> None:
    cells = {path.stem: install_cell(path).partition('\nif "google.colab"')[0] for path in NOTEBOOKS}
    assert cells["quickstart"] == cells["training"].replace("notebooks,train", "notebooks") == cells["streaming"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"notebooks", "train", "cuda12", "cuda13", "tpu"} <= extras.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_jaxasr_is_installed_from_a_wheel_or_the_checkout(path: Path, tmp_path: Path) -> None:
    """Never by its name from an index, where a package of that name would be a stranger's."""
    source = definitions(path)["source"]
    assert source(ROOT / "notebooks") == ROOT
    with pytest.raises(FileNotFoundError, match="put a wheel of jaxasr into"):
        source(tmp_path)
    (tmp_path / "pyproject.toml").write_text('name = "another"', encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        source(tmp_path)
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / f"jaxasr-{version}-py3-none-any.whl").touch()
    assert source(tmp_path).name == "jaxasr-0.2.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("plugins", "driver", "extra"),
    [
        ([], None, ""),
        ([], "", ""),
        ([], "570.86.15\n570.86.15\n", "cuda12"),
        ([], "580.65.06\n", "cuda13"),
        (["jax_cuda12_plugin"], "580.65.06\n", "cuda12"),
        (["jax", "jax-cuda13-plugin"], "580.65.06\n", "cuda13"),
        (["libtpu"], None, "tpu"),
    ],
)
def test_the_extra_fits_the_device_and_the_jax_that_is_there(
    plugins: list[str], driver: str | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = definitions(NOTEBOOKS[0])
    packages = [SimpleNamespace(name=name) for name in plugins]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: packages)
    monkeypatch.setattr(shutil, "which", lambda name: None if driver is None else f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=driver))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert names["device_extra"]() == extra


@pytest.mark.slow
def test_quickstart(bundled: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXASR_NOTEBOOK_MODEL", str(bundled.directory))
    monkeypatch.setenv("JAXASR_NOTEBOOK_AUDIO", str(ROOT / "tests" / "data" / "espeak_sentence.wav"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pictures, printed = _executed("quickstart", tmp_path)
    assert "JAX " in printed and "zipformer" in printed and printed.count("%") > 10
    (picture,) = pictures
    assert len(picture) > 20_000  # an empty pair of axes is a few thousand bytes


@pytest.mark.slow
def test_streaming(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that draws the weights of its predictor as well."""
    directory = tmp_path / "model"
    jaxasr.convert_checkpoint(shared / "golden" / "paraformer-online-tiny", directory)
    monkeypatch.setenv("JAXASR_NOTEBOOK_MODEL", str(directory))
    monkeypatch.setenv("JAXASR_NOTEBOOK_AUDIO", str(shared / "golden" / "audio" / "espeak_sentence.wav"))
    pictures, printed = _executed("streaming", tmp_path)
    partials = [line for line in printed.splitlines() if " s  " in line]
    assert len(partials) > 2 and "   end    " in printed
    (picture,) = pictures
    assert len(picture) > 20_000


@pytest.mark.slow
def test_training(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened, and heard are only some of the held-out recordings: the curves fall."""
    corpus = shared / "speech" / "fsdd"
    head, *rows = (corpus / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    assert head.startswith("path\t")
    kept = [f"{corpus}/{row}" for number, row in enumerate(rows) if "\ttrain\t" in row or number % 7 == 0]
    (tmp_path / "manifest.tsv").write_text("\n".join([head, *kept]), encoding="utf-8")
    monkeypatch.setenv("JAXASR_NOTEBOOK_MANIFEST", str(tmp_path / "manifest.tsv"))
    monkeypatch.setenv("JAXASR_NOTEBOOK_STEPS", "12")
    pictures, printed = _executed("training", tmp_path)
    assert "run/model" in printed and "heard:" in printed
    assert len(pictures) == 3 and all(len(picture) > 20_000 for picture in pictures)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 12 and sum(losses[-3:]) / 3 < 0.5 * losses[0]  # the mean: each batch is another one
    assert sum("held_out_rate" in row for row in log) > 1


def _executed(name: str, folder: Path) -> tuple[list[bytes], str]:
    """The pictures that a notebook draws and what it prints, run in `folder`."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    found = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    pictures = [base64.b64decode(each) for each in found]
    if kept := os.environ.get("JAXASR_TEST_PICTURES"):
        for index, picture in enumerate(pictures):
            (Path(kept) / f"{name}{index or ''}.png").write_bytes(picture)
    return pictures, printed
