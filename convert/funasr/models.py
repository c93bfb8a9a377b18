"""A FunASR model directory, or its detector's export, to a whole model: files read, a table applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.convert.formats.torch.states import find_state
from jaxasr.convert.funasr import files, settings
from jaxasr.convert.mapping import Checkpoint, map_tensors, match_parameters
from jaxasr.convert.protocol import Candidate, Converted, Options
from jaxasr.errors import CheckpointError, ConfigError, printable
from jaxasr.files import read_yaml

# Under which FunASR's loader looks for the weights, in its order.
ENTRIES = ("state_dict", "model_state_dict", "model")
MODEL_KEY = "model"


def read(candidate: Candidate, options: Options) -> Checkpoint:
    """The tensors of the weights under FunASR's names, with those of am.mvn, and config.yaml."""
    if options.average:
        raise ConfigError("average is for icefall's training checkpoints: FunASR averages by itself (model.pt.avg10)")
    weights, config, statistics = candidate.paths
    notes: list[str] = []
    found = read_yaml(config)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{config} is not a mapping of keys")
    if weights.suffix == ".onnx":
        from jaxasr.convert.funasr import detectors, exported

        if not detectors.is_detector(found):
            raise CheckpointError(
                f"{weights} is a recogniser's export: convert the directory with its model.pt instead"
            )
        tensors = exported.read_detector(weights, notes)
    else:
        tensors = find_state(weights, read_torch(weights, notes=notes), ENTRIES)
    tensors["frontend.offset"], tensors["frontend.scale"] = files.read_statistics(statistics)
    facts = {"model": printable(str(found.get(MODEL_KEY)), 80)}
    return Checkpoint(tensors, {str(key): value for key, value in found.items()}, notes, candidate.paths, facts)


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    """The model that a directory and the options describe; what was assumed is added to the checkpoint's notes."""
    from jaxasr.convert.funasr import detectors, network

    if detectors.is_detector(checkpoint.settings):
        return detectors.convert(checkpoint, options)
    from jaxasr.model_config import ModelConfig
    from jaxasr.search import ParallelSearchConfig
    from jaxasr.text.funasr import FunasrConfig

    if options.left_context_seconds is not None:
        raise ConfigError("left_context_seconds: a Paraformer's chunks look back as it was trained; leave it out")
    if options.recipe is not None:
        raise ConfigError(f"{options.config_file}: config.yaml lies beside the weights; config takes one of ours")
    found = checkpoint.settings
    settings.meaning(found, MODEL_KEY, {**settings.MODELS, **detectors.MODELS})
    tensors = network.with_one_numbering(checkpoint.tensors)
    try:
        features = network.features_config(found)
        chunks = network.choose_chunks(found, features.frame_seconds, options.chunk_seconds)
        window = network.choose_window(found, features.frame_seconds, options.chunk_seconds)
        head = network.head_config(found, tensors, chunks, window)
        config = options.config or ModelConfig(
            name=options.name,
            encoder=network.encoder_config(found, features.output_dim, chunks, window),
            features=features,
            text=FunasrConfig(),
            parallel=head,
            search=ParallelSearchConfig(),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _note_dither(found, checkpoint.notes)
    tokens = files.read_tokens(options.tokens, found.get("token_list"), head.vocabulary_size)
    rules = (*network.TABLE, network.CONVOLUTIONS[head.predictor.convolution])
    arrays = match_parameters(map_tensors(tensors, rules, network.IGNORED), config)
    return Converted(config, arrays, tokens)


def _note_dither(found: Mapping[str, Any], notes: list[str]) -> None:
    front_end = found.get("frontend_conf")
    if not isinstance(front_end, Mapping) or front_end.get("dither", 1.0) != 0:
        notes.append("FunASR adds random noise to the samples (dither 1), so that it differs from run to run; not done")
