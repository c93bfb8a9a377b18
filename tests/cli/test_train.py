"""`jaxasr train` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPE = """
steps: {steps}
model:
  name: toy
  encoder: {{num_layers: [1], downsampling: [1], encoder_dim: [16], feedforward_dim: [16], num_heads: [2],
    query_head_dim: [8], value_head_dim: [4], pos_head_dim: [4], conv_kernel: [7], embed_channels: [4, 4, 4]}}
  transducer: {{vocabulary_size: 9, predictor_dim: 16, joiner_dim: 16}}
vocabulary: {{kind: characters}}
data: {{bucket_seconds: [2], batch_seconds: 4, join_below: 0.5}}
checkpoint_steps: 1000
"""


def jaxasr(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("jaxasr"), *map(str, arguments)]
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
def test_a_run_leaves_a_model_and_is_not_begun_twice(folder: Path) -> None:
    arguments = ("train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run")
    done = jaxasr(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "run" / "model")
    assert [json.loads(line)["step"] for line in (folder / "run" / "log.jsonl").read_text().splitlines()] == [1, 2]
    described = jaxasr("info", folder / "run" / "model")
    assert described.returncode == 0 and "toy" in described.stdout

    again = jaxasr(*arguments)
    assert again.returncode == 1 and "--resume" in again.stderr and len(again.stderr.splitlines()) == 1
    longer = jaxasr(*arguments, "--resume", "--steps", "3")
    assert longer.returncode == 0 and "from step 2" in longer.stderr

    tuned = jaxasr(*arguments[:-1], folder / "tuned", "--init", folder / "run" / "model")
    assert tuned.returncode == 0, tuned.stderr


@pytest.mark.slow
def test_an_interruption_leaves_a_checkpoint_that_resumes(folder: Path) -> None:
    (folder / "toy.yaml").write_text(RECIPE.format(steps=100000))
    arguments = ["train", folder / "toy.yaml", "--data", folder / "manifest.tsv", "--output", folder / "run"]
    command = [str(Path(sys.executable).with_name("jaxasr")), *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = folder / "run" / "log.jsonl"
    for _ in range(1200):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in said
    reached = json.loads(log.read_text().splitlines()[-1])["step"]
    resumed = jaxasr(*arguments, "--resume", "--steps", str(reached + 1))
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {reached}" in resumed.stderr


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("absent.wav\tAB", "absent.wav"),
        ("0.wav\t", "the text is empty"),
        ("0.wav\t" + "AB" * 40, "too short for"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(folder: Path, row: str, reason: str) -> None:
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
