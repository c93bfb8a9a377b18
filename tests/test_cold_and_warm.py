"""A whole job gives the same bytes from the same programs, whether an earlier process has left any or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import soundfile

from jaxasr.speechlike import speechlike

# The command line, which also tells the shape of every batch that runs.
PROGRAM = """
import sys
from jaxasr.programs import Programs
run = Programs.run
def told(self, waveforms, *rest):
    print("shape", *waveforms.shape, file=sys.stderr)
    return run(self, waveforms, *rest)
Programs.run = told
from jaxasr.cli import main
main()
"""


def test_same_plan_and_same_bytes_cold_and_warm(tmp_path: Path) -> None:
    sounds, cache = tmp_path / "sounds", tmp_path / "cache"
    sounds.mkdir()
    for number, seconds in enumerate((1.5, 0.3, 1.0, 1.4, 0.8, 1.2)):
        soundfile.write(sounds / f"{number}.wav", speechlike(seconds, number), 16000)
    environment = os.environ | {"JAXASR_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM, "transcribe", str(sounds), "--model", "embedded", "--format", "json"]
    command += ["--batch-seconds", "3"]
    said, kept = [], []
    for _ in range(2):
        ended = subprocess.run(command, env=environment, capture_output=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        said.append((ended.stdout, ended.stderr))
        folders = ("exported", "programs", "arrays")
        kept.append({name: {file.name for file in (cache / name).iterdir()} for name in folders})
    assert said[0] == said[1] and kept[0] == kept[1]
    output, shapes = said[0]
    assert len(output.splitlines()) == 6
    # Of waits nothing is said where there is no terminal.
    assert shapes.splitlines() and all(line.startswith(b"shape ") for line in shapes.splitlines())
    assert len(set(shapes.splitlines())) == len(kept[0]["exported"]) < 4
