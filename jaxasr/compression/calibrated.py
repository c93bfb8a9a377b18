"""Quantization by what an encoder hears: its matrices and convolutions, one layer after another."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr.compression.calibration import Hearing, Windows
from jaxasr.compression.compensated import Moments, RowGrid, compensate
from jaxasr.devices import usual_settings
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.array import QuantizedArray, quantize_array
from jaxasr.quant.numbers import limits
from jaxasr.quant.packing import pack
from jaxasr.quant.rules import QuantizationConfig, layer_of
from jaxasr.store import flatten, unflatten

# The kinds of products whose inputs the door tells.
PRODUCTS = ("dense", "convolution")
_LAYER = re.compile(r"(.*\.\d+)\.")  # the members of a path up to the last that is a number


def calibrated_arrays(
    config: ModelConfig,
    params: Parameters,
    rules: QuantizationConfig,
    windows: Windows,
    progress: Callable[[float, float | None], None] | None = None,
) -> dict[str, QuantizedArray]:
    """The encoder's matrices and convolutions by path, as the rules quantize them, by `compensated`.

    Layers are quantized in the order in which the encoder runs; each hears what the quantized ones before it make of
    the recordings, and aims at what the float model makes of them. `progress` is called with seconds of sound heard,
    and in all. Raises AudioError for recordings of which the encoder makes no numbers.
    """
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    watched = [
        path
        for path, leaf in leaves.items()
        if path.startswith("encoder.") and rules.rule(path, leaf.shape) and layer_of(path, leaf.shape) in PRODUCTS
    ]
    if not watched:
        return {}
    hearing = Hearing(config, windows, watched)
    whole, rounded = unflatten(leaves), dict(leaves)
    layers = list(in_layers(hearing.order(whole)))
    made: dict[str, QuantizedArray] = {}
    for number, paths in enumerate(layers, start=1):
        moments = {path: Moments.zeros(leaves[path].size // leaves[path].shape[-1]) for path in paths}
        for wanted, given in zip(hearing.inputs(whole, paths), hearing.inputs(unflatten(rounded), paths), strict=True):
            for path in paths:
                moments[path].add(given[path], wanted[path])
        for path in paths:
            made[path] = _calibrated(leaves[path], path, rules, moments.pop(path))
            rounded[path] = np.asarray(made[path].dequantize())
        if progress is not None:
            progress(number * windows.seconds, len(layers) * windows.seconds)
    return made


def in_layers(paths: Iterable[str]) -> Iterator[list[str]]:
    """Paths in their order, parted where the layer changes: the path up to its last number, else up to its module."""

    def layer(path: str) -> str:
        numbered = _LAYER.match(path)
        return numbered[1] if numbered else path.rpartition(".")[0].rpartition(".")[0]

    return (list(members) for _, members in itertools.groupby(paths, layer))


def _calibrated(weights: np.ndarray, path: str, rules: QuantizationConfig, moments: Moments) -> QuantizedArray:
    rule, layer = rules.rule(path, weights.shape), layer_of(path, weights.shape)
    assert rule is not None and rule.bits is not None and layer is not None
    gram, target = moments.problem(weights.reshape(-1, weights.shape[-1]).astype(np.float64))
    with usual_settings():
        begun = quantize_array(target.reshape(weights.shape).astype(np.float32), rule, layer)
        cells = jnp.arange(begun.scale.size // begun.scale.shape[-1]).reshape(*begun.scale.shape[:-1], 1)
        cell = np.broadcast_to(begun.spread(cells), (*weights.shape[:-1], 1)).reshape(-1)
        scale, zero = (None if grid is None else _rows(grid) for grid in (begun.scale, begun.zero))
        assert scale is not None
        grid = RowGrid(scale, zero, cell, *limits(rule.bits))
        integers, grid = compensate(gram, target, grid, begun.scale.dtype)

        def stored(values: np.ndarray | None) -> jax.Array | None:
            return None if values is None else jnp.asarray(values.reshape(begun.scale.shape), begun.scale.dtype)

        packed = pack(jnp.asarray(integers.reshape(weights.shape), jnp.int8), rule.bits, begun.axis)
        made = dataclasses.replace(begun, integers=packed, scale=stored(grid.scale), zero=stored(grid.zero))
        return jax.device_get(made)


def _rows(grid: Any) -> np.ndarray:
    """Scales or zeros as rows (cells, m or 1)."""
    return np.asarray(grid, np.float64).reshape(-1, grid.shape[-1])
