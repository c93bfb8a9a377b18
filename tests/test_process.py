"""Loading and transcribing leave the process as it was; `configure_process` changes what it says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxasr import audio


@pytest.fixture
def noisy() -> bytes:
    """An MP3 whose header announces more than there is, of which libmpg123 complains."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 160000).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, 16000, format="MP3", subtype="MPEG_LAYER_III")
    return file.getvalue()[: len(file.getvalue()) // 2]


# What of the process changes: JAX's options, calls of mallopt, redirections of descriptor 2.
GUEST = """
import json, os, sys
import jax

looked_up, redirected = [], []
sys.addaudithook(lambda event, arguments: looked_up.append(arguments[1]) if event == "ctypes.dlsym" else None)
dup2 = os.dup2
os.dup2 = lambda *arguments: redirected.append(arguments) or dup2(*arguments)

def state():
    options = {name: str(getattr(jax.config, name)) for name in dir(jax.config) if name.startswith("jax_")}
    return [options, os.fstat(2).st_ino, "mallopt" in looked_up, bool(redirected)]

before = state()
import jaxasr
with jaxasr.load_model("embedded", lazy=True) as recognizer:
    (transcript,) = recognizer.transcribe(sys.argv[1])
after = state()
kept = len(os.listdir(os.path.join(os.environ["JAXASR_CACHE"], "programs")))
jaxasr.configure_process()
jaxasr.audio.load(sys.argv[1])
print(json.dumps([before, after, state(), kept]))
"""


def test_a_guest_changes_nothing_and_keeps_its_programs(tmp_path: Path, noisy: bytes) -> None:
    clip = tmp_path / "noisy.mp3"
    clip.write_bytes(noisy)
    environment = {**os.environ, "JAXASR_CACHE": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    run = subprocess.run(
        [sys.executable, "-c", GUEST, str(clip)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    before, after, configured, kept = json.loads(run.stdout)
    assert before == after and before[2:] == [False, False]
    assert kept > 0
    # What is looked for can be found.
    assert configured[0]["jax_compilation_cache_dir"] == str(tmp_path / "programs") != before[0]
    assert configured[1] == before[1] and configured[2:] == [sys.platform == "linux", True]


@pytest.mark.usefixtures("silenced", "logged")
def test_what_mpg123_prints_is_kept_from_the_terminal_and_nothing_else_is(
    capfd: pytest.CaptureFixture[str], noisy: bytes
) -> None:
    with soundfile.SoundFile(io.BytesIO(noisy)):
        pass
    assert "Xing" in capfd.readouterr().err  # this case does make the library talk
    stop = threading.Event()
    said = 0

    def talk() -> None:
        nonlocal said
        while not stop.is_set():
            os.write(2, b"line %d\n" % said)
            said += 1
            stop.wait(0.0005)

    talker = threading.Thread(target=talk)
    talker.start()
    readers = [threading.Thread(target=lambda: [audio.load(noisy) for _ in range(10)]) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    stop.set()
    talker.join()
    os.write(2, b"after\n")
    heard = capfd.readouterr().err.splitlines()
    assert sorted(heard) == sorted([*(f"line {i}" for i in range(said)), "after"])
