"""Publishers' checkpoints to model directories: `convert_checkpoint`, and `describe` without writing anything."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jaxasr.configs import named_configs
from jaxasr.convert.families import FAMILIES, detect
from jaxasr.convert.mapping import Checkpoint
from jaxasr.convert.protocol import Candidate, Converted, Options
from jaxasr.errors import CheckpointError, ConfigError, printable
from jaxasr.files import file_hash, read_yaml
from jaxasr.quant.rules import FloatType

if TYPE_CHECKING:
    from jaxasr.model_config import ModelConfig
    from jaxasr.store import ModelCard


def convert_checkpoint(
    source: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    tokens: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    floats: FloatType | None = None,
    average: Sequence[str | os.PathLike[str]] = (),
    chunk_seconds: float | None = None,
    left_context_seconds: float | None = None,
    family: str | None = None,
    overwrite: bool = False,
    origin: str = "local files",
    licence: str = "that of the source",
) -> ModelCard:
    """Import the checkpoint `source` as the model directory `out_dir`, and return its card.

    `source`: a checkpoint file, or the folder that holds it.
    `out_dir`: the folder to make; it must not exist yet, or hold a model directory where `overwrite` is given.
    `tokens`: the vocabulary's file; found beside the checkpoint by default.
    `config`: a name of configs/, a yaml file of ours, or the training recipe's own arguments; derived by default.
    `precision`: which of a folder's files to prefer, "float32" (default), "int8" or "int8-fp32". With the latter two
        integers stay integers; by default files that hold such are dequantized.
    `floats`: with them, the type of all that is no integer: "float16", "bfloat16" or "float32"; by default float16, and
        float32 in the encoder, where it is little and more precision keeps integers as they were.
    `average`: further training checkpoints to average `source` with.
    `chunk_seconds`: chunk of a model that streams, infinity for none; by default the first of those trained with.
    `left_context_seconds`: what a chunk sees of the past, infinity for all of it; by default as trained.
    `family`: the converter to use, a name of `convert.families.FAMILIES`; by default the first that knows the files.
    `overwrite`: replace the model directory `out_dir` if there is one.
    `origin`: where the files come from, for the card.
    `licence`: under which terms, for the card.

    Raises a JaxasrError whose message is one line, and then nothing has been written.
    """
    from jaxasr import store
    from jaxasr.convert.stored import parameters

    target = Path(out_dir)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists: choose another folder or give overwrite")
    options = Options(
        name=_model_name(Path(source)),
        tokens=None if tokens is None else Path(tokens),
        precision=precision,
        floats=floats,
        average=tuple(map(Path, average)),
        chunk_seconds=chunk_seconds,
        left_context_seconds=left_context_seconds,
        family=family,
    )
    if floats is not None and not options.integers:
        raise ConfigError("floats is for precision int8 and int8-fp32: all other models are stored in float32")
    if floats not in (None, *get_args(FloatType)):
        raise ConfigError(f"floats {floats!r} is none of {', '.join(get_args(FloatType))}")
    options = _with_config(options, config)
    _, checkpoint, converted = _read(Path(source), options)
    card = store.ModelCard(
        name=converted.config.name,
        source=tuple((file.name, file.stat().st_size, file_hash(file)) for file in checkpoint.files),
        summary=tuple(checkpoint.notes),
        origin=origin,
        licence=licence,
    )
    store.save(
        target, converted.config, parameters(converted, options.floats), converted.tokens, card, overwrite=overwrite
    )
    return card


def describe(source: str | os.PathLike[str], config: str | os.PathLike[str] | None = None) -> dict[str, object]:
    """What `jaxasr info` shows of a published checkpoint, without converting it.

    `config`: as `convert_checkpoint` takes it.
    """
    from jaxasr import store

    path = Path(source)
    options = _with_config(Options(name=_model_name(path)), config)
    candidates, checkpoint, converted = _read(path, options)
    sizes = [(file.name, file.stat().st_size) for file in checkpoint.files]
    return {
        "kind": candidates[0].kind,
        "path": str(path),
        **store.facts(converted.config, {path: (array.shape, "float32") for path, array in converted.arrays.items()}),
        **checkpoint.facts,
        "bytes": sum(size for _, size in sizes),
        "source": [{"file": name, "bytes": size} for name, size in sizes],
        "passed_over": [other.title for other in candidates[1:]],
        "notes": list(checkpoint.notes),
    }


def _read(source: Path, options: Options) -> tuple[list[Candidate], Checkpoint, Converted]:
    """The candidates at `source`, of which the first is taken, as it was read and as it is converted."""
    chosen, others = detect(source, options.precision, options.family)
    if options.tokens is None and chosen.tokens is not None:
        others_found = tuple(chosen.folder / other for other in chosen.other_tokens)
        options = dataclasses.replace(options, tokens=chosen.folder / chosen.tokens, other_tokens=others_found)
    family = FAMILIES[chosen.family]
    try:
        checkpoint = family.read(chosen, options)
        if others:
            checkpoint.notes.append(f"taken: {chosen.title}; passed over: {others[0].title} and others")
        converted = family.convert(checkpoint, options)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
        raise type(error)(message if printable(source) in message else f"{source}: {message}") from None
    return [chosen, *others], checkpoint, converted


def _with_config(options: Options, config: str | os.PathLike[str] | None) -> Options:
    """`options` with what `config` stands for: a whole configuration of ours, or the recipe's arguments."""
    if config is None:
        return options
    from jaxasr import store

    named = named_configs()
    path = named.get(str(config), Path(config))
    if not path.is_file():
        raise ConfigError(f"config {config}: neither a file nor one of {', '.join(sorted(named))}")
    mapping = read_yaml(path)
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path} must be a mapping of keys")
    whole: ModelConfig | None = store.read_config(path) if "encoder" in mapping else None
    return dataclasses.replace(options, config=whole, recipe=None if whole else mapping, config_file=path)


def _model_name(source: Path) -> str:
    """A model is called after the folder that holds its checkpoint."""
    path = source.resolve()
    return printable(path.name if path.is_dir() else (path.parent.name or path.stem))


__all__ = ["convert_checkpoint", "describe"]
