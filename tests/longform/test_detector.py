"""A detector hears a recording of any length as it hears all of it at once, in batches of one shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxasr
from conftest import DATA
from jaxasr import audio
from jaxasr import detector as module
from jaxasr.configs import named_configs
from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.detector import Detector
from jaxasr.detector_config import DetectorConfig, WindowConfig
from jaxasr.errors import AudioError, ConfigError, ModelError
from jaxasr.features.kaldi_config import KaldiConfig
from jaxasr.store import read_config

ATTENTION = read_config(named_configs()["librispeech_zipformer_medium"]).encoder
SOUND = DATA / "espeak_sentence.wav"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("detectors")
    for name in ("windows_mfcc", "frames"):
        jaxasr.convert_checkpoint(DATA / f"nemo-detectors/{name}.nemo", folder / name)
    return {name: folder / name for name in ("windows_mfcc", "frames")}


@pytest.fixture(scope="module")
def windows(folders: dict[str, Path]) -> Detector:
    return jaxasr.load_detector(folders["windows_mfcc"])


@pytest.fixture(scope="module")
def frames(folders: dict[str, Path]) -> Detector:
    return jaxasr.load_detector(folders["frames"])


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return audio.load(SOUND)


def test_pieces_give_what_the_whole_gives(frames: Detector, samples: np.ndarray) -> None:
    """Of an encoder and a front end without statistics of their whole input."""
    whole = frames(samples)
    in_pieces = Detector(dataclasses.replace(frames.config, longest=2.0), frames.params)
    rows = list(in_pieces.config.rows(len(samples)))
    assert len(rows) > 4 and all(row.stop - row.start <= in_pieces.config.row_samples == 32000 for row in rows)
    # Two float32 programs of different shapes.
    np.testing.assert_allclose(in_pieces(samples), whole, atol=1e-5)
    assert len(whole) == len(samples) // 160 // 2 + len(samples) // 160 % 2


SIZES = [1, 159, 160, 5000, 31999, 32000, 32001, 36480, 41280, 41281, 41760, 41920, *range(60000, 61000, 83)]


@pytest.mark.parametrize("features", [{}, {"framing": "reflected"}, None])
@pytest.mark.parametrize("size", SIZES)
def test_rows_give_every_frame_once(frames: Detector, size: int, features: dict[str, Any] | None) -> None:
    """Whatever front ends count: also where the last frames need more samples than a hop."""
    if features is None:
        front_end: Any = KaldiConfig(bins=40, snip_edges=True)
    else:
        front_end = dataclasses.replace(frames.config.features, **features)  # type: ignore[type-var]
    config = dataclasses.replace(frames.config, longest=2.0, features=front_end)
    rows = list(config.rows(size))
    assert sum(row.count for row in rows) == config.row_frames(size) and min(row.count for row in rows) >= 0
    assert all(row.skip + row.count <= config.row_frames(row.stop - row.start) for row in rows)
    assert rows[0].start == 0 and rows[-1].stop == size


def test_windows_are_heard_by_themselves(windows: Detector, samples: np.ndarray) -> None:
    """Many batches of them, the last one not full, at their times; beyond the recording there are zeros."""
    size, step = 10080, 1600
    found = windows(samples)
    assert len(found) == len(samples) // step + 1
    assert windows.frame_seconds == pytest.approx(0.1)
    padded = np.pad(samples, size)
    # Of one window's samples it hears the first half with zeros before it, the window, and the second half.
    half = WindowConfig(step=size / 2 / 16000)
    halves = Detector(dataclasses.replace(windows.config, window=half), windows.params)
    for number in (0, 1, 17, len(found) - 1):
        window = padded[size + number * step - size // 2 :][:size]
        alone = halves(window)
        assert len(alone) == 3
        np.testing.assert_allclose(found[number], alone[1], atol=1e-5)


def test_all_batches_have_one_shape(
    windows: Detector, frames: Detector, monkeypatch: pytest.MonkeyPatch, samples: np.ndarray
) -> None:
    """So that an hour needs no more memory than its samples and a batch."""
    monkeypatch.setattr(module, "CPU_BATCH_SECONDS", 4.0)
    for detector in (windows, frames):
        again = Detector(dataclasses.replace(detector.config, longest=2.0), detector.params)
        shapes = set()
        run = again._run

        def note(params: Any, waveforms: np.ndarray, lengths: np.ndarray, run: Any = run, shapes: Any = shapes) -> Any:
            shapes.add(waveforms.shape)
            return run(params, waveforms, lengths)

        monkeypatch.setattr(again, "_run", note)
        for recording in (samples, samples[:100], np.tile(samples, 3)):
            again(recording)
        assert len(shapes) == 1 and np.prod(shapes.pop()) <= 4.0 * 16000


def test_any_source_of_sound(windows: Detector, samples: np.ndarray) -> None:
    expected = windows(samples)
    for source in (SOUND, str(SOUND), SOUND.read_bytes(), {"array": samples, "sampling_rate": 16000}):
        np.testing.assert_array_equal(windows(source), expected)
    assert len(windows(samples, sample_rate=8000)) == len(samples) * 2 // 1600 + 1


def test_nothing_and_little(windows: Detector, frames: Detector) -> None:
    for detector, of_one in ((windows, 1), (frames, 0)):
        assert detector(np.zeros(0, np.float32)).shape == (0,)
        few = detector(np.zeros(1, np.float32))
        assert few.shape == (of_one,) and np.isfinite(few).all()
    with pytest.raises(AudioError, match="no such file"):
        windows("absent.wav")


def test_detectors_and_recognisers_are_not_confused(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        with pytest.raises(ModelError, match=r"is a voice activity detector, not a recogniser: jaxasr.load_detector"):
            jaxasr.load_model(folder)
    with pytest.raises(ModelError, match=r"is a recogniser, not a voice activity detector: jaxasr.load_model takes it"):
        jaxasr.load_detector("embedded")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"longest": 1.0}, r"longest must be more than 1\.\d+ s, what the encoder hears, not 1.0"),
        ({"longest": float("inf")}, "longest must be more"),
        ({"window": {"step": 0.0}}, r"window.step must be a number of seconds, not 0.0"),
        ({"window": {"seconds": float("nan")}}, "window.seconds must be a number of seconds"),
        ({"window": {"trailing_frames": -1}}, "trailing_frames must not be negative"),
        ({"window": {"pooling": "sum"}}, "'sum' is none of mean, max"),
        ({"features": {"kind": "nemo_mel", "bins": 39}}, "39 bins, but the encoder's input_dim is 40"),
        ({"features": {"kind": "nemo_mel", "bins": 40, "sample_rate": 8000, "high_freq": 4000.0}}, "come at 16000 Hz"),
        ({"encoder": {**to_mapping(ATTENTION), "input_dim": 40}}, "a zipformer hears all of a recording"),
    ],
)
def test_configurations_that_cannot_be(frames: Detector, change: dict[str, Any], said: str) -> None:
    mapping = to_mapping(frames.config) | change
    with pytest.raises(ConfigError, match=said):
        from_mapping(DetectorConfig, mapping, "config.yaml")
