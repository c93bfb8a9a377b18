"""Ranges of activations that are measured once, on recordings, and stored beside the weights."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

import jaxasr
from jaxasr import store
from jaxasr.cli import main
from jaxasr.compression.calibration import Hearing, read_windows
from jaxasr.manifests import read_manifest
from jaxasr.quant.array import QuantizedArray
from jaxasr.speechlike import speechlike
from jaxasr.testing import tiny_model_directory

SPEC = "rules:\n- {{path: '{path}', layer: dense, bits: 8, activations: {activations}, ranges: static}}\n"


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("static") / "floats")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for seed in range(2):
        soundfile.write(folder / f"{seed}.wav", speechlike(4.0, seed), 16000)
    (folder / "manifest.tsv").write_text("path\ttext\n0.wav\tA\n1.wav\tA\n")
    return folder / "manifest.tsv"


def test_the_largest_that_is_heard_is_stored(floats: Path, manifest: Path, tmp_path: Path) -> None:
    """With each weight of the rule, and nothing beside the others; and the model hears with them."""
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(SPEC.format(path="encoder.*", activations="int8"))
    report = jaxasr.quantize(floats, out, spec, bits=4, calibrate=manifest)
    stored = store.open_model(out)
    leaves = {path: leaf for path, leaf in store.flatten(stored.params()).items() if isinstance(leaf, QuantizedArray)}
    static = {path: leaf for path, leaf in leaves.items() if leaf.ranges == "static"}
    assert static and {path for path, leaf in leaves.items() if leaf.step is not None} == set(static)

    largest: dict[str, float] = {}

    def note(path: str, rows: np.ndarray) -> None:
        largest[path] = max(largest.get(path, 0), np.abs(rows).max())

    hearing = Hearing(store.load_config(floats), read_windows(read_manifest(manifest)), list(static))
    list(hearing.batches(store.open_model(floats).params(), note))
    for path, leaf in static.items():
        np.testing.assert_allclose(np.asarray(leaf.step), largest[path] / 127, rtol=1e-6)
    assert 0 < report.encoded_error < 1
    facts = store.describe(out)["products"]
    assert "integers, activations of 8 bits, of static ranges" in facts
    card = (out / store.CARD).read_text("utf-8")
    assert "int8, static" in card and "with ranges of activations from 8 s of sound" in card
    again = jax.tree.leaves(store.open_model(out).params())
    assert all(np.array_equal(one, other) for one, other in zip(again, jax.tree.leaves(stored.params()), strict=True))
    clips = [speechlike(seconds, seed) for seed, seconds in enumerate((1.9, 0.6))]
    with jaxasr.load_model(out, shortest_seconds=2) as recognizer:
        together = [each.token_ids for each in recognizer.transcribe(clips)]
        assert together == [next(recognizer.transcribe(clip)).token_ids for clip in clips]
    with jaxasr.load_model(out, activations="float", shortest_seconds=2) as recognizer:
        assert len(list(recognizer.transcribe(clips))) == 2


@pytest.mark.parametrize(
    ("path", "activations", "calibrated", "words"),
    [
        ("encoder.*", "int8", False, "static ranges of activations need calibrate"),
        ("*", "int8", True, "measured in the encoder alone"),
        ("encoder.*", "uint8", True, "static ranges have no zero"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    floats: Path,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    activations: str,
    calibrated: bool,
    words: str,
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(path=path, activations=activations))
    recordings = ["--calibrate", str(manifest)] if calibrated else []
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(floats), str(tmp_path / "out"), "--spec", str(spec), *recordings])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
