"""An icefall checkpoint to a whole model: its files read, a configuration derived or taken, the table applied."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jaxasr.convert.mapping import Checkpoint, match_parameters
from jaxasr.convert.protocol import Candidate, Converted, Options
from jaxasr.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from jaxasr.model_config import ModelConfig
    from jaxasr.text.tokens import TokenTable

# Keys of a recipe's configuration that say nothing about the network.
_NOTES = frozenset({"recipe", "export", "arguments"})
# Arguments of the recipe's train.py that shape the network.
_ARGUMENTS = frozenset(
    "num_encoder_layers downsampling_factor feedforward_dim num_heads encoder_dim query_head_dim value_head_dim "
    "pos_head_dim pos_dim cnn_module_kernel decoder_dim joiner_dim causal chunk_size left_context_frames context_size "
    "vocab_size blank_id unk_id feature_dim use_transducer use_ctc nhead dim_feedforward causal_convolution "
    "dynamic_chunk_training".split()
)
_LOOKALIKES = frozenset({"use_cr_ctc", "attention_decoder_num_heads"})  # other arguments, near to some of the above


def read(candidate: Candidate, options: Options) -> Checkpoint:
    """The tensors of a .pt, averaged where that is asked for, or of ONNX exports."""
    from jaxasr.convert.icefall import checkpoints, exports

    if candidate.files[0].suffix == ".pt":
        return checkpoints.read_checkpoint(candidate.paths[0], options.average)
    if options.average:
        raise ConfigError("average is for training checkpoints (.pt)")
    return exports.read_models(candidate.paths, options.integers)


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    """The model that a checkpoint and the options describe; what was assumed is added to the checkpoint's notes."""
    from jaxasr.convert.icefall import conformer, heads, zipformer

    if options.tokens is None:
        raise CheckpointError(
            f"no tokens.txt or bpe.model lies beside {checkpoint.files[0].name}: give its path as tokens"
        )
    try:
        recipe = {} if options.recipe is None else recipe_arguments(options.recipe)
    except ConfigError as error:
        raise ConfigError(f"{options.config_file}: {error}") from None
    checkpoint = dataclasses.replace(checkpoint, settings=checkpoint.settings | recipe)
    tokens, vocabulary = _fitting_tokens(options.tokens, options.other_tokens, heads.vocabulary_size(checkpoint))
    if len({path.parent for path in (options.tokens, *options.other_tokens)}) > 1:
        checkpoint.notes.append(f"the vocabulary is {vocabulary}, the first found that fits (tokens overrides)")
    if tokens.blank_id is not None:
        checkpoint.settings.setdefault("blank_id", tokens.blank_id)  # the recipe takes it from the same table
    architecture: ModuleType = conformer if conformer.is_conformer(checkpoint.tensors) else zipformer
    if options.config is None:
        unknown_id = int(recipe["unk_id"]) if recipe.get("unk_id") is not None else tokens.unk_id
        config = architecture.derive_config(checkpoint, options, unknown_id)
        checkpoint.notes.extend(_similar_models(config))
    else:
        config = architecture.complete_config(options.config, checkpoint, options)
    heads.check_blank(config, tokens, vocabulary)
    arrays = match_parameters(architecture.map_checkpoint(checkpoint), config)
    quantized = architecture.map_integers(checkpoint)
    if quantized:
        from jaxasr.convert.stored import with_integers

        config = with_integers(config, arrays, quantized, options.floats)
    return Converted(config, arrays, tokens, quantized)


def read_tokens(path: Path, size: int) -> TokenTable:
    """The vocabulary of `size` tokens: a tokens.txt, or the BPE model that the recipe writes it from."""
    from jaxasr.convert.formats.sentencepiece import read_pieces
    from jaxasr.text.tokens import TokenTable

    if path.suffix != ".model":
        return TokenTable.read(path, size)
    pieces = read_pieces(path)
    if len(pieces) != size:
        raise CheckpointError(
            f"{path}: has {len(pieces)} pieces where {size} are needed; give the vocabulary that belongs to the model "
            "as tokens"
        )
    return TokenTable(pieces)


def _fitting_tokens(first: Path, others: tuple[Path, ...], size: int) -> tuple[TokenTable, Path]:
    """The first vocabulary of `size` tokens and its path; the error of `first` where none fits."""
    try:
        return read_tokens(first, size), first
    except CheckpointError:
        for other in others:
            with contextlib.suppress(CheckpointError):
                return read_tokens(other, size), other
        raise


def recipe_arguments(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What train.py was called with: "2,2,3" to (2, 2, 3), nested under `arguments` or flat.

    ConfigError for a key that nearly is one that matters, and where there is none that matters.
    """
    nested = mapping.get("arguments", {})
    if not isinstance(nested, Mapping):
        raise ConfigError("arguments must be a mapping of keys")
    flat = {key: value for key, value in mapping.items() if key not in _NOTES} | dict(nested)
    arguments: dict[str, Any] = {}
    for name, value in flat.items():
        key = str(name).replace("-", "_")
        if isinstance(value, str) and all(part.strip().lstrip("-").isdigit() for part in value.split(",")):
            value = tuple(int(part) for part in value.split(","))
        arguments[key] = value
    # Unknown arguments are ignored, since train.py has many more, unless they look like a misspelling of one we need.
    for key in sorted(arguments.keys() - _ARGUMENTS):
        near = difflib.get_close_matches(key, _ARGUMENTS, n=1, cutoff=0.85)
        if near and key not in _LOOKALIKES:
            raise ConfigError(f"unknown key {key}; did you mean {near[0]}?")
    if not arguments.keys() & _ARGUMENTS:
        raise ConfigError("neither a configuration of jaxasr nor arguments of an icefall recipe")
    return arguments


def _similar_models(model: ModelConfig) -> list[str]:
    """Notes on published models of exactly these sizes that are used with other silence."""
    from jaxasr.configs import named_configs
    from jaxasr.store import read_config

    notes = []
    for name, path in sorted(named_configs().items()):
        other = read_config(path)
        same = (other.encoder, other.transducer, other.ctc) == (model.encoder, model.transducer, model.ctc)
        if same and other.audio != model.audio:
            notes.append(
                f"the sizes are those of {name}, used with {other.audio.silence_before} s of silence before and "
                f"{other.audio.silence_after} s after: give config {name} if it is that model"
            )
    return notes
