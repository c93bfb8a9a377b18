"""Publishers' checkpoints to model directories: `convert_checkpoint`, and `describe` without writing anything."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxasr.convert.sources import Source, detect, find_tokens
from jaxasr.errors import CheckpointError, ConfigError

logger = logging.getLogger("jaxasr")


def convert_checkpoint(
    source: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    tokens: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    average: Sequence[str | os.PathLike[str]] = (),
    chunk: int | None = None,
    left_context: int | None = None,
    overwrite: bool = False,
    origin: str = "local files",
    licence: str = "that of the source",
) -> Any:
    """Import the checkpoint `source` (a file, or the folder that holds it) as the model directory `out_dir`.

    `tokens`: tokens.txt, found beside the checkpoint by default. `config`: a name of configs/, a yaml file of ours, or
    the recipe's own arguments. `precision`: which of a folder's files to read, "float32" or "int8" (dequantized).
    `average`: further training checkpoints. `chunk`, `left_context`: of causal models, in frames at 50 Hz. Returns the
    `ModelCard`. Raises a JaxasrError, and then nothing is left behind.
    """
    from jaxasr import store

    if precision not in (None, "float32", "int8"):
        raise ConfigError(f"precision {precision!r} is neither float32 nor int8")
    target = Path(out_dir)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: choose another folder or give --overwrite")
    model, params, table, notes, files = _read(Path(source), tokens, config, precision, average, chunk, left_context)
    card = store.ModelCard(
        name=model.name,
        source=tuple((file.name, file.stat().st_size, _hash(file)) for file in files),
        summary=tuple(notes),
        origin=origin,
        licence=licence,
    )
    store.save(target, model, params, table, card, overwrite=overwrite)
    return card


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What `jaxasr info` shows of a published checkpoint, without converting it."""
    path = Path(source)
    found = detect(path)
    model, params, _, notes, files = _read(path, None, None, None, (), None, None)
    return {
        "kind": {"icefall_pt": "icefall checkpoint (.pt)", "icefall_onnx": "icefall export (.onnx)"}[found.kind],
        "path": str(path),
        "name": model.name,
        "architecture": model.encoder.kind,
        "heads": [head for head in ("transducer", "ctc") if getattr(model, head) is not None],
        "parameters": sum(int(np.prod(value.shape)) for value in _leaves(params)),
        "dtype": ", ".join(sorted({str(value.dtype) for value in _leaves(params)})),
        "vocabulary": model.vocabulary_size,
        "causal": model.encoder.causal,
        "chunk_size": model.encoder.chunk_size,
        "left_context": model.encoder.left_context,
        "silence_before_s": model.audio.silence_before,
        "silence_after_s": model.audio.silence_after,
        "longest_s": model.audio.longest,
        "bytes": sum(file.stat().st_size for file in files),
        "source": [{"file": file.name, "bytes": file.stat().st_size} for file in files],
        "passed_over": list(found.others),
        "notes": notes,
    }


def named_configs() -> dict[str, Path]:
    """The yaml files of configs/ by name."""
    folder = resources.files("jaxasr.configs")
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if str(f).endswith(".yaml")}


def _read(
    source: Path,
    tokens: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    precision: str | None,
    average: Sequence[str | os.PathLike[str]],
    chunk: int | None,
    left_context: int | None,
) -> tuple[Any, dict[str, Any], Any, list[str], list[Path]]:
    """(configuration, nested parameters, token table, notes, files read)."""
    from jaxasr.convert import icefall, icefall_onnx, icefall_pt
    from jaxasr.text.tokens import TokenTable

    found = detect(source, precision)
    if average and found.kind != "icefall_pt":
        raise ConfigError(f"{source}: --average is for training checkpoints (.pt)")
    ours, arguments = _read_config(config)
    try:
        if found.kind == "icefall_pt":
            checkpoint = icefall_pt.read_checkpoint(found.files[0], [Path(file) for file in average])
        else:
            checkpoint = icefall_onnx.read_models(found.files)
        checkpoint.arguments.update(arguments)
        for other in found.others[:1]:
            checkpoint.notes.append(
                f"taken: {' + '.join(f.name for f in found.files)}; passed over: {other} and others"
            )
        table = _read_tokens(TokenTable, found, tokens, icefall.vocabulary_size(checkpoint))
        name = _name(source)
        if ours is None:
            model = icefall.derive_config(
                checkpoint, name, unknown_id=_unknown_id(table, arguments), chunk=chunk, left_context=left_context
            )
            icefall.suggest(checkpoint, model, named_configs())
        else:
            model = icefall.adapt(ours, checkpoint, chunk, left_context)
        params = icefall.parameters(checkpoint, model)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
        raise type(error)(message if str(source) in message else f"{source}: {message}") from None
    files = [*found.files, *(Path(file) for file in average)]
    return model, params, table, checkpoint.notes, files


