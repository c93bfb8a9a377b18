"""The notebooks run from top to bottom, offline, and draw what they promise."""

from __future__ import annotations

import base64
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
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "zipformer" in printed and printed.count("%") > 10
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    (picture,) = (base64.b64decode(each) for each in pictures)
    assert len(picture) > 20_000  # an empty pair of axes is a few thousand bytes
    if folder := os.environ.get("JAXASR_TEST_PICTURES"):
        (Path(folder) / "quickstart.png").write_bytes(picture)
