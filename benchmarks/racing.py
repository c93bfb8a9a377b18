"""Processes that take turns at one task, and the line that says on what machine they did."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr.speechlike import RATE, speechlike


@dataclasses.dataclass(frozen=True)
class Engine:
    """One competitor: the script that runs it, and which other one its time is compared with."""

    name: str
    command: tuple[str, ...]
    against: str | None = None
    python: str = sys.executable


class Turn:
    """A running engine that works only while it is asked."""

    def __init__(self, engine: Engine, environment: dict[str, str]) -> None:
        self.engine = engine
        self.process = subprocess.Popen(
            [engine.python, *engine.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def take(self) -> dict[str, Any]:
        """Let the engine run once; what it answers."""
        os.kill(self.process.pid, signal.SIGCONT)
        print("{}", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.engine.name} ended with status {self.process.wait()}")
        os.kill(self.process.pid, signal.SIGSTOP)
        return json.loads(answer)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def running(field: list[Engine], environment: dict[str, str]) -> Iterator[list[Turn]]:
    turns: list[Turn] = []
    try:
        for engine in field:
            turns.append(Turn(engine, environment))
        yield turns
    finally:
        for turn in turns:
            turn.end()


def write_clip(path: Path, seconds: float, seed: int) -> None:
    """Speech-like sound as a WAV of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(speechlike(seconds, seed), -1, 1) * 32767).astype("<i2").tobytes())


def machine(threads: int) -> str:
    """One line on what it ran on."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    processor = {key.strip(): value.strip() for key, value in lines}
    flags = set(processor.get("flags", "").split())
    narrow = " ".join(flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
    versions = []
    for package in ("jax", "flax", "onnxruntime", "sherpa-onnx"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{processor.get('model name', platform.machine())} ({narrow or 'no AVX-512'}), "
        f"{cores} cores of which {threads} were used, "
        f"Python {platform.python_version()}, {', '.join(versions)}; load average at the end {os.getloadavg()[0]:.1f}"
    )
