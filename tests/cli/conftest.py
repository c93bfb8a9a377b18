"""A recogniser without a network, so that the command line is tested in milliseconds, and how its commands are run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxasr
from jaxasr import audio, inputs
from jaxasr.cli import main
from jaxasr.errors import JaxasrError


class FakeRecognizer:
    """Hears in every file the words of its name, half a second apart; in arrays the texts that it was given."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.texts: list[str] = []
        self.heard: list[np.ndarray] = []
        self.closed = False

    def __enter__(self) -> FakeRecognizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def transcribe(
        self, sources: Any, *, on_error: str = "raise", progress: Any = None, channels: Any = "mix"
    ) -> Iterator[Any]:
        done = 0.0
        for number, source in enumerate(sources):
            name = source if isinstance(source, str) else ""
            try:
                given = inputs.named_source(source, None)
                heard = audio.load_channels(given.source, given.sample_rate, channels)
            except JaxasrError as error:
                assert on_error == "yield"
                yield jaxasr.Failure(name, error)
                continue
            words = Path(name).stem.split("_") if name else self.texts[number].split()
            for place, samples in enumerate(heard, start=1):
                if not name:
                    self.heard.append(samples)
                done += len(samples) / audio.SAMPLE_RATE
                if progress is not None:
                    progress(done, done)
                yield jaxasr.Transcript(
                    audio=name,
                    duration=len(samples) / audio.SAMPLE_RATE,
                    text=" ".join(words),
                    tokens=[f" {word}" for word in words],
                    token_ids=list(range(len(words))),
                    timestamps=[0.5 * i for i in range(len(words))],
                    log_probs=[-0.25] * len(words),
                    channel={"mix": None, "each": place}.get(channels, channels),
                )


@pytest.fixture
def on_a_terminal() -> Callable[[list[str]], tuple[str, str]]:
    """Runs a command whose standard error is a terminal: what it prints, and what it shows there."""

    pty = pytest.importorskip("pty")

    def run(command: list[str]) -> tuple[str, str]:
        terminal, process_side = pty.openpty()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=process_side,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(process_side)
        limit = threading.Timer(600, process.kill)
        limit.start()
        shown = b""
        with contextlib.suppress(OSError):  # how a pseudo-terminal ends
            while data := os.read(terminal, 65536):
                shown += data
        printed, _ = process.communicate()
        limit.cancel()
        os.close(terminal)
        return printed.decode(), shown.decode()

    return run


@dataclasses.dataclass
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `jaxasr ARGUMENTS` in this process."""

    def run(*arguments: Any) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Result(int(exit.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def recognizers(monkeypatch: pytest.MonkeyPatch) -> list[FakeRecognizer]:
    """Replaces jaxasr.load_model; the recognisers that it made are appended to this list."""
    made: list[FakeRecognizer] = []

    def load_model(name: str | None = None, **options: Any) -> FakeRecognizer:
        made.append(FakeRecognizer(model=name, **options))
        return made[-1]

    monkeypatch.setattr(jaxasr, "load_model", load_model)
    return made


@pytest.fixture
def record() -> Callable[..., Path]:
    """Writes a recording of silence."""

    def record(path: Path, seconds: float = 1.0, rate: int = 16000, samples: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros(round(seconds * rate), np.int16) if samples is None else samples.astype(np.int16)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, rate, len(values), "NONE", ""))
            file.writeframes(values.tobytes())
        return path

    return record
