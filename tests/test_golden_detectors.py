"""Parity of voice activity detectors: NeMo's window classifier and frame classifier as they were published, which lie
beside the checkout, and tiny ones that NeMo itself made (tests/data/nemo-detectors).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import jaxasr
from conftest import DATA
from golden_models import difference, quick_jit, read_arrays
from jaxasr import store
from jaxasr.detector import Detector
from jaxasr.features import FEATURES as FRONT_ENDS
from jaxasr.model import AbstractDetector

TINY = DATA / "nemo-detectors"
# Two float32 front ends and networks. The export's Fourier transform has phases rounded to float32, which in the
# quietest bins moves the logarithm by 1e-3.
FEATURES, EXPORTED_FEATURES, ENCODED, PROBABILITIES = 1e-5, 2e-3, 1e-5, 1e-4
# (file, first sample, samples) of the recordings that the window classifier heard.
RECORDINGS = (
    ("test/fcaw.flac", 0, 64000),
    ("test/fcaw.flac", 64000, 65600),
    ("test/marh.flac", 59200, 33600),
    ("test/miry.flac", 614400, 44800),
)


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    folder = shared / "published/nemo-marblenet-vad"
    if not folder.is_dir():
        pytest.skip("needs the published detectors beside the checkout, whose licence is not known")
    return folder


@pytest.fixture(scope="module")
def windows(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(published / "MarbleNet-3x2x64.nemo", tmp_path_factory)


@pytest.fixture(scope="module")
def frames(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(published / "frame-vad-multilingual-marblenet-v2.0.onnx", tmp_path_factory)


def converted(source: Path, folders: pytest.TempPathFactory) -> Path:
    directory = folders.mktemp("detector") / "model"
    jaxasr.convert_checkpoint(source, directory)
    return directory


def parts(directory: Path) -> Callable[[np.ndarray], Any]:
    """samples (S,) -> features (T, F), encoded frames (T', D) and their counts, as the modules give them."""
    stored = store.open_detector(directory)
    params, abstract = stored.params(), AbstractDetector(stored.config)

    @quick_jit
    def run(waveforms: Any, lengths: Any) -> Any:
        detector = abstract.fill(params)
        found, counts = detector.features(waveforms, lengths)
        encoded, lengths = detector.encoder(found, counts)
        return found[0], counts[0], encoded[0], lengths[0]

    return lambda samples: run(samples[None], np.array([len(samples)], np.int32))


def test_the_window_classifier(shared: Path, published: Path, windows: Path) -> None:
    stored = read_arrays(published / "nemo-reference.npz")
    run, detector = parts(windows), jaxasr.load_detector(windows)
    assert detector.frame_seconds == pytest.approx(float(stored["hop_sec"]))
    for number, (file, start, size) in enumerate(RECORDINGS):
        samples, _ = soundfile.read(shared / "speech/an4" / file, start=start, frames=size, dtype="float32")
        features, count, encoded, _ = run(samples)
        assert count == stored[f"features_length_{number}"]
        assert difference(features.T, stored[f"features_{number}"]) < FEATURES
        assert difference(encoded.T, stored[f"encoder_{number}"]) < ENCODED
        probabilities = detector(samples)
        expected = stored[f"window_speech_probs_{number}"]
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, atol=PROBABILITIES)
        assert ((probabilities > 0.5) == (expected > 0.5)).all()


def test_its_front_end_is_what_would_be_designed(windows: Path) -> None:
    stored = store.open_detector(windows)
    designed = AbstractDetector(stored.config)
    assert store.flatten(designed.parameters).keys() == store.flatten(stored.params()).keys()
    module = FRONT_ENDS.make(stored.config.features, rngs=None)
    read: dict[str, Any] = store.flatten(stored.params())
    for name, array in (
        ("mel.filterbank", module.mel.filterbank),
        ("mel.window", module.mel.window),
        ("cosines", module.cosines),
    ):
        np.testing.assert_allclose(read[f"features.{name}"], array[...], atol=2e-5, err_msg=name)


def test_the_frame_classifier(shared: Path, published: Path, frames: Path) -> None:
    stored = read_arrays(published / "frame-vad-onnxruntime-reference.npz")
    features, count, encoded, _ = parts(frames)((stored["audio_2"] / 32768).astype(np.float32))
    assert count == len(features)
    np.testing.assert_allclose(features.T, stored["log_mel_2"], atol=EXPORTED_FEATURES)
    assert difference(encoded.T, stored["encoder_2"]) < ENCODED
    detector = jaxasr.load_detector(frames)
    assert detector.frame_seconds == pytest.approx(0.02)
    recordings = read_arrays(shared / "published/funasr-fsmn-vad-zh-cn-16k/funasr-onnx-reference.npz")
    for number in range(3):
        probabilities = detector(recordings[f"audio_{number}"])
        np.testing.assert_allclose(probabilities, stored[f"speech_probs_{number}"], atol=PROBABILITIES)


def test_what_the_export_lost_is_found(published: Path) -> None:
    """The names, the blocks and the classes are those of NeMo's recipe, marblenet_3x2x64_20ms."""
    described = jaxasr.convert.describe(published / "frame-vad-multilingual-marblenet-v2.0.onnx")
    assert described["kind"] == "export of a NeMo detector (.onnx)" and described["detects"] == "speech"
    assert (described["blocks"], described["convolutions"], described["frame_s"]) == (6, 9, 0.02)


# --- tiny detectors ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Detector]:
    return lambda name: jaxasr.load_detector(converted(TINY / f"{name}.nemo", tmp_path_factory))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    samples: np.ndarray = soundfile.read(DATA / "espeak_sentence.wav", frames=48000, dtype="float32")[0]
    return samples


@pytest.mark.parametrize("name", ["windows_mfcc", "windows_mel", "windows_unmasked", "frames"])
def test_tiny_detectors(tiny: Callable[[str], Detector], samples: np.ndarray, name: str) -> None:
    detector = tiny(name)
    expected = read_arrays(TINY / f"{name}.npz")["probabilities"]
    assert np.ptp(expected) > 0.2
    np.testing.assert_allclose(detector(samples), expected, atol=PROBABILITIES)


def test_the_frame_after_a_window_is_pooled(tiny: Callable[[str], Detector], samples: np.ndarray) -> None:
    """The mean runs over all frames that NeMo computes, one more than count: otherwise the test above would fail."""
    detector = tiny("windows_mel")
    assert detector.config.window is not None and detector.config.window.trailing_frames == 1
    window = dataclasses.replace(detector.config.window, trailing_frames=0)
    other = Detector(dataclasses.replace(detector.config, window=window), detector.params)
    assert np.abs(other(samples) - detector(samples)).max() > 10 * PROBABILITIES
