"""Classifiers of NeMo as detectors: which are converted, which are refused by name, and the export without names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_writer as onnx
from conftest import DATA
from jaxasr import convert_checkpoint, store
from jaxasr.convert import describe
from jaxasr.convert.families import detect
from jaxasr.detector_config import DetectorConfig
from jaxasr.errors import JaxasrError

from .conftest import BINS, WIDTH, citrinet_settings, citrinet_tensors

Writer = Callable[..., Path]
TINY = DATA / "nemo-detectors"


def classifier(**changes: Any) -> dict[str, Any]:
    """The settings of a classifier of windows with values changed or, if None, left out; `a__b` is b inside of a."""
    settings = citrinet_settings()
    settings["target"] = "nemo.collections.asr.models.classification_models.EncDecClassificationModel"
    settings["labels"] = ["background", "speech"]
    settings["decoder"] = {"_target_": "nemo.collections.asr.modules.ConvASRDecoderClassification", "feat_in": WIDTH}
    for place, value in changes.items():
        *sections, key = place.split("__")
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner.pop(key, None)
        if value is not None:
            inner[key] = value
    return settings


def tensors(classes: int = 2) -> dict[str, np.ndarray]:
    """The weights of that classifier."""
    found = {name: value for name, value in citrinet_tensors().items() if not name.startswith("decoder")}
    head = {"weight": np.full((classes, WIDTH), 0.5, np.float32), "bias": np.zeros(classes, np.float32)}
    return (
        found
        | {f"decoder.decoder_layers.0.{name}": value for name, value in head.items()}
        | {"loss.weight": np.ones(classes, np.float32)}
    )


def test_a_classifier_of_windows(write_nemo: Writer, tmp_path: Path) -> None:
    path = write_nemo(classifier(), tensors())
    card = convert_checkpoint(path, tmp_path / "model")
    assert any("windows of 0.63 s" in line for line in card.summary)
    config = store.open_detector(tmp_path / "model").config
    assert config.window is not None and (config.window.pooling, config.window.trailing_frames) == ("mean", 1)
    assert (config.classifier.classes, config.classifier.nonspeech) == (2, (0,))
    described = store.describe(tmp_path / "model")
    assert (
        described.items() >= {"detects": "speech", "frame_s": 0.1, "window_s": 0.63, "architecture": "citrinet"}.items()
    )
    assert describe(path).items() >= {"kind": "NeMo archive (.nemo)", "detects": "speech"}.items()
    assert not (tmp_path / "model/tokens.txt").exists()
    assert "A voice activity detector for jaxasr: citrinet encoder" in (tmp_path / "model/README.md").read_text()


def test_older_spellings_give_the_same(write_nemo: Writer, tmp_path: Path) -> None:
    old = classifier()
    for name in ("preprocessor", "encoder", "decoder"):
        section = old.pop(name)
        old[name] = {"cls": section.pop("_target_"), "params": section}
    del old["target"]
    convert_checkpoint(write_nemo(classifier(), tensors()), tmp_path / "new")
    convert_checkpoint(write_nemo(old, tensors(), mode="w:gz", prefix=""), tmp_path / "old")
    assert (tmp_path / "new/config.yaml").read_text() == (tmp_path / "old/config.yaml").read_text()


def test_speech_among_several_classes(write_nemo: Writer, tmp_path: Path) -> None:
    convert_checkpoint(write_nemo(classifier(labels=["speech", "music", "noise"]), tensors(3)), tmp_path / "model")
    assert store.open_detector(tmp_path / "model").config.classifier.nonspeech == (1, 2)


MFCC = {"_target_": "nemo.collections.asr.modules.AudioToMFCCPreprocessor", "n_mels": 16, "n_mfcc": BINS}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "commands": (
        {"labels": ["yes", "no", "up", "unknown"]},
        "its classes are yes, no, up, unknown: a voice activity detector has one that is called speech or 1",
    ),
    "many commands": ({"labels": [f"word{n}" for n in range(35)]}, "word7 and 27 more: a voice activity detector has"),
    "digits": ({"labels": ["0", "1", "2"]}, "its classes are 0, 1, 2: a voice activity detector"),
    "one class": ({"labels": ["speech"]}, "its classes are speech: a voice"),
    "no classes": ({"labels": None}, "states no labels: which class is speech cannot be known"),
    "other weights": ({"labels": ["speech", "music", "noise"]}, r"has shape \(6, 2\) instead of \(6, 3\)"),
    "regression": (
        {"target": "a.EncDecRegressionModel"},
        "a EncDecRegressionModel is no recogniser or detector that jaxasr knows; known are EncDecCTCModel, .*, "
        "EncDecFrameClassificationModel",
    ),
    "speakers": (
        {"decoder___target_": "a.SpeakerDecoder"},
        "decoder._target_ is 'a.SpeakerDecoder': no head of a detector",
    ),
    "an attention encoder": ({"encoder___target_": "a.ConformerEncoder"}, "known of detectors is ConvASREncoder"),
    "clips of one length": (
        {"crop_or_pad_augment": {"_target_": "a.CropOrPad", "audio_length": 128}},
        "crop_or_pad_augment: a classifier of clips of one length is no detector",
    ),
    "another pooling": (
        {"decoder__pooling_type": "attention"},
        "decoder.pooling_type is 'attention': known are avg, max",
    ),
    "an unknown option": ({"preprocessor__spectral": True}, "preprocessor.spectral is True"),
    "decibels": ({"preprocessor": {**MFCC, "log": False}}, "preprocessor.log is False: decibels"),
    "another transform": ({"preprocessor": {**MFCC, "dct_type": 3}}, "preprocessor.dct_type is 3"),
    "another norm": ({"preprocessor": {**MFCC, "norm": "none"}}, "preprocessor.norm is 'none'"),
    "another window": ({"preprocessor": {**MFCC, "window": "kaiser"}}, "preprocessor.window is 'kaiser': known are"),
    "an unknown option of cepstra": ({"preprocessor": {**MFCC, "lifter": 22}}, "preprocessor.lifter is 22"),
    "too many cepstra": ({"preprocessor": {**MFCC, "n_mels": 4}}, "coefficients must lie in 1..4"),
    "cepstra without masks": ({"preprocessor": MFCC, "encoder__conv_mask": False}, "encoder.conv_mask is False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_detector_is_refused_by_name(write_nemo: Writer, tmp_path: Path, name: str) -> None:
    changes, said = REFUSED[name]
    path = write_nemo(classifier(**changes), tensors())
    with pytest.raises(JaxasrError, match=said) as refusal:
        convert_checkpoint(path, tmp_path / "model")
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(str(path))
    assert not (tmp_path / "model").exists()


def test_options_of_recognisers_are_refused(write_nemo: Writer, tmp_path: Path) -> None:
    path = write_nemo(classifier(), tensors())
    with pytest.raises(JaxasrError, match="chunk_seconds is for recognisers, and this is a voice activity detector"):
        convert_checkpoint(path, tmp_path / "model", chunk_seconds=0.5)
    with pytest.raises(JaxasrError, match="tokens is for recognisers"):
        convert_checkpoint(path, tmp_path / "model", tokens=path)


def test_cepstra_without_stored_arrays_are_designed(write_nemo: Writer, tmp_path: Path) -> None:
    weights = {name: value for name, value in tensors().items() if "featurizer" not in name}
    card = convert_checkpoint(write_nemo(classifier(preprocessor=MFCC), weights), tmp_path / "model")
    assert any("no features.cosines and no features.mel.filterbank" in line for line in card.summary)


# --- the export without names -----------------------------------------------------------------------------------------

FFT, MEL, CHANNELS = 64, 6, 4


def exported(path: Path, *, fused: bool = True, **changes: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """An ONNX file in the form of the export, and its weights by NeMo's names; `changes` break it.

    A block with a stride, a residual block with two units, a pointwise convolution. `fused`: activations are part of
    the convolutions.
    """
    rng = np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {}
    nodes, stored, last = [], [], ["audio"]

    def constant(value: Any, dtype: str = "f4") -> str:
        name = f"onnx::{len(stored)}"
        stored.append(onnx.tensor(name, np.asarray(value, dtype)))
        return name

    def add(kind: str, *inputs: str, attributes: tuple[bytes, ...] = (), domain: str = "") -> str:
        last[0] = f"{kind}_{len(nodes)}"
        nodes.append(onnx.node(kind, inputs, [last[0]], *attributes, domain=domain))
        return last[0]

    def integers(name: str, *values: int) -> bytes:
        return onnx.field(1, name) + b"".join(onnx.field(8, value) for value in values) + onnx.field(20, 7)

    def convolve(
        source: str, name: str, out: int, size: int, kernel: int = 1, stride: int = 1, relu: bool = True
    ) -> str:
        deep = kernel > 1
        weight = rng.standard_normal((out, 1 if deep else size, kernel)).astype(np.float32)
        weights[f"{name}.weight"] = weight
        attributes = (
            integers("strides", stride),
            integers("dilations", changes.get("dilation", 1) if deep else 1),
            integers("pads", kernel // 2, kernel // 2),
            onnx.field(1, "group") + onnx.field(3, size if deep else 1) + onnx.field(20, 2),
        )
        inputs = [source, constant(weight)]
        if not deep:
            weights[f"{name}.bias"] = rng.standard_normal(out).astype(np.float32)
            inputs.append(constant(weights[f"{name}.bias"]))
        if relu and fused and not deep:
            kind = onnx.field(1, "activation") + onnx.field(4, changes.get("activation", "Relu")) + onnx.field(20, 3)
            return add("FusedConv", *inputs, attributes=(*attributes, kind), domain="com.microsoft")
        found = add("Conv", *inputs, attributes=attributes)
        return add("Relu", found) if relu and not deep else found

    window = np.zeros(FFT)
    window[8:56] = np.hanning(49)[:48]
    phases = 2 * np.pi / FFT * np.outer(np.arange(FFT // 2 + 1), np.arange(FFT))
    shift = changes.get("shift", 0.0)
    hop = integers("strides", 160)
    weights["fb"] = rng.uniform(size=(1, MEL, FFT // 2 + 1)).astype(np.float32)
    weights["window"] = window[8:56].astype(np.float32)
    scaled = add("Mul", add("Cast", "audio"), constant(2.0**-15))
    centred = add("Sub", scaled, add("ReduceMean", scaled))
    early, late, first = (add("Slice", centred) for _ in range(3))
    padded = add("Concat", first, add("Sub", late, add("Mul", early, constant(0.97))))
    sine = add("Conv", padded, constant((window * np.sin(phases))[:, None]), attributes=(hop,))
    cosine = add("Conv", padded, constant((window * np.cos(phases + shift))[:, None]), attributes=(hop,))
    power = add("Add", add("Mul", cosine, cosine), add("Mul", sine, sine))
    features = add("Log", add("Add", add("MatMul", constant(weights["fb"]), power), constant(1e-7)))
    if "extra" in changes:
        features = add(changes["extra"], features)
    deep = convolve(features, "0.mconv.0.conv", MEL, MEL, 5, stride=2)
    source = convolve(deep, "0.mconv.1.conv", CHANNELS, MEL)
    deep = convolve(source, "1.mconv.0.conv", CHANNELS, CHANNELS, 3)
    # Beside the main branch, in the middle of it, as an optimizer put it.
    residual = convolve(source, "1.res.0.0.conv", CHANNELS, CHANNELS, relu=False)
    first = convolve(deep, "1.mconv.1.conv", CHANNELS, CHANNELS)
    deep = convolve(first, "1.mconv.5.conv", CHANNELS, CHANNELS, 3)
    main = convolve(deep, "1.mconv.6.conv", CHANNELS, CHANNELS, relu=False)
    encoded = convolve(add("Relu", add("Add", main, residual)), "2.mconv.0.conv", 5, CHANNELS)
    weights["head"], weights["head_bias"] = rng.standard_normal((5, 2)).astype(np.float32), np.float32([0.5, -0.5])
    logits = add(
        "Add", constant(weights["head_bias"]), add("MatMul", add("Transpose", encoded), constant(weights["head"]))
    )
    outputs = changes.get("outputs", ["score_silence", "score_active"])
    nodes.append(onnx.node("Split", [add("Softmax", logits)], outputs))
    given = [onnx.value_info(name, 1, "frames", 1) for name in outputs]
    path.write_bytes(onnx.model(onnx.graph(nodes, stored, [onnx.value_info("audio", 1, 1, "samples")], given)))
    return path, weights


@pytest.mark.parametrize("fused", [True, False])
def test_weights_are_taken_in_the_order_of_the_nodes(tmp_path: Path, fused: bool) -> None:
    path, weights = exported(tmp_path / "model.onnx", fused=fused)
    convert_checkpoint(path, tmp_path / "model")
    stored = store.open_detector(tmp_path / "model")
    config: Any = stored.config
    assert isinstance(config, DetectorConfig)
    kinds = [
        (block.kernel, block.repeat, block.stride, block.separable, block.residual) for block in config.encoder.blocks
    ]
    assert kinds == [(5, 1, 2, True, ()), (3, 2, 1, True, (0,)), (1, 1, 1, False, ())]
    assert (config.features.window_length, config.features.hop_length, config.features.framing) == (
        48,
        160,
        "zeros_all",
    )
    assert config.features.subtract_mean and config.features.log_guard_value == pytest.approx(1e-7)
    read: dict[str, Any] = store.flatten(stored.params())
    places = {
        "0.mconv.0.conv": "blocks.0.units.0.depthwise",
        "0.mconv.1.conv": "blocks.0.units.0.conv",
        "1.mconv.0.conv": "blocks.1.units.0.depthwise",
        "1.mconv.1.conv": "blocks.1.units.0.conv",
        "1.mconv.5.conv": "blocks.1.units.1.depthwise",
        "1.mconv.6.conv": "blocks.1.units.1.conv",
        "1.res.0.0.conv": "blocks.1.residuals.0.conv",
        "2.mconv.0.conv": "blocks.2.units.0.conv",
    }
    for theirs, ours in places.items():
        kernel = read[f"encoder.{ours}.kernel"]
        np.testing.assert_array_equal(kernel, weights[f"{theirs}.weight"].T.reshape(kernel.shape), err_msg=theirs)
        if f"{theirs}.bias" in weights:
            norm = ours.rpartition(".")[0] + ".norm"
            np.testing.assert_array_equal(read[f"encoder.{norm}.bias"], weights[f"{theirs}.bias"])
            assert (read[f"encoder.{norm}.variance"] + np.float32(1e-3) == 1).all()
    np.testing.assert_array_equal(read["classifier.layers.0.kernel"], weights["head"])
    np.testing.assert_array_equal(read["classifier.layers.0.bias"], weights["head_bias"])
    np.testing.assert_array_equal(read["features.filterbank"], weights["fb"][0].T)
    np.testing.assert_array_equal(read["features.window"], weights["window"])


def test_the_outputs_say_which_class_is_speech(tmp_path: Path) -> None:
    path, _ = exported(tmp_path / "model.onnx", outputs=["score_active", "score_silence"])
    convert_checkpoint(path, tmp_path / "model")
    assert store.open_detector(tmp_path / "model").config.classifier.nonspeech == (1,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shift": 0.1}, "its convolutions are no Fourier transform of 16-bit samples"),
        ({"extra": "LSTM"}, "it has LSTM"),
        ({"dilation": 2}, "a convolution with other padding"),
        ({"activation": "Tanh"}, "a block without ReLU"),
    ],
)
def test_other_graphs_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path, _ = exported(tmp_path / "model.onnx", **changes)
    with pytest.raises(JaxasrError, match=f"its graph is not that of a frame classifier .*{said}.*: convert the .nemo"):
        convert_checkpoint(path, tmp_path / "model")


def test_the_content_decides_between_families(tmp_path: Path) -> None:
    """A file's name says little, and the first family claims it: the outputs say whose it is."""
    path, _ = exported(tmp_path / "model.onnx")
    for place in (path, tmp_path):
        chosen, others = detect(place)
        assert (chosen.family, others) == ("nemo", ())
    exported(path, outputs=["log_probs", "lengths"])
    chosen, others = detect(path)
    assert (chosen.family, others) == ("icefall", ())
    with pytest.raises(JaxasrError, match="its outputs are log_probs, lengths, not score_silence and score_active"):
        convert_checkpoint(path, tmp_path / "model", family="nemo")
