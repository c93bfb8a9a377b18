"""From a name or a path to a ready recognizer or detector."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from jaxasr import store
from jaxasr.errors import ConfigError, ModelError
from jaxasr.model_config import ModelConfig
from jaxasr.quant.rules import Activations
from jaxasr.recognizer import Recognizer

if TYPE_CHECKING:
    from jaxasr.detector import Detector  # Flax, which a recognizer whose programs are kept does not need

logger = logging.getLogger("jaxasr")

EMBEDDED = "embedded"
# What the embedded model knows, and the published model for those who want more.
LIMITS = "the small one inside jaxasr knows English letters, digits, numbers and dates only"
SUGGESTED = "librispeech-zipformer-medium"
# Logged where the embedded model is loaded without having been asked for.
NOTICE = f'no model is named: {LIMITS}; for all words load "{SUGGESTED}" (a download, once)'


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "float32",
    batch_seconds: float | None = None,
    shortest_seconds: float = 1.0,
    blank_penalty: float = 0.0,
    search: str | None = None,
    head: str | None = None,
    beam: int | None = None,
    pad_before: float | None = None,
    pad_after: float | None = None,
    precision: str = "float32",
    activations: Activations | None = None,
    verify: bool = True,
    lazy: bool = False,
    compile_for: float | Sequence[float] | None = None,
    vad: str | os.PathLike[str] | Detector = "energy",
) -> Recognizer:
    """Load a model that is ready to transcribe. Raises a JaxasrError whose message is one line.

    `name_or_path`: a model directory; a published model's name (downloaded and converted once); or "embedded", the
        small model inside the package. Without a name it is that one, and a line of the log says what that knows.
    `dtype`: the type that the network computes in: float32, bfloat16 or float16.
    `batch_seconds`: sound in one batch, padding included; by the device if unset.
    `shortest_seconds`: shorter clips are padded to it. With a larger one fewer programs are compiled.
    `blank_penalty`: subtracted from the blank's logit: more of it, fewer words left out.
    `search`: how tokens are found: greedy, beam (a transducer's), joint (that, ranked by the CTC head too)
        or parallel (all tokens at once, by a parallel head); the model's own if unset.
    `head`: the role of the head to decode with, transducer, ctc or parallel; the model's own choice if unset.
    `beam`: hypotheses that a search keeps, 1 for greedy search; the model's own choice if unset.
    `pad_before`: silence before every clip (s); the model's own if unset.
    `pad_after`: silence after every clip (s); the model's own if unset.
    `precision`: which of a published model's files to take.
    `activations`: what a quantized model's weights are multiplied by: float, for which they are dequantized, or int8;
        as the model says if unset.
    `verify`: check the hash of every file and array.
    `lazy`: return while the arrays are still being read, in a thread of the recognizer's, and compile meanwhile. Damage
        then shows at the first transcript, and the process must not end before the recognizer is closed.
    `compile_for`: compile first what a job of clips of up to so many seconds needs, or, of several numbers, of clips of
        just these lengths: no transcript waits for it then, and other processes find it in the cache folder.
        `Recognizer.compile` says more, and takes more.
    `vad`: what is heard of a recording: "energy", all of it, cut at quiet points where it is longer than the model
        takes; "none", all of it at once, whatever its length; or the segments of speech in it, found by a
        detector: its model directory or name as `load_detector` takes it, or what that gave.
    """
    if name_or_path is None:
        logger.warning(NOTICE)
    # The package's own without a name, also where a folder of the name lies in the working directory.
    directory = _embedded() if name_or_path is None else locate(name_or_path, precision)
    stored = store.open_model(directory, verify=verify)
    audio = stored.config.audio
    for name, field, value in (("pad_before", "silence_before", pad_before), ("pad_after", "silence_after", pad_after)):
        if value is not None:
            try:
                audio = dataclasses.replace(audio, **{field: value})
            except ValueError:
                raise ConfigError(f"{name} must be a number of seconds, not {value}") from None

    config = dataclasses.replace(stored.config, audio=audio)
    if activations is not None:
        config = with_activations(config, activations)
    # A recognizer that is sent to another process takes this along, and reads the folder there.
    stored = dataclasses.replace(stored, folder=stored.folder.absolute(), config=config)
    recognizer = Recognizer(
        config,
        functools.partial(stored.params, verify=verify),
        stored.tokens,
        dtype=dtype,
        batch_seconds=batch_seconds,
        shortest_seconds=shortest_seconds,
        blank_penalty=blank_penalty,
        search=search,
        head=head,
        beam=beam,
        parameters=stored.parameters,
        vad=_vad(vad, verify),
    )
    try:
        if compile_for is not None:
            recognizer.compile(compile_for)
        if not lazy:
            recognizer.programs.load()
    except BaseException:
        recognizer.close()
        raise
    return recognizer


def load_detector(name_or_path: str | os.PathLike[str], *, verify: bool = True) -> Detector:
    """Load a voice activity detector: `load_detector("detector")("talk.wav")` gives probabilities of speech.

    It takes a recording of any length, as `Recognizer.transcribe` takes one, and gives an array (frames,) float32 of
    values in 0..1; its `frame_seconds` are the seconds from one to the next. Raises a JaxasrError whose message is one
    line.

    `name_or_path`: a model directory that `jaxasr convert` made of a detector, or a published detector's name.
    `verify`: check the hash of every file and array.
    """
    stored = store.open_detector(locate(name_or_path), verify=verify)
    from jaxasr.detector import Detector

    return Detector(stored.config, stored.params(verify=verify))


def _vad(vad: str | os.PathLike[str] | Detector, verify: bool) -> Literal["none", "energy"] | Detector:
    """What `load_model` takes, as a recognizer takes it."""
    if vad == "none":
        return "none"
    if vad == "energy":
        return "energy"
    return load_detector(vad, verify=verify) if isinstance(vad, (str, os.PathLike)) else vad


def with_activations(config: ModelConfig, activations: Activations) -> ModelConfig:
    """The model with its quantized weights multiplied in another way; ConfigError for a word that is no way.

    Float weights are multiplied by floats alone.
    """
    if activations not in get_args(Activations):
        raise ConfigError(f"activations {activations!r} is none of {', '.join(get_args(Activations))}")
    if config.quantization is None:
        if activations == "float":
            return config
        raise ConfigError(f"{config.name} has no quantized weights for activations {activations}: quantize it first")
    return dataclasses.replace(config, quantization=config.quantization.with_activations(activations))


def locate(name_or_path: str | os.PathLike[str], precision: str = "float32") -> Path:
    """The model directory that a path, a published name or "embedded" means; an existing path is always a path."""
    path = Path(name_or_path)
    if path.exists():
        if not store.is_model_directory(path):
            raise ModelError(f"{path} is no model directory: make one with `jaxasr convert {path} OUT_DIR`")
        return path
    if str(name_or_path) == EMBEDDED:
        return _embedded()
    from jaxasr.convert.hub.downloads import convert_once

    return convert_once(str(name_or_path), precision=precision)


def _embedded() -> Path:
    return Path(str(files("jaxasr") / EMBEDDED))
