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

import numpy as np
import pytest
import soundfile

RECIPE = """
steps: {steps}
model:
  name: toy
  encoder: {{kind: zipformer, num_layers: [1], downsampling: [1], encoder_dim: [16], feedforward_dim: [16],
    num_heads: [2], query_head_dim: [8], value_head_dim: [4], pos_head_dim: [4], conv_kernel: [7],
    embed_channels: [4, 4, 4]}}
  features: {{kind: kaldi}}
  text: {{kind: sherpa_onnx, recognizer: offline_transducer}}
  transducer: {{vocabulary_size: 9, predictor: {{kind: stateless, dim: 16}}, joiner_dim: 16}}
vocabulary: {{kind: characters}}
data: {{bucket_seconds: [2], batch_seconds: 4, join_below: 0.5}}
checkpoint_steps: 1000
"""


JAXASR = Path(sys.executable).with_name("jaxasr")


def jaxasr(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [JAXASR, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe of two steps and a manifest of four clips."""
    (tmp_path / "toy.yaml").write_text(RECIPE.format(steps=2))
    generator = np.random.default_rng(1)
    rows = ["path\ttext"]
    for index in range(4):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * generator.standard_normal(16000), 16000)
        rows.append(f"{index}.wav\tAB")
    (tmp_path / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.slow
def test_a_run_leaves_a_model_and_is_not_begun_twice(
    folder: Path, on_a_terminal: Callable[[list[str]], tuple[str, str]]
) -> None:
    shutil.copy(folder / "manifest.tsv", folder / "held_out.tsv")
    with open(folder / "manifest.tsv", "a") as manifest:
        manifest.write("absent.wav\tAB\n0.wav\t\n")
    data = ("--data", folder / "manifest.tsv", "--skip-bad", "--held-out", folder / "held_out.tsv")
    arguments = ("train", folder / "toy.yaml", *data, "--output", folder / "run")
    done = jaxasr(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "run" / "model")
    assert "absent.wav" in done.stderr and "the text is empty" in done.stderr and "4 utterances" in done.stderr
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 2] and log[2]["held_out_rate"] > 0
    described = jaxasr("info", folder / "run" / "model")
    assert described.returncode == 0 and "toy" in described.stdout

    again = jaxasr(*arguments)
    assert again.returncode == 1 and "--resume" in again.stderr and len(again.stderr.splitlines()) == 1
    longer = jaxasr(*arguments, "--resume", "--steps", "3")
    assert longer.returncode == 0 and "from step 2" in longer.stderr

    fewer = jaxasr(*arguments, "--resume", "--steps", "1")
    assert fewer.returncode == 1 and "has done 3 steps" in fewer.stderr.splitlines()[-1]
    with open(folder / "manifest.tsv", "a") as manifest:
        manifest.write("0.wav\tBA\n")
    other = jaxasr(*arguments, "--resume", "--steps", "4")
    assert other.returncode == 1 and "the data were others when this run began" in other.stderr

    tuned = (*arguments[:-1], folder / "tuned", "--init", folder / "run" / "model")
    printed, shown = on_a_terminal([str(JAXASR), *map(str, tuned)])
    assert printed.strip() == str(folder / "tuned" / "model"), shown
    assert "training" in shown and "step 2, epoch" in shown and "x real time" in shown


def test_what_would_be_lost_or_is_not_there(folder: Path) -> None:
    arguments = ("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    for refused, said in (
        (jaxasr(*arguments, "--resume"), "no checkpoint to resume"),
        (jaxasr(*arguments, "--held-out-where", "split=test"), "needs --held-out"),
        (jaxasr(*arguments, "--held-out", folder / "absent.tsv"), "absent.tsv"),
    ):
        assert refused.returncode in (1, 2) and said in refused.stderr and len(refused.stderr.splitlines()) == 1
        assert not (folder / "run").exists()
    (folder / "run" / "model").mkdir(parents=True)
    refused = jaxasr(*arguments)
    assert refused.returncode == 1 and "would be written over" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_a_checkpoint_that_resumes(folder: Path, number: int, code: int) -> None:
    (folder / "toy.yaml").write_text(RECIPE.format(steps=100000))
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
    resumed = jaxasr(*arguments, "--resume", "--steps", str(reached + 1))
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {reached}" in resumed.stderr


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("absent.wav\tAB", "absent.wav"),
        ("0.wav\t", "the text is empty"),
        ("0.wav\t" + "AB" * 40, "tokens are more than"),
        ("short.wav\tABAB", "too short for"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(folder: Path, row: str, reason: str) -> None:
    soundfile.write(folder / "short.wav", np.zeros(1600), 16000)
    with open(folder / "manifest.tsv", "a") as manifest:
        manifest.write(row + "\n")
    done = jaxasr("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 2 and reason in lines[0], done.stderr
    assert "--skip-bad" in lines[1] and not (folder / "run").exists()


def test_an_unknown_recipe_and_an_unknown_key_are_named(folder: Path) -> None:
    done = jaxasr("train", "no-such", "--data", folder / "manifest.tsv", "--output", folder / "run")
    assert done.returncode == 1 and "embedded" in done.stderr and len(done.stderr.splitlines()) == 1
    (folder / "toy.yaml").write_text(RECIPE.format(steps=2) + "stepss: 3\n")
    done = jaxasr("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    assert done.returncode == 1 and "stepss" in done.stderr and len(done.stderr.splitlines()) == 1
