"""Publishers' checkpoints to model directories: `convert_checkpoint`, and `describe` without writing anything."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jaxasr.convert.icefall.sources import Source, detect, find_tokens
from jaxasr.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import numpy as np

    from jaxasr.model import ModelConfig
    from jaxasr.text.tokens import TokenTable


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
    from jaxasr.convert.icefall import zipformer as icefall

    if precision not in (None, "float32", "int8"):
        raise ConfigError(f"precision {precision!r} is neither float32 nor int8")
    target = Path(out_dir)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: choose another folder or give --overwrite")
    read = _read(Path(source), tokens, config, precision, average, chunk, left_context)
    card = store.ModelCard(
        name=read.config.name,
        source=tuple((file.name, file.stat().st_size, _hash(file)) for file in read.files),
        summary=tuple(read.notes),
        origin=origin,
        licence=licence,
    )
    store.save(target, read.config, icefall.parameters(read.arrays), read.tokens, card, overwrite=overwrite)
    return card


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What `jaxasr info` shows of a published checkpoint, without converting it."""
    from jaxasr import store

    path = Path(source)
    read = _read(path)
    kinds = {"icefall_pt": "icefall checkpoint (.pt)", "icefall_onnx": "icefall export (.onnx)"}
    sizes = [(file.name, file.stat().st_size) for file in read.files]
    return {
        "kind": kinds[read.found.kind],
        "path": str(path),
        **store.facts(read.config, [(array.shape, "float32") for array in read.arrays.values()]),  # once converted
        "bytes": sum(size for _, size in sizes),
        "source": [{"file": name, "bytes": size} for name, size in sizes],
        "passed_over": list(read.found.others),
        "notes": read.notes,
    }


def named_configs() -> dict[str, Path]:
    """The yaml files of configs/ by name."""
    folder = resources.files("jaxasr.configs")
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if str(f).endswith(".yaml")}


@dataclasses.dataclass(frozen=True)
class _Read:
    """A checkpoint as it was read: all of a model directory, with `arrays` still as the files hold them, by path."""

    found: Source
    files: list[Path]
    config: ModelConfig
    arrays: dict[str, np.ndarray]
    tokens: TokenTable
    notes: list[str]


def _read(
    source: Path,
    tokens: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    average: Sequence[str | os.PathLike[str]] = (),
    chunk: int | None = None,
    left_context: int | None = None,
) -> _Read:
    from jaxasr.convert.icefall import checkpoints, exports
    from jaxasr.convert.icefall import zipformer as icefall
    from jaxasr.text.tokens import TokenTable

    found = detect(source, precision)
    if average and found.kind != "icefall_pt":
        raise ConfigError(f"{source}: --average is for training checkpoints (.pt)")
    ours, arguments = _read_config(config)
    try:
        if found.kind == "icefall_pt":
            checkpoint = checkpoints.read_checkpoint(found.files[0], [Path(file) for file in average])
        else:
            checkpoint = exports.read_models(found.files)
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
        arrays = icefall.fit(checkpoint, model)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
        raise type(error)(message if str(source) in message else f"{source}: {message}") from None
    files = [*found.files, *(Path(file) for file in average)]
    return _Read(found, files, model, arrays, table, checkpoint.notes)


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


__all__ = ["Source", "convert_checkpoint", "describe", "detect", "named_configs"]
