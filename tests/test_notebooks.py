"""The notebooks run from top to bottom, offline, and draw what they promise."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from golden_models import Golden

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_upper_pins(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert "<" not in "".join(line for line in cell.source.splitlines() if "pip install" in line)


@pytest.mark.slow
def test_quickstart(bundled: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXASR_NOTEBOOK_MODEL", str(bundled.directory))
    monkeypatch.setenv("JAXASR_NOTEBOOK_AUDIO", str(ROOT / "tests" / "data" / "espeak_sentence.wav"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pictures, printed = _executed("quickstart", tmp_path)
    assert "zipformer" in printed and printed.count("%") > 10
    (picture,) = pictures
    assert len(picture) > 20_000  # an empty pair of axes is a few thousand bytes


@pytest.mark.slow
@pytest.mark.usefixtures("quick_to_compile")
def test_training(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened: the curves fall."""
    monkeypatch.setenv("JAXASR_NOTEBOOK_MANIFEST", str(shared / "speech" / "fsdd" / "manifest.tsv"))
    monkeypatch.setenv("JAXASR_NOTEBOOK_STEPS", "12")
    pictures, printed = _executed("training", tmp_path)
    assert "run/model" in printed and "heard:" in printed
    assert len(pictures) == 3 and all(len(picture) > 20_000 for picture in pictures)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]
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
