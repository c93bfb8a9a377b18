"""What Transformers saved to a whole model: its files read, a configuration derived or taken, tables applied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxasr.convert.formats.json_objects import read_object
from jaxasr.convert.formats.safetensors import read_safetensors, read_sharded
from jaxasr.convert.hugging_face import candidates
from jaxasr.convert.hugging_face.settings import (
    CTCSettings,
    DurationSettings,
    EncoderSettings,
    FeatureSettings,
    TransducerSettings,
    read_settings,
)
from jaxasr.convert.mapping import Checkpoint, map_tensors, match_parameters
from jaxasr.convert.protocol import Candidate, Converted, Options
from jaxasr.errors import CheckpointError, ConfigError, printable

# Recognisers by their `model_type`, and what their configurations hold.
MODELS: dict[str, type[CTCSettings] | type[TransducerSettings]] = {
    "parakeet_ctc": CTCSettings,
    "parakeet_rnnt": TransducerSettings,
    "parakeet_tdt": DurationSettings,
}
# Parts of the settings that `read` hands to `convert`.
_MODEL, _FEATURES, _TOKENIZER = "model", "features", "tokenizer"


def read(candidate: Candidate, options: Options) -> Checkpoint:
    """The tensors under Transformers' names, and the files of settings beside them."""
    if options.average:
        raise ConfigError("average is for training checkpoints (.pt)")
    config, weights, *others = candidate.paths
    model = read_object(config)
    _refuse_strangers(model)
    if weights.name.endswith(candidates.INDEX_SUFFIX):
        tensors, shards = read_sharded(weights)
    else:
        tensors, shards = read_safetensors(weights), []
    beside = {path.name: path for path in others}
    found = {name: read_object(beside[name]) for name in (candidates.FEATURES, candidates.PROCESSOR) if name in beside}
    tokenizer = beside.get(candidates.TOKENIZER_CONFIG)
    settings = {
        _MODEL: model,
        _FEATURES: found.get(candidates.FEATURES) or found.get(candidates.PROCESSOR, {}).get("feature_extractor"),
        _TOKENIZER: read_object(tokenizer) if tokenizer else {},
    }
    files = [path for path in candidate.paths if path.suffix != ".safetensors" or path in (weights, *shards)]
    stored = {str(tensor.dtype) for tensor in tensors.values() if tensor.dtype.kind not in "iub"}
    facts: dict[str, Any] = {"stored": ", ".join(sorted(stored))}
    if isinstance(version := model.get("transformers_version"), str):
        facts["transformers_version"] = printable(version, 40)
    return Checkpoint(tensors, settings, [], files, facts)


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    """The model that the files and the options describe; what was assumed is added to the checkpoint's notes."""
    from jaxasr.convert.hugging_face import fastconformer, front_end, heads, tokenizers
    from jaxasr.features.nemo import design_filterbank, design_window
    from jaxasr.model_config import ModelConfig

    if options.recipe is not None:
        raise ConfigError(f"{options.config_file}: config.json is the recipe; config takes one of ours")
    if options.tokens is None:
        raise CheckpointError(f"no {candidates.TOKENIZER} lies beside {candidates.CONFIG}: give its path as tokens")
    model, notes = checkpoint.settings[_MODEL], checkpoint.notes
    if checkpoint.settings[_FEATURES] is None:
        raise CheckpointError(f"no {candidates.FEATURES} lies beside {candidates.CONFIG}: fetch it too")
    encoder = read_settings(EncoderSettings, model.get("encoder_config") or {}, "config.json: encoder_config")
    features = read_settings(FeatureSettings, checkpoint.settings[_FEATURES], candidates.FEATURES)
    head = read_settings(MODELS[model["model_type"]], model, candidates.CONFIG)
    try:
        encoder_config, features_config = fastconformer.encoder_config(encoder), front_end.features_config(features)
        ctc = heads.ctc_config(head) if isinstance(head, CTCSettings) else None
        transducer = heads.transducer_config(head) if isinstance(head, TransducerSettings) else None
        blank_id = next(each.blank_id for each in (transducer, ctc) if each is not None)
        tokens, spelling = tokenizers.vocabulary(
            options.tokens, checkpoint.settings[_TOKENIZER], head.vocab_size, blank_id, notes
        )
        config = options.config or ModelConfig(
            name=options.name,
            encoder=encoder_config,
            features=features_config,
            text=spelling,
            transducer=transducer,
            ctc=ctc,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tensors = heads.with_summed_biases(fastconformer.with_all_biases(checkpoint.tensors, encoder))
    mapped = map_tensors(tensors, (*fastconformer.rules(encoder_config), *heads.TABLE), fastconformer.IGNORED)
    mapped["features.filterbank"] = design_filterbank(features_config)
    mapped["features.window"] = design_window(features_config)
    return Converted(config, match_parameters(mapped, config), tokens)


def refuse(path: Path) -> None:
    """CheckpointError for the config.json of another model than a recogniser; other files pass."""
    if path.name == candidates.CONFIG:
        _refuse_strangers(read_object(path))


def _refuse_strangers(model: Mapping[str, Any]) -> None:
    """CheckpointError for another model than a recogniser, and for weights of few bits."""
    kind = model.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        shown = printable(repr(kind), 80)
        raise CheckpointError(
            f"config.json: model_type is {shown}: no recogniser that jaxasr knows; known are {', '.join(MODELS)}"
        )
    if model.get("quantization_config") is not None:
        raise CheckpointError(
            "config.json: its weights are quantized (quantization_config): take the publisher's others"
        )