def _read_config(config: str | os.PathLike[str] | None) -> tuple[Any, dict[str, Any]]:
    """A whole configuration of ours, or the recipe's arguments; (None, {}) without the option."""
    from jaxasr import store

    if config is None:
        return None, {}
    named = named_configs()
    path = named.get(str(config), Path(config))
    if not path.is_file():
        raise ConfigError(f"--config {config}: neither a file nor one of {', '.join(sorted(named))}")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        raise ConfigError(f"{path} is not valid yaml") from None
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path} must be a mapping of keys")
    if "encoder" in mapping:
        return store.read_config(path), {}
    return None, _recipe_arguments(mapping, path)


# Keys of a recipe's configuration that say nothing about the network.
_RECIPE_NOTES = frozenset({"recipe", "export", "arguments"})
# Arguments of the recipe's train.py that shape the network.
_RECIPE_ARGUMENTS = frozenset(
    "num_encoder_layers downsampling_factor feedforward_dim num_heads encoder_dim query_head_dim value_head_dim "
    "pos_head_dim pos_dim cnn_module_kernel decoder_dim joiner_dim causal chunk_size left_context_frames context_size "
    "vocab_size blank_id unk_id feature_dim use_transducer use_ctc".split()
)
_RECIPE_LOOKALIKES = frozenset({"use_cr_ctc", "attention_decoder_num_heads"})


def _recipe_arguments(mapping: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What train.py was called with: "2,2,3" to (2, 2, 3), nested under `arguments` or flat."""
    nested = mapping.get("arguments", {})
    if not isinstance(nested, Mapping):
        raise ConfigError(f"{path}: arguments must be a mapping of keys")
    flat = {key: value for key, value in mapping.items() if key not in _RECIPE_NOTES} | dict(nested)
    arguments = {}
    for key, value in flat.items():
        key = str(key).replace("-", "_")
        if isinstance(value, str) and all(part.strip().lstrip("-").isdigit() for part in value.split(",")):
            value = tuple(int(part) for part in value.split(","))
        arguments[key] = value
    # train.py has many arguments that do not matter here; a key that nearly is one that does is a slip of the pen.
    for key in sorted(arguments.keys() - _RECIPE_ARGUMENTS):
        near = difflib.get_close_matches(key, _RECIPE_ARGUMENTS, n=1, cutoff=0.85)
        if near and key not in _RECIPE_LOOKALIKES:
            raise ConfigError(f"{path}: unknown key {key}; did you mean {near[0]}?")
    if not arguments.keys() & _RECIPE_ARGUMENTS:
        raise ConfigError(f"{path} holds neither a configuration of jaxasr nor arguments of an icefall recipe")
    return arguments


def _read_tokens(table: Any, found: Source, tokens: str | os.PathLike[str] | None, size: int) -> Any:
    path = Path(tokens) if tokens is not None else find_tokens(found)
    if path is None:
        raise CheckpointError(f"no tokens.txt lies beside {found.files[0].name}: give it with --tokens")
    return table.read(path, size)


def _unknown_id(table: Any, arguments: Mapping[str, Any]) -> int | None:
    stated = arguments.get("unk_id")
    return int(stated) if stated is not None else table.unk_id


def _name(source: Path) -> str:
    path = source.resolve()
    return path.name if path.is_dir() else (path.parent.name or path.stem)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leaves(tree: Mapping[str, Any]) -> list[Any]:
    return [leaf for v in tree.values() for leaf in (_leaves(v) if isinstance(v, Mapping) else [v])]


__all__ = ["Source", "convert_checkpoint", "describe", "detect", "named_configs"]
