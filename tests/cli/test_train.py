"""`jaxasr train` as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
import pytest
import soundfile

import jaxasr
import tones
from golden_models import abstract_model, quick_jit
from jaxasr import audio, store
from jaxasr.training.parallel import parallel_loss


class Result(Protocol):
    """What the fixture `run` gives."""

    code: int
    out: str
    err: str
    lines: list[str]


JAXASR = Path(sys.executable).with_name("jaxasr")
SOUND = Path(__file__).parent.parent / "data" / "espeak_sentence.wav"


def recipe(steps: int) -> str:
    return tones.RECIPE_TEXT.replace("steps: 20", f"steps: {steps}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe of two steps and a manifest of four clips."""
    (tmp_path / "toy.yaml").write_text(recipe(steps=2))
    generator = np.random.default_rng(1)
    rows = ["path\ttext"]
    for index in range(4):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * generator.standard_normal(16000), 16000)
        rows.append(f"{index}.wav\tAB")
    (tmp_path / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_run_leaves_a_model_and_is_not_begun_twice(
    folder: Path, run: Callable[..., Result], on_a_terminal: Callable[[list[str]], tuple[str, str]]
) -> None:
    shutil.copy(folder / "manifest.tsv", folder / "held_out.tsv")
    with open(folder / "manifest.tsv", "a") as manifest:
        manifest.write("absent.wav\tAB\n0.wav\t\n")
    data = ("--data", folder / "manifest.tsv", "--skip-bad", "--held-out", folder / "held_out.tsv")
    arguments = ("train", folder / "toy.yaml", *data, "--output", folder / "run")
    done = run(*arguments)
    assert done.code == 0, done.err
    assert done.out.strip() == str(folder / "run" / "model")
    assert "absent.wav" in done.err and "the text is empty" in done.err and "4 utterances" in done.err
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 2] and log[2]["held_out_rate"] > 0
    described = run("info", folder / "run" / "model")
    assert described.code == 0 and "tones" in described.out

    again = run(*arguments)
    assert again.code == 1 and "give resume" in again.err and len(again.lines) == 1
    longer = run(*arguments, "--resume", "--steps", "3")
    assert longer.code == 0 and "from step 2" in longer.err

    fewer = run(*arguments, "--resume", "--steps", "1")
    assert fewer.code == 1 and "has done 3 steps" in fewer.lines[-1]
    with open(folder / "manifest.tsv", "a") as manifest:
        manifest.write("0.wav\tBA\n")
    other = run(*arguments, "--resume", "--steps", "4")
    assert other.code == 1 and "the data were others when this run began" in other.err

    tuned = (*arguments[:-1], folder / "tuned", "--init", folder / "run" / "model")
    printed, shown = on_a_terminal([str(JAXASR), *map(str, tuned)])
    assert printed.strip() == str(folder / "tuned" / "model"), shown
    assert "training" in shown and "step 2, epoch" in shown and "x real time" in shown


def test_what_would_be_lost_or_is_not_there(folder: Path, run: Callable[..., Result]) -> None:
    arguments = ("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    for refused, said in (
        (run(*arguments, "--resume"), "no checkpoint to resume"),
        (run(*arguments, "--held-out-where", "split=test"), "needs --held-out"),
        (run(*arguments[:-1], folder / "\udce9"), "\\udce9: the folder's path is not UTF-8"),
        (run(*arguments, "--held-out", folder / "absent.tsv"), "absent.tsv"),
    ):
        assert refused.code in (1, 2) and said in refused.err and len(refused.lines) == 1
        assert not (folder / "run").exists()
    (folder / "run" / "model").mkdir(parents=True)
    refused = run(*arguments)
    assert refused.code == 1 and "would be written over" in refused.err


# Nothing random: no string of clips, no augmentation, no true token among those that the predictor found.
FINE_TUNING = """
steps: 2
data: {bucket_seconds: [2], batch_seconds: 8}
curriculum: {join_below: 0, edge_share: 0}
augmentation: {speed: [1, 1], volume_db: [0, 0], noise_probability: 0, reverberation_probability: 0,
  telephone_probability: 0, frequency_masks: 0, time_masks: 0}
optimizer: {warmup_steps: 1}
sampled: 0
"""
TEXTS = ("我好", "今天 ick", "你", "中国人 hello")


