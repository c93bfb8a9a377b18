"""A recognizer inside other people's programs: their settings of JAX, their processes, and the end of these."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxasr
from jaxasr.errors import ConfigError, ModelError
from jaxasr.programs import Programs
from jaxasr.speechlike import speechlike
from jaxasr.testing import tiny_model_directory, tiny_recognizer

# What the host program has set, each on its own: a recognizer that is made and used under it hears the same.
SETTINGS: dict[str, Any] = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_enable_x64": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_transfer_guard": "disallow_explicit",
    "jax_disable_jit": True,
    "jax_check_tracer_leaks": True,
}

HOST = """
import itertools, json, os, pickle, queue, sys
import jax, jax.numpy as jnp
import jaxasr
from jaxasr.speechlike import speechlike

folder, sent, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
clip = speechlike(1.0, 1)
on_device = jnp.asarray(clip)
recognizer = jaxasr.load_model(folder, batch_seconds=1.0)  # one row a batch: one program
said = {}

def hear(recognizer, source):
    (transcript,) = recognizer.transcribe(source)
    return transcript.text

said["plain"] = hear(recognizer, clip)
for name, value in settings.items():
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    said[name] = hear(jaxasr.load_model(folder), on_device)
    assert getattr(jax.config, name) == value
    jax.config.update(name, before)

# A conversation: the next clip comes after the answer to the one before.
answers = queue.Queue()
def conversation():
    yield clip
    for turn in range(2):
        said[f"turn {turn}"] = answers.get()
        yield clip
for transcript in recognizer.transcribe(conversation()):
    answers.put(transcript.text)

with open(sent, "wb") as file:
    pickle.dump(recognizer, file)

# Iterators that nobody reads to their end, over sources that never end: one waits for us, the others let us wait.
def blocked(*clips):
    yield from clips
    queue.Queue().get()
sources = (itertools.repeat(clip), blocked(clip), blocked(None, clip), [clip, "-"])
unread = [recognizer.transcribe(source) for source in sources]
unread_results = [next(unread[number]).text for number in (0, 1, 3)]
try:
    next(unread[2])
except jaxasr.JaxasrError as error:
    unread_results.append(str(error))
said["unread"] = unread_results

if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        told = []
        for work in (
            lambda: hear(recognizer, clip), lambda: next(unread[1]), lambda: jaxasr.load_model(folder),
            recognizer.close, lambda: pickle.dumps(recognizer),
        ):
            try:
                told.append(f"{type(work()).__name__} without an error")
            except jaxasr.JaxasrError as error:
                told.append(str(error))
        with open(sent + ".child", "w") as file:
            json.dump(told, file)
        os._exit(7)
    said["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(said))
"""

RECEIVER = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    recognizer = pickle.load(file)
from jaxasr.speechlike import speechlike
with recognizer:
    (transcript,) = recognizer.transcribe(speechlike(1.0, 1))
print(transcript.text)
"""


def run(program: str, *arguments: str, folder: Path) -> str:
    """What a program prints; it says nothing else, and ends by itself, while its standard input stays open."""
    source, sink = os.pipe()
    try:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, *arguments],
            capture_output=True, text=True, timeout=300, cwd=folder, stdin=source,
        )  # fmt: skip
    finally:
        os.close(source)
        os.close(sink)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.slow
def test_a_guest_of_any_host(tmp_path: Path) -> None:
    folder = tiny_model_directory(tmp_path / "model")
    sent = tmp_path / "recognizer.pickle"
    said = json.loads(run(HOST, "model", str(sent), json.dumps(SETTINGS), folder=tmp_path))
    expected = said["plain"]
    assert len(expected) > 3
    assert {name: said[name] for name in SETTINGS} == dict.fromkeys(SETTINGS, expected)
    assert said["turn 0"] == said["turn 1"] == expected
    assert said["unread"][:3] == [expected] * 3 and "not NoneType" in said["unread"][3]
    if hasattr(os, "fork"):
        assert said["child"] == 7
        told = json.loads(Path(f"{sent}.child").read_text())
        assert ["fork" in line for line in told] == [True, True, True, False, False]
        assert told[3:] == ["NoneType without an error", "bytes without an error"] and "spawn" in told[0]
    assert sent.stat().st_size < 20_000 < sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(RECEIVER, str(sent), folder=elsewhere) == expected + "\n"


def test_a_recognizer_over_arrays_takes_them_along(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"search": "beam", "beam": 3, "blank_penalty": 0.5, "batch_seconds": 7.0}
    recognizer = tiny_recognizer(**options, devices=jax.local_devices()[:1])
    for again in (pickle.loads(pickle.dumps(recognizer)), copy.deepcopy(recognizer)):
        assert (again.config, again.tokens) == (recognizer.config, recognizer.tokens)
        assert (again.blank_penalty, again.batch_seconds, again.programs.search.beam) == (0.5, 7.0, 3)
        assert again.programs.devices == recognizer.programs.devices and again.programs.compiled == {}
        jax.tree.map(np.testing.assert_array_equal, again.programs.params, recognizer.programs.params)
        (transcript,) = recognizer.transcribe(speechlike(1.0, 1))
        again.programs.compiled = recognizer.programs.compiled  # the same program
        assert next(again.transcribe(speechlike(1.0, 1))) == transcript
    sent = pickle.dumps(recognizer)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: [])
        with pytest.raises(ConfigError, match="made for cpu:0, which is not here: leave out devices"):
            pickle.loads(sent)
    recognizer.close()
    with pytest.raises(ModelError, match="closed"):
        pickle.dumps(recognizer)


def test_replaced_parameters_travel_and_a_function_inside_another_does_not(tmp_path: Path) -> None:
    recognizer = jaxasr.load_model(tiny_model_directory(tmp_path / "model"))
    small = len(pickle.dumps(recognizer))
    others = jax.tree.map(lambda leaf: leaf + 1, jax.device_get(recognizer.programs.params))
    recognizer.programs.replace_params(others)
    again = pickle.loads(pickle.dumps(recognizer))
    assert len(pickle.dumps(recognizer)) > small + 20_000
    jax.tree.map(np.testing.assert_array_equal, again.programs.params, others)

    programs = Programs(recognizer.config, lambda: others, search=recognizer.programs.search)
    jax.tree.map(np.testing.assert_array_equal, pickle.loads(pickle.dumps(programs)).params, others)


def test_python_dash_m_is_the_command() -> None:
    command = [sys.executable, "-m", "jaxasr", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"jaxasr {jaxasr.__version__}\n", "")
