"""The model inside the package: it is the default, says what it does not know, and reaches the figures of its card."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import soxr

import jaxasr
from jaxasr import store
from jaxasr.convert.hub.published import published_models
from jaxasr.errors import ModelError
from jaxasr.evaluation import Errors, count_errors, evaluate
from jaxasr.loading import EMBEDDED, LIMITS, NOTICE, SUGGESTED, locate
from jaxasr.manifests import read_manifest
from jaxasr.recognizer import Recognizer

pytestmark = pytest.mark.usefixtures("compiled_as_for_users")

SAMPLES = Path(__file__).parent / "samples"
WORDS = {name: words for name, (words, _) in runpy.run_path(str(SAMPLES / "make.py"))["SAMPLES"].items()}
AUDIO = {name: SAMPLES / f"{name}.wav" for name in WORDS}


ONE_BUCKET = 10.0  # seconds: all clips share a program, which saves minutes of compilation


@pytest.fixture(scope="module")
def recognizer(compiled_as_for_users: None) -> Recognizer:
    return jaxasr.load_model(EMBEDDED, shortest_seconds=ONE_BUCKET)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """The digits, float32 at 16 kHz."""
    return soundfile.read(AUDIO["digits"], dtype="float32")[0]


def test_samples(recognizer: Recognizer) -> None:
    texts = [each.text for each in recognizer.transcribe([str(path) for path in AUDIO.values()])]
    assert texts == list(WORDS.values())


def test_every_kind_of_file(recognizer: Recognizer, samples: np.ndarray, tmp_path: Path) -> None:
    wide, narrow = (soxr.resample(samples, 16000, rate) for rate in (48000, 8000))
    soundfile.write(tmp_path / "narrow.wav", narrow, 8000)
    soundfile.write(tmp_path / "wide.flac", np.stack([wide, 0.5 * wide], axis=1), 48000)
    soundfile.write(tmp_path / "speech.mp3", wide, 48000)
    soundfile.write(tmp_path / "speech.ogg", wide, 48000, format="OGG", subtype="OPUS")
    files = [str(tmp_path / name) for name in ("narrow.wav", "wide.flac", "speech.mp3", "speech.ogg")]
    assert [each.text for each in recognizer.transcribe(files)] == [WORDS["digits"]] * 4


@pytest.mark.parametrize(
    "cast", [lambda x: x, lambda x: x.astype(np.float64), lambda x: (x * 32767).astype(np.int16)], ids=["4", "8", "2"]
)
def test_arrays(recognizer: Recognizer, samples: np.ndarray, cast: Callable[[np.ndarray], np.ndarray]) -> None:
    (transcript,) = recognizer.transcribe([cast(samples)])
    assert transcript.text == WORDS["digits"]


def test_bfloat16() -> None:
    recognizer = jaxasr.load_model(EMBEDDED, dtype="bfloat16", shortest_seconds=ONE_BUCKET)
    assert [each.text for each in recognizer.transcribe([str(AUDIO["digits"])])] == [WORDS["digits"]]


def test_numbers_beyond_float16_are_no_text() -> None:
    recognizer = jaxasr.load_model(EMBEDDED, dtype="float16", shortest_seconds=ONE_BUCKET)
    try:
        texts = [each.text for each in recognizer.transcribe([str(AUDIO["digits"])])]
    except ModelError as error:
        assert "bfloat16" in str(error)
    else:
        assert texts == [WORDS["digits"]]


def test_the_command_line_and_standard_input() -> None:
    command = [Path(sys.executable).with_name("jaxasr"), "transcribe"]
    done = subprocess.run([*command, AUDIO["date"]], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{WORDS['date']}\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("jaxasr: no --model is given") and LIMITS in line and f"--model {SUGGESTED} " in line
    # The same recording, whose program the first process has left: another length would be another one.
    piped = subprocess.run([*command, "-", "--model", EMBEDDED], capture_output=True, input=AUDIO["date"].read_bytes())
    assert (piped.returncode, piped.stdout.decode(), piped.stderr.decode()) == (0, f"{WORDS['date']}\n", "")


def test_only_the_default_is_explained(logged: list[str]) -> None:
    jaxasr.load_model(EMBEDDED)
    assert logged == []
    jaxasr.load_model()
    assert logged == [NOTICE]


def test_the_notice_names_a_model_that_there_is() -> None:
    assert SUGGESTED in NOTICE and SUGGESTED in {model.name for model in published_models()}


def test_it_is_small() -> None:
    folder = locate(EMBEDDED)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6
    _, parameters, _ = store.load(folder)
    leaves = jax.tree.leaves(parameters)
    assert sum(leaf.size for leaf in leaves) <= 4e6 and {leaf.dtype.itemsize for leaf in leaves} == {2}


@pytest.mark.slow
def test_figures(shared: Path, recognizer: Recognizer) -> None:
    """At most 6 % of the words of AN4's test split are wrong, and 1 % of digit strings; the card has the figures."""
    an4 = read_manifest(shared / "speech" / "an4" / "manifest.tsv", {"split": ["test"]})
    assert sum((scored.errors for scored in evaluate(recognizer, an4)), Errors()).rate <= 0.06
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "test_sets.py"
    digit_strings = runpy.run_path(str(script))["digit_strings"]
    strings, rate = digit_strings(shared / "speech" / "fsdd" / "manifest.tsv")
    clips, texts = zip(*strings, strict=True)
    heard = [each.text for each in recognizer.transcribe(list(clips), sample_rate=rate)]
    errors = sum((count_errors(a.split(), b.split()) for a, b in zip(texts, heard, strict=True)), Errors())
    assert errors.reference_length > 1500 and errors.rate <= 0.01
