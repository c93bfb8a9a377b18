"""A model as one program and its arrays, in a folder that JAX and numpy run: without this package, and without Flax.

    program.bin   the program as jax.export serializes it: StableHLO, and the shapes of what goes in and comes out
    arrays.npz    the model's arrays as they are stored, packed integers too; types that numpy lacks as plain integers
    export.json   the arrays in the program's order, shapes, rates, names of the results, tokens

The program takes the arrays, waveforms (rows, samples) float32 at 16 kHz, and lengths (rows,) int32 in samples, 0 of a
row that holds nothing. It adds the model's silence itself. What it gives are the fields of `Hypotheses`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxasr.arrays import length_mask
from jaxasr.audio import SAMPLE_RATE
from jaxasr.devices import usual_settings
from jaxasr.errors import ConfigError, ModelError
from jaxasr.files import require_utf8, writing_folder
from jaxasr.model_config import Parameters
from jaxasr.recognizer import Recognizer
from jaxasr.search.hypotheses import Hypotheses

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")  # as JAX names them
PROGRAM, ARRAYS, DESCRIPTION = "program.bin", "arrays.npz", "export.json"


def export_model(
    recognizer: Recognizer,
    params: Parameters,
    directory: str | os.PathLike[str],
    *,
    seconds: float,
    rows: int = 1,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> int:
    """Write the folder of a recogniser, and give the bytes of its files. It appears whole or not at all.

    `params`: the model's arrays as they are to be stored. `seconds`: of the longest clip that the program takes.
    `rows`: clips in a batch. `platforms`: the kinds of devices that the program can run on. `overwrite`: replace what
    an earlier export wrote.

    Raises ConfigError for shapes that the model does not take, ModelError for folders.
    """
    target = Path(directory)
    require_utf8(target, ModelError)
    if target.exists():
        if not overwrite:
            raise ModelError(f"{target} exists: choose another folder or set overwrite")
        if not (target / DESCRIPTION).is_file():
            raise ModelError(f"{target} exists and is no exported model: overwrite will not remove it")
    config = recognizer.config
    if not 0 < seconds <= config.audio.longest:
        raise ConfigError(f"seconds must be positive and at most the model's {config.audio.longest:g}, not {seconds:g}")
    if rows < 1:
        raise ConfigError(f"rows must be at least 1, not {rows}")
    samples = round(seconds * SAMPLE_RATE)
    if config.encoder.encoded_length(config.features.frame_count(samples)) < 1:
        raise ConfigError(f"seconds is {seconds:g}, which {config.name} makes no frame of")
    with usual_settings():
        exported = _exported(recognizer, params, rows, samples, platforms)
    arrays = _named(params)
    with writing_folder(target, ModelError) as folder:
        (folder / PROGRAM).write_bytes(exported.serialize())
        with open(folder / ARRAYS, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: _plain(array) for name, array in arrays.items()})
        description = _description(recognizer, arrays, exported, rows, samples)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
        return sum(file.stat().st_size for file in folder.iterdir())


def _exported(
    recognizer: Recognizer, params: Parameters, rows: int, samples: int, platforms: Sequence[str]
) -> export.Exported:
    leaves, structure = jax.tree.flatten(params)
    programs = recognizer.programs
    before, after = recognizer.silence

    # Plain lists and tuples, which need no registration of the package's own types where the program is read.
    def recognize(arrays: list[jax.Array], waveforms: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
        params = programs.policy.cast(jax.tree.unflatten(structure, arrays))
        heard = jnp.where(length_mask(lengths, samples), waveforms, 0.0)
        heard = jnp.pad(heard, ((0, 0), (before, after)))
        heard_lengths = jnp.where(lengths > 0, lengths + before + after, 0)
        return tuple(programs.recognize(params, heard, heard_lengths, jnp.float32(recognizer.blank_penalty)))

    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    waveforms = jax.ShapeDtypeStruct((rows, samples), jnp.float32)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return export.export(jax.jit(recognize), platforms=tuple(platforms))(abstract, waveforms, lengths)


def _named(params: Parameters) -> dict[str, np.ndarray]:
    """The arrays by their names, in the order in which JAX, and so the program, takes them."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a type of numpy's own: others, such as bfloat16, as unsigned integers of their bits."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"uint{8 * array.dtype.itemsize}")


def _description(
    recognizer: Recognizer, arrays: Mapping[str, np.ndarray], exported: export.Exported, rows: int, samples: int
) -> dict[str, Any]:
    """What export.json holds. The program's arrays stand in the order in which it takes them."""
    config = recognizer.config
    results = zip(Hypotheses._fields, exported.out_avals, strict=True)
    return {
        "format": FORMAT,
        "name": config.name,
        "program": PROGRAM,
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "sample_rate": SAMPLE_RATE,
        "waveforms": {"shape": [rows, samples], "dtype": "float32"},
        "lengths": {"shape": [rows], "dtype": "int32"},
        "arrays": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()
        ],
        "results": [
            {"name": name, "shape": list(result.shape), "dtype": str(result.dtype)} for name, result in results
        ],
        "seconds_per_frame": config.seconds_per_step(recognizer.programs.search),
        "silence_before": config.audio.silence_before,
        "tokens": [recognizer.tokens[number] for number in range(len(recognizer.tokens))],
        "spelling": config.spelling(recognizer.programs.search).kind,
    }
