"""An exported model: run by the page's own lines in a process that has neither this package nor Flax."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxasr
from jaxasr import store
from jaxasr.cli import main
from jaxasr.errors import ConfigError, ModelError
from jaxasr.quant.rules import QuantizationConfig, Rule
from jaxasr.speechlike import speechlike
from jaxasr.standalone import export_model
from jaxasr.testing import tiny_model_directory

PAGE = Path(__file__).resolve().parent.parent / "docs" / "export.md"
SECONDS = 1.5
# What the process must do without.
ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxasr", "flax"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Absent())
for name in ("jaxasr", "flax"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " could be imported")
"""


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bits, multiplied as integers; a front end in 8 bits and the rest in bfloat16."""
    folder = tmp_path_factory.mktemp("standalone")
    spec = QuantizationConfig(
        rules=(Rule(path="encoder.*", bits=3, layer="dense", symmetric=False, block=16, activations="int8"),),
        floats="bfloat16",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxasr.quantizing.encoded_difference", lambda *_: 0.0)
        jaxasr.quantize(tiny_model_directory(folder / "floats"), folder / "model", spec)
    return folder / "model"


def test_it_runs_without_the_package(quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["export", str(quantized), str(out), "--seconds", str(SECONDS), "--rows", "2"])
    assert not caught.value.code and "is ready" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"program.bin", "arrays.npz", "export.json"}
    # What is stored is as small as the model directory's arrays.
    entries = store.open_model(quantized).manifest["arrays"].values()
    stored = sum(np.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize for entry in entries)
    with np.load(out / "arrays.npz") as arrays:
        assert sum(array.nbytes for array in arrays.values()) == stored

    clip = speechlike(SECONDS - 0.3, 3)
    np.save(tmp_path / "clip.npy", clip)
    script = tmp_path / "run.py"
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    script.write_text(ALONE + code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(script), str(out), str(tmp_path / "clip.npy")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    heard = json.loads(run.stdout)
    with jaxasr.load_model(quantized) as recognizer:
        wanted = next(recognizer.transcribe(clip))
    assert wanted.token_ids and heard["ids"] == wanted.token_ids and len(heard["tokens"]) == len(wanted.tokens)
    np.testing.assert_allclose(heard["seconds"], wanted.timestamps, atol=1e-3)  # rounded to 0.0001 s


def test_what_cannot_be_exported(quantized: Path, tmp_path: Path) -> None:
    params = store.open_model(quantized).params()
    with jaxasr.load_model(quantized) as recognizer:
        for options, words in (
            ({"seconds": 1e4}, "seconds must be positive and at most"),
            ({"seconds": 0.001}, "makes no frame of"),
            ({"seconds": 1.0, "rows": 0}, "rows must be at least 1"),
        ):
            with pytest.raises(ConfigError, match=words):
                export_model(recognizer, params, tmp_path / "out", **options)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="exists: choose another folder"):
            export_model(recognizer, params, tmp_path, seconds=1.0)
        with pytest.raises(ModelError, match="is no exported model"):
            export_model(recognizer, params, tmp_path, seconds=1.0, overwrite=True)
    assert not list(tmp_path.iterdir())
