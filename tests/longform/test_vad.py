"""What a recogniser hears of long recordings: all in pieces, all at once, or the speech that a detector finds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import jaxasr
from conftest import DATA
from golden_models import Golden
from jaxasr import audio
from jaxasr import recognizer as module
from jaxasr.detector import Detector
from jaxasr.errors import ConfigError, JaxasrError
from jaxasr.recognizer import Recognizer
from jaxasr.transcripts import Failure, Transcript

RATE = 16000


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector") / "model"
    jaxasr.convert_checkpoint(DATA / "fsmn-vad", folder)
    return folder


@pytest.fixture(scope="module")
def detector(detector_folder: Path) -> Detector:
    return jaxasr.load_detector(detector_folder)


@pytest.fixture(scope="module")
def make(bundled: Golden) -> Callable[..., Recognizer]:
    """Recognisers whose windows last 6 s at most, in batches of 12 s."""
    config = dataclasses.replace(bundled.config, audio=dataclasses.replace(bundled.config.audio, longest=6.0))
    return lambda **options: bundled.recognizer(config=config, batch_seconds=12.0, **options)


@pytest.fixture(scope="module")
def long() -> np.ndarray:
    """39 s: sentences after gaps of noise so quiet that the tiny detector takes it for none."""
    sound = audio.load(DATA / "espeak_sentence.wav")
    rng = np.random.default_rng(2)
    sizes = (30000, 50000, 26000, 40000, 61000, 30000)
    gaps = [(1e-5 * rng.standard_normal(size)).astype(np.float32) for size in sizes]
    return np.concatenate([part for gap in gaps for part in (gap, sound)])


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recordings beyond 12 s are heard while they are decoded."""
    monkeypatch.setattr(module, "PIECE_SECONDS", 1.0)
    yield


def said(result: Any) -> tuple[list[int], list[float], float]:
    assert isinstance(result, Transcript)
    return result.token_ids, result.timestamps, result.duration


def test_a_recording_is_heard_while_it_is_decoded(
    make: Callable[..., Recognizer], long: np.ndarray, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same windows, words and times as of the whole, alone and among others; one line says that it was cut."""
    recognizer, short = make(), long[30000:90000]
    whole = said(next(recognizer.transcribe(long)))
    assert len(whole[0]) > 10
    monkeypatch.setattr(module, "PIECE_SECONDS", 1.0)
    seen: list[tuple[float, float]] = []
    given = [short, long, short, long, np.zeros(0, np.float32)]
    for sources in (given, iter(given)):
        seen.clear()
        found = [said(result) for result in recognizer.transcribe(sources, progress=lambda *at: seen.append(at))]
        assert found[1] == found[3] == whole and found[0] == found[2] and found[4] == ([], [], 0.0)
    assert len(logged) == 5 and len({line.partition(":")[2] for line in logged}) == 1
    assert seen == sorted(seen) and seen[-1][0] == pytest.approx(seen[-1][1])


@pytest.mark.usefixtures("short_pieces")
def test_what_fails_late_is_one_failure_in_its_place(
    make: Callable[..., Recognizer], long: np.ndarray, tmp_path: Path
) -> None:
    broken = long.copy()
    broken[-100] = np.nan
    soundfile.write(tmp_path / "broken.wav", np.stack([broken, broken], 1), RATE, subtype="FLOAT")
    given = [long[30000:60000], str(tmp_path / "broken.wav"), long[30000:60000]]
    recognizer = make()
    for channels in ("mix", "each"):
        first, second, third = recognizer.transcribe(given, on_error="yield", channels=channels)  # type: ignore[call-overload]
        assert isinstance(second, Failure) and "NaN" in str(second.error) and said(first) == said(third)
    with pytest.raises(JaxasrError, match="NaN"):
        list(recognizer.transcribe(given))


@pytest.mark.usefixtures("short_pieces")
def test_each_channel_of_a_long_recording(make: Callable[..., Recognizer], long: np.ndarray) -> None:
    recognizer = make()
    both = np.stack([long, np.roll(long, 40000)], 1)
    results = list(recognizer.transcribe(both, channels="each"))
    assert [result.channel for result in results] == [1, 2]
    assert [said(result) for result in results] == [said(next(recognizer.transcribe(both[:, n]))) for n in (0, 1)]


def test_none_hears_all_at_once(make: Callable[..., Recognizer], long: np.ndarray, logged: list[str]) -> None:
    whole = long[: 15 * RATE]
    result = next(make(vad="none").transcribe(whole))
    longer = make(vad="energy")
    longer.config = dataclasses.replace(longer.config, audio=dataclasses.replace(longer.config.audio, longest=15.0))
    assert said(result) == said(next(longer.transcribe(whole))) and logged == []


def test_the_speech_that_a_detector_finds(
    make: Callable[..., Recognizer], detector: Detector, long: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words and times of each segment by itself, moved to where it stands; nothing of the gaps."""
    segments = detector.segments(long)
    assert len(segments) > 2 and sum(stop - start for start, stop in segments) < 0.9 * len(long) / RATE
    plain, recognizer = make(), make(vad=detector)
    ids, times = [], []
    for start, stop in segments:
        part = next(plain.transcribe(long[round(start * RATE) : round(stop * RATE)]))
        ids += part.token_ids
        times += [time + start for time in part.timestamps]
    for seconds in (80.0, 1.0):
        monkeypatch.setattr(module, "PIECE_SECONDS", seconds)
        found = next(recognizer.transcribe(long))
        assert found.token_ids == ids and found.duration == len(long) / RATE
        np.testing.assert_allclose(found.timestamps, times, atol=2e-4)
    assert all(word.stop <= found.duration for word in found.words)
    silent = next(recognizer.transcribe(1e-5 * np.ones(3 * RATE, np.float32)))
    assert (silent.text, silent.tokens, silent.duration) == ("", [], 3.0)


def test_from_the_command_line(
    bundled: Golden, detector_folder: Path, long: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxasr.cli import main

    soundfile.write(tmp_path / "long.wav", long, RATE)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["transcribe", str(tmp_path / "long.wav"), "--model", str(bundled.directory), *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    code, out, _ = run("--vad", str(detector_folder), "--format", "json")
    row = json.loads(out)
    segments = jaxasr.load_detector(detector_folder).segments(str(tmp_path / "long.wav"))
    assert code == 0 and row["timestamps"] and row["duration"] == pytest.approx(len(long) / RATE)
    assert all(any(start - 1e-3 <= time <= stop for start, stop in segments) for time in row["timestamps"])
    for folder, why in (
        (bundled.directory, "is a recogniser"),
        (tmp_path, "no model directory"),
        ("nobody", "unknown"),
    ):
        code, out, err = run("--vad", str(folder))
        assert (code, out) == (1, "") and why in err.splitlines()[-1]


def test_a_vad_that_is_none_is_refused(make: Callable[..., Recognizer]) -> None:
    with pytest.raises(ConfigError, match="'none', 'energy' or a detector"):
        make(vad="silence")