@pytest.mark.slow
def test_a_converted_paraformer_is_fine_tuned(
    folder: Path, run: Callable[..., Result], bundled_paraformer: Path
) -> None:
    """The first step's loss is that of the converted model; the trained one is read and hears something."""
    (folder / "recipe.yaml").write_text(FINE_TUNING)
    rows = [f"{index}.wav\t{text}" for index, text in enumerate(TEXTS)]
    (folder / "manifest.tsv").write_text("\n".join(["path\ttext", *rows]) + "\n", encoding="utf-8")
    arguments = ("--data", folder / "manifest.tsv", "--init", bundled_paraformer, "--output", folder / "run")
    done = run("train", folder / "recipe.yaml", *arguments)
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2] and all(np.isfinite(row["loss"]) for row in log)

    config, params, tokens = store.load(bundled_paraformer)
    heads = [["我", "好"], ["今", "天", "ick"], ["你"], ["中", "国", "人", "hel@@", "lo"]]
    labels, counts = np.zeros((4, 16), np.int32), np.array(list(map(len, heads)), np.int32)
    waveforms, lengths = np.zeros((4, 32000), np.float32), np.full(4, 16000, np.int32)
    for row, pieces in enumerate(heads):
        labels[row, : len(pieces)] = [tokens.id_of(piece) for piece in pieces]
        waveforms[row, :16000] = audio.load(folder / f"{row}.wav")

    @quick_jit
    def losses(params: dict[str, jax.Array]) -> jax.Array:
        model = abstract_model(config).fill(params)
        frames, frame_lengths = model.features(waveforms, lengths)
        encoded, _ = model.encoder(frames, frame_lengths)
        assert model.parallel is not None
        return parallel_loss(model.parallel, encoded, frame_lengths, labels, counts, smoothing=0.1, sampled=0.0)

    assert log[0]["loss"] == pytest.approx(losses(params).sum() / (counts + 1).sum(), rel=1e-4)

    _, trained, _ = store.load(folder / "run" / "model")
    before, after = store.flatten(params), store.flatten(trained)
    moved = {name for name, leaf in after.items() if (np.asarray(leaf) != np.asarray(before[name])).any()}
    assert {name for name in after if name.startswith("features.")} and len(moved) > 0.9 * len(after)
    assert not any(name.startswith("features.") for name in moved)
    with jaxasr.load_model(folder / "run" / "model") as recognizer:
        (heard,) = recognizer.transcribe([SOUND])
    # Two steps of a thousandth leave what it says almost as it was: eleven tokens.
    assert 8 <= len(heard.token_ids) <= 14 and heard.text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_a_checkpoint_that_resumes(
    folder: Path, run: Callable[..., Result], number: int, code: int
) -> None:
    (folder / "toy.yaml").write_text(recipe(steps=100000))
    arguments = ["train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run"]
    command = [str(JAXASR), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = folder / "run" / "log.jsonl"
    for _ in range(1200):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code and "Traceback" not in said
    reached = json.loads(log.read_text().splitlines()[-1])["step"]
    resumed = run(*arguments, "--resume", "--steps", str(reached + 1))
    assert resumed.code == 0, resumed.err
    assert f"from step {reached}" in resumed.err


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("absent.wav\tAB", "absent.wav"),
        ("0.wav\t", "the text is empty"),
        ("0.wav\t" + "AB" * 40, "tokens are more than"),
        ("short.wav\tABAB", "too short for"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(
    folder: Path, run: Callable[..., Result], row: str, reason: str
) -> None:
    soundfile.write(folder / "short.wav", np.zeros(1600), 16000)
    with open(folder / "manifest.tsv", "a") as manifest:
        manifest.write(row + "\n")
    done = run("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    assert done.code == 1 and len(done.lines) == 2 and reason in done.lines[0], done.err
    assert "skip_bad" in done.lines[1] and not (folder / "run").exists()


def test_an_unknown_recipe_and_an_unknown_key_are_named(folder: Path, run: Callable[..., Result]) -> None:
    done = run("train", "no-such", "--data", folder / "manifest.tsv", "--output", folder / "run")
    assert done.code == 1 and "embedded" in done.err and len(done.lines) == 1
    (folder / "toy.yaml").write_text(recipe(steps=2) + "stepss: 3\n")
    done = run("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    assert done.code == 1 and "stepss" in done.err and len(done.lines) == 1
