"""NeMo's classifiers of windows or frames as detectors of speech: their settings, and the table of their heads.

A classifier of windows was trained on pieces of one length, which the archive does not state, and pools over all their
frames; a classifier of frames gives a class every few frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxasr.convert.mapping import Checkpoint, Ignored, Rule, linear, map_tensors, match_parameters, same
from jaxasr.convert.nemo.settings import Section, last_part
from jaxasr.convert.protocol import Converted, Options
from jaxasr.detector_config import DetectorConfig, WindowConfig
from jaxasr.errors import CheckpointError, ConfigError, listing
from jaxasr.features import FeaturesConfig
from jaxasr.features.nemo_config import NemoMelConfig
from jaxasr.heads.configs import ClassifierConfig

# Classifiers, by the last part of `target`; and their heads, by that of `decoder._target_`.
MODELS = ("EncDecClassificationModel", "EncDecFrameClassificationModel")
WINDOW_TARGET, FRAME_TARGET = "ConvASRDecoderClassification", "MultiLayerPerceptron"
# Of settings that are no archive's: the front end as a configuration of ours.
FRONT_END = "front_end"

# What NeMo's detectors call the class of speech: of windows, of frames.
_SPEECH = ("speech", "1")
_POOLINGS: Mapping[str, Any] = {"avg": "mean", "max": "max"}

IGNORED = (
    Ignored(r".*\.num_batches_tracked", "a counter of training steps"),
    Ignored(r"(eval_)?loss\..*", "weights of classes, for training"),
)


def is_detector(settings: Mapping[str, Any]) -> bool:
    """Whether the settings are those of a classifier, by its name or, where there is none, by its head's."""
    target = last_part(settings.get("target"))
    return target in MODELS or (not target and Section(settings, "decoder").target in (WINDOW_TARGET, FRAME_TARGET))


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    """The detector that an archive or an export describes; what was assumed is added to the checkpoint's notes."""
    from jaxasr.convert.nemo import citrinet, features

    _refuse_options(options)
    settings, tensors, notes = checkpoint.settings, checkpoint.tensors, checkpoint.notes
    if Section(settings, "encoder").target not in citrinet.TARGETS:
        raise Section(settings, "encoder").refuse("_target_", f"known of detectors is {', '.join(citrinet.TARGETS)}")
    try:
        front_end: FeaturesConfig = settings.get(FRONT_END) or features.features_config(settings)
        encoder = citrinet.encoder_config(settings["encoder"], front_end.output_dim)
        if not encoder.conv_mask and not isinstance(front_end, NemoMelConfig):
            raise Section(settings, "encoder").refuse("conv_mask", "known with cepstra are masked convolutions alone")
        config = DetectorConfig(
            name=options.name,
            encoder=encoder,
            features=front_end,
            classifier=_classifier(settings),
            window=_window(settings, front_end, encoder.conv_mask, notes),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    rules = (*features.TABLE, *citrinet.rules(encoder), *_head(config))
    mapped = map_tensors(tensors, rules, (*IGNORED, *features.IGNORED))
    mapped = features.with_designed_arrays(mapped, front_end, notes)
    return Converted(config, match_parameters(mapped, config), None)


def _head(config: DetectorConfig) -> Sequence[Rule]:
    """The table of the head: of windows one linear layer, of frames several, with activations counted between them."""
    rules = []
    for layer in range(config.classifier.layers):
        theirs = r"decoder\.decoder_layers\.0\." if config.window else rf"decoder\.layer{2 * layer}\."
        rules += [
            Rule(theirs + "weight", f"classifier.layers.{layer}.kernel", linear),
            Rule(theirs + "bias", f"classifier.layers.{layer}.bias", same),
        ]
    return rules


def _classifier(settings: Mapping[str, Any]) -> ClassifierConfig:
    """How many layers and classes there are, and which class is speech."""
    decoder = Section(settings, "decoder")
    layers = 1
    if decoder.target == FRAME_TARGET:
        layers = decoder.integer("num_layers", 2)
        if layers > 1 and decoder.text("activation", "relu") != "relu":
            raise decoder.refuse("activation", "known is relu")
    elif decoder.target != WINDOW_TARGET:
        raise decoder.refuse(
            "_target_", f"no head of a detector that jaxasr knows; known are {WINDOW_TARGET} and {FRAME_TARGET}"
        )
    labels = settings.get("labels")
    if not isinstance(labels, list) or not labels:
        raise CheckpointError("model_config.yaml states no labels: which class is speech cannot be known")
    names = [str(label) for label in labels]
    speech = [number for number, name in enumerate(names) if name in _SPEECH and (name != "1" or len(names) == 2)]
    if len(speech) != 1 or len(names) < 2:
        raise CheckpointError(
            f"its classes are {listing(names)}: a voice activity detector has one that is called {' or '.join(_SPEECH)}"
        )
    nonspeech = tuple(number for number in range(len(names)) if number not in speech)
    return ClassifierConfig(classes=len(names), nonspeech=nonspeech, layers=layers)


def _window(
    settings: Mapping[str, Any], front_end: FeaturesConfig, masked: bool, notes: list[str]
) -> WindowConfig | None:
    """How windows are classified; None where frames are."""
    if "crop_or_pad_augment" in settings and settings["crop_or_pad_augment"] is not None:
        raise CheckpointError(
            "crop_or_pad_augment: a classifier of clips of one length is no detector that jaxasr knows"
        )
    decoder = Section(settings, "decoder")
    if decoder.target == FRAME_TARGET:
        return None
    pooling = decoder.text("pooling_type", "avg")
    if pooling not in _POOLINGS:
        raise decoder.refuse("pooling_type", f"known are {', '.join(_POOLINGS)}")
    # The frame that NeMo's mel front end leaves after a window; convolutions without a mask bring it themselves.
    trailing = isinstance(front_end, NemoMelConfig) and front_end.framing == "zeros" and masked
    window = WindowConfig(pooling=_POOLINGS[pooling], trailing_frames=int(trailing))
    notes.append(
        f"windows of {window.seconds:g} s, as NeMo's detectors are trained with, every {window.step:g} s: an archive "
        "states neither"
    )
    return window


def _refuse_options(options: Options) -> None:
    """ConfigError for what a detector has no use for."""
    for name in ("tokens", "config", "recipe", "chunk_seconds", "left_context_seconds"):
        if getattr(options, name) is not None:
            name = "config" if name == "recipe" else name
            raise ConfigError(f"{name} is for recognisers, and this is a voice activity detector")
