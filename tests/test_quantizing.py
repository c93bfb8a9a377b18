"""A quantized model directory: made, read, refused, and heard like any other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile

import jaxasr
from conftest import DATA
from jaxasr import store
from jaxasr.cli import main
from jaxasr.compression.calibration import Hearing, read_windows
from jaxasr.compression.post_training import narrowed
from jaxasr.convert import convert_checkpoint
from jaxasr.errors import ConfigError, ModelError
from jaxasr.manifests import read_manifest
from jaxasr.model import AbstractModel
from jaxasr.quant.array import QuantizedArray
from jaxasr.quant.rules import QuantizationConfig, Rule, layer_of
from jaxasr.speechlike import speechlike
from jaxasr.testing import tiny_model_directory

SPEC = QuantizationConfig(
    rules=(
        Rule(path="encoder.*", bits=3, layer="dense", activations="int8"),
        Rule(path="*", bits=8, layer="embedding", activations="int8"),
    )
)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("quantizing") / "floats")


@pytest.fixture(scope="module")
def made(floats: Path) -> tuple[Path, jaxasr.quantizing.QuantizationReport]:
    """Three bits, multiplied as integers, in the dense layers of the encoder; the rules of 4 bits for all else.

    Those of embeddings ask for a product of integers too.
    """
    out = floats.with_name("made")
    return out, jaxasr.quantize(floats, out, SPEC, bits=4, block=8)


def test_a_directory_of_integers(made: tuple[Path, Any], floats: Path) -> None:
    directory, report = made
    stored = store.open_model(directory)
    assert stored.parameters == store.open_model(floats).parameters == report.parameters
    abstract = AbstractModel(stored.config).parameters
    leaves = store.flatten(stored.params())
    assert {path: type(leaf) is QuantizedArray for path, leaf in leaves.items()} == {
        path: type(leaf) is QuantizedArray for path, leaf in store.flatten(abstract).items()
    }
    assert jax.tree.structure(stored.params()) == jax.tree.structure(abstract)
    facts = store.describe(directory)
    assert set(facts["weights"]) == {"3 bits", "8 bits", "float"}
    assert sum(facts["weights"].values()) == facts["parameters"] == stored.parameters
    # Rows of an embedding are dequantized, whatever its rule asks for.
    dense = {path: shape for path, shape in stored.manifest["quantized"].items() if SPEC.rules[0].fits(path, "dense")}
    sums = {"integers, activations of 8 bits": sum(math.prod(s) for p, s in dense.items() if layer_of(p, s) == "dense")}
    sums["weights dequantized in the product"] = facts["parameters"] - facts["weights"]["float"] - sum(sums.values())
    assert facts["products"] == sums
    assert 0 < report.weight_error < 0.5 and 0 < report.encoded_error < 1
    before = store.flatten(store.open_model(floats).params()).values()
    assert report.memory_before == 4 * sum(leaf.size for leaf in before)
    after = [leaf for leaf in leaves.values() if not isinstance(leaf, QuantizedArray)]
    packed = [part for leaf in leaves.values() if isinstance(leaf, QuantizedArray) for part in jax.tree.leaves(leaf)]
    assert report.memory_after == 4 * sum(leaf.size for leaf in after) + sum(part.nbytes for part in packed)
    assert "## Quantization" in (directory / store.CARD).read_text("utf-8")
    # What is kept of it in the cache folder is the same to the last bit.
    again = store.flatten(store.open_model(directory).params())
    for path, leaf in leaves.items():
        for one, other in zip(jax.tree.leaves(leaf), jax.tree.leaves(again[path]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_batch_hears_what_single_utterances_give(made: tuple[Path, Any]) -> None:
    directory, _ = made
    clips = [speechlike(seconds, seed) for seed, seconds in enumerate((1.9, 1.2, 0.6))]
    with jaxasr.load_model(directory, shortest_seconds=2) as recognizer:
        together = [each.token_ids for each in recognizer.transcribe(clips)]
        alone = [next(recognizer.transcribe(clip)).token_ids for clip in clips]
        kept = [recognizer.programs.is_kept(*shape) for shape in recognizer.programs.compiled]
    assert together == alone
    assert kept and all(kept), "a later process would trace the program again"


def test_nothing_is_quantized_twice_nor_trained(made: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is quantized already"):
        jaxasr.quantize(made[0], tmp_path / "out", bits=8)
    with pytest.raises(ConfigError, match="has no quantized weights"):
        jaxasr.load_model("embedded", activations="int8")


@pytest.mark.parametrize(
    "options", [["quantize", "{out}", "--bits", "8"], ["sensitivity", "--manifest", "none.tsv", "--budget", "1"]]
)
def test_a_detector_stays_float(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    model = tmp_path / "detector"
    convert_checkpoint(DATA / "fsmn-vad", model)
    command, *rest = (option.format(out=tmp_path / "out") for option in options)
    with pytest.raises(SystemExit) as caught:
        main([command, str(model), *rest])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error.count("\n") == 1
    assert "is a voice activity detector, whose few weights stay float: quantize recognisers" in error
    assert not (tmp_path / "out").exists()


def test_the_command_compares_on_recordings(floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a", "b")):
        soundfile.write(tmp_path / f"{name}.wav", speechlike(1.2, seed), 16000)
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("path\ttext\na.wav\tONE TWO THREE\nb.wav\tFOUR FIVE\n")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(floats), str(out), "--bits", "8", "--evaluate", str(manifest), "--json"])
    assert not caught.value.code
    facts = json.loads(capsys.readouterr().out)
    # Of so few weights the files are mostly the index of Orbax, whose size differs from one writing to the next.
    assert facts["bytes_after"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert facts["words"] == 5 and facts["memory_after"] < facts["memory_before"] / 2
    assert facts["error_rate_before"] > 0 and facts["error_rate_after"] > 0 and facts["words_that_differ"] >= 0
    assert "Word error rate" in (out / store.CARD).read_text("utf-8")
    with jaxasr.load_model(out, activations="float") as recognizer:
        assert recognizer.config.quantization is not None
        assert {rule.activations for rule in recognizer.config.quantization.rules} == {"float"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "5"], "bits must be 8, 4, 3 or 2, not 5"),
        ([], "give bits"),
        (["--bits", "4", "--block", "3"], "block must be at least 8"),
        (["--bits", "4", "--block", "4096"], "a block of 4096 does not fit 'encoder.*'"),
        (["--spec", "{spec}"], "'decoder.*' fits no kernel"),
        (["--spec", "{spec}", "--block", "8"], "belong to bits"),
    ],
)
def test_what_does_not_fit_is_one_line(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text("rules:\n- {path: 'decoder.*', bits: 4}\n")
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(floats), str(out), *(option.format(spec=spec) for option in options)])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and words in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: []", "spec.yaml: no rule quantizes anything"),
        ("rules:\n- {path: 'encoder.*', bits: 5}", "spec.yaml: rules[0]: bits"),
        ("rules:\n- {path: 'encoder.*', bits: 4, blok: 8}", "unknown key blok"),
        ("rules:\n- {bits: 4}", "missing key path"),
        ("- encoder", "must be a mapping"),
        ("rules: [", "spec.yaml is not valid yaml"),
        ("rules:\n- {path: 'encoder.*', bits: 4, block: 4096}", "a block of 4096 does not fit 'encoder.*'"),
        ("rules:\n- {path: 'encoder.*', bits: 4, block: 8, per: tensor}", "exclude each other"),
        (
            "rules:\n- {path: 'encoder.*', bits: 4}\n- {path: 'encoder.stacks.*', bits: 8}",
            "comes after rules that fit all",
        ),
    ],
)
def test_a_bad_spec_is_one_line(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["quantize", str(floats), str(tmp_path / "out"), "--spec", str(spec)])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_nothing(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxasr.quantizing.encoded_difference", lambda *_: 0.0)
    monkeypatch.setattr(store, "_describe_arrays", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jaxasr.quantize(floats, tmp_path / "out", bits=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["config", "shape", "hash"])
def test_a_damaged_directory(made: tuple[Path, Any], tmp_path: Path, change: str) -> None:
    import shutil

    directory = Path(shutil.copytree(made[0], tmp_path / "model"))
    manifest = json.loads((directory / store.MANIFEST).read_text())
    name = next(iter(manifest["quantized"]))
    stored = store.open_model(directory)
    if change == "config":
        stored = dataclasses.replace(stored, config=dataclasses.replace(stored.config, quantization=None))
    elif change == "shape":
        manifest["quantized"][name][0] += 64
    else:
        manifest["arrays"][f"{name}.integers"]["sha256"] = "0" * 64
    with pytest.raises(ModelError, match="does not fit|damaged"):
        dataclasses.replace(stored, manifest=manifest).params()


@pytest.mark.parametrize(
    ("largest", "dtype"), [(1.0, "float16"), (0.0, "float16"), (1e5, "float32"), (1e-6, "float32")]
)
def test_float16_where_its_range_suffices(largest: float, dtype: str) -> None:
    assert narrowed(np.array([largest, 0], np.float32), "float16").dtype == dtype
    assert narrowed(np.array([largest, 0], np.float32), "bfloat16").dtype == "bfloat16"


def test_calibration_brings_the_encoder_nearer(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, on rows of a manifest that a condition chooses; recordings or a method alone are refused."""
    monkeypatch.setattr("jaxasr.compression.calibration.WINDOW_SECONDS", 2.0)
    monkeypatch.setattr("jaxasr.quantizing.encoded_difference", lambda *_: 0.0)
    lines = ["path\ttext\tsplit"]
    for seed, split in enumerate(("train", "train", "test")):
        soundfile.write(tmp_path / f"{seed}.wav", speechlike(4.0, seed) if split == "train" else np.ones(9), 16000)
        lines.append(f"{seed}.wav\tA\t{split}")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(lines) + "\n")
    calibrate = ["--calibrate", str(manifest), "--where", "split=train"]

    def encoded(directory: Path) -> np.ndarray:
        leaves = store.flatten(store.open_model(directory).params())
        whole = {
            path: np.asarray(leaf.dequantize() if isinstance(leaf, QuantizedArray) else leaf)
            for path, leaf in leaves.items()
        }
        return hearing.encode(store.unflatten(whole))

    hearing = Hearing(store.load_config(floats), read_windows(read_manifest(manifest, {"split": ["train"]})))
    wanted, errors = encoded(floats), []
    for name, options in (("nearest", []), ("calibrated", ["--method", "calibrated", *calibrate])):
        out = tmp_path / name
        with pytest.raises(SystemExit) as caught:
            main(["quantize", str(floats), str(out), "--bits", "2", "--block", "16", *options])
        assert not caught.value.code
        errors.append(np.square(encoded(out) - wanted).sum())
    assert errors[1] < 0.6 * errors[0]
    assert "by what it makes of 8 s of sound" in (tmp_path / "calibrated" / store.CARD).read_text("utf-8")
    for options in (["--method", "calibrated"], calibrate):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["quantize", str(floats), str(tmp_path / "out"), "--bits", "2", *options])
        assert caught.value.code == 1 and "need calibrate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
