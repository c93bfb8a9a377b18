"""A .nemo archive, or a detector's export, to a whole model: parts read, a configuration derived, tables applied.

The names of NeMo's classes choose among what is known here; nothing is instantiated by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxasr.convert.mapping import Checkpoint, map_tensors, match_parameters
from jaxasr.convert.nemo import archive as archives
from jaxasr.convert.nemo.settings import Section, last_part, read_settings
from jaxasr.convert.protocol import Candidate, Converted, Options
from jaxasr.errors import CheckpointError, ConfigError, printable

# Recognisers, by the last part of `target`.
MODELS = (
    "EncDecCTCModel",
    "EncDecCTCModelBPE",
    "EncDecRNNTModel",
    "EncDecRNNTBPEModel",
    "EncDecHybridRNNTCTCModel",
    "EncDecHybridRNNTCTCBPEModel",
)
_ARCHIVE = "archive"  # of the settings that `read` hands to `convert`, beside the file's own


def read(candidate: Candidate, options: Options) -> Checkpoint:
    """The tensors of an archive under NeMo's names, and its model_config.yaml."""
    if options.average:
        raise ConfigError("average is for training checkpoints (.pt)")
    (path,) = candidate.paths
    if path.suffix == ".onnx":
        from jaxasr.convert.nemo import exported

        return exported.read_detector(path)
    notes: list[str] = []
    archive = archives.read_archive(path, notes)
    settings = read_settings(archive.texts[archives.CONFIG], f"{path}: {archives.CONFIG}")
    facts: dict[str, Any] = {}
    version = settings.get("nemo_version")
    if isinstance(version, str):
        facts["nemo_version"] = printable(version, 40)
    return Checkpoint(archive.tensors, {**settings, _ARCHIVE: archive}, notes, [path], facts)


def owns(candidate: Candidate) -> bool:
    """Whether a file that others claim too is an archive or a detector's export, by its content."""
    from jaxasr.convert.nemo import exported

    (path,) = candidate.paths
    return path.suffix == ".nemo" or exported.is_detector(path)


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    """The model that an archive and the options describe; what was assumed is added to the checkpoint's notes."""
    from jaxasr.convert.nemo import contexts, detectors, features, heads, tokenizers
    from jaxasr.model_config import ModelConfig

    settings, notes = checkpoint.settings, checkpoint.notes
    if detectors.is_detector(settings):
        return detectors.convert(checkpoint, options)
    _refuse_strangers(settings, options)
    part = _encoder_part(settings)
    tensors = heads.with_summed_biases(checkpoint.tensors)
    try:
        front_end = features.features_config(settings)
        ctc = heads.ctc_config(settings, tensors)
        transducer = heads.transducer_config(settings, tensors, notes)
        size = next(head.vocabulary_size for head in (transducer, ctc) if head is not None)
        encoder = contexts.choose_context(settings["encoder"], front_end.frame_seconds, options, notes)
        tokens, spelling = tokenizers.vocabulary(settings[_ARCHIVE], settings, options.tokens, size)
        config = options.config or ModelConfig(
            name=options.name,
            encoder=part.encoder_config(encoder, front_end.output_dim),
            features=front_end,
            text=spelling,
            transducer=transducer,
            ctc=ctc,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    rules = (*features.TABLE, *part.rules(config.encoder), *heads.TABLE)
    ignored = (*heads.IGNORED, *features.IGNORED, *part.IGNORED)
    mapped = map_tensors(tensors, rules, ignored)
    mapped = features.with_designed_arrays(mapped, config.features, notes)
    return Converted(config, match_parameters(mapped, config), tokens)


def _refuse_strangers(settings: Mapping[str, Any], options: Options) -> None:
    """CheckpointError for another model than a recogniser, ConfigError for options that no archive can follow."""
    if options.recipe is not None:
        raise ConfigError(f"{options.config_file}: an archive holds its own recipe; config takes one of ours")
    from jaxasr.convert.nemo import detectors

    target = last_part(settings.get("target"))
    if target and target not in MODELS:
        raise CheckpointError(
            f"a {printable(target, 80)} is no recogniser or detector that jaxasr knows; known are "
            f"{', '.join((*MODELS, *detectors.MODELS))}"
        )


def _encoder_part(settings: Mapping[str, Any]) -> ModuleType:
    """The file of this wing that knows the encoder."""
    from jaxasr.convert.nemo import citrinet, conformer

    section = Section(settings, "encoder")
    parts: tuple[ModuleType, ...] = (citrinet, conformer)
    for part in parts:
        if section.target in part.TARGETS:
            return part
    known = ", ".join(sorted(target for part in parts for target in part.TARGETS))
    raise section.refuse("_target_", f"no encoder that jaxasr knows; known are {known}")
