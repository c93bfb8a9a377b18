"""Quantization by what an encoder hears: its matrices and convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr.compression.calibration import Hearing, Windows
from jaxasr.compression.compensated import RowGrid, compensate
from jaxasr.devices import usual_settings
from jaxasr.errors import ConfigError, listing
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.array import QuantizedArray, assembled_array, quantize_array
from jaxasr.quant.numbers import limits
from jaxasr.quant.packing import pack
from jaxasr.quant.rules import Layer, QuantizationConfig, Rule, layer_of
from jaxasr.store import flatten, unflatten

# The kinds of products whose inputs the door tells.
PRODUCTS = ("dense", "convolution")


@dataclasses.dataclass(frozen=True)
class Heard:
    """What matrices and convolutions of an encoder were multiplied by, by the path of their weights.

    `grams`: sums of x^t x (n, n) for the inputs x of weights that are calibrated. `largest`: the largest magnitude
    among inputs whose range is static.
    """

    grams: dict[str, np.ndarray]
    largest: dict[str, float]


def hear(
    config: ModelConfig,
    params: Parameters,
    windows: Windows,
    rules: QuantizationConfig,
    progress: Callable[[float, float | None], None] | None = None,
    *,
    calibrated: bool = True,
) -> Heard:
    """What the products of weights that the rules quantize hear in recordings.

    `params`: of the float model. `progress` is called with seconds of the recordings heard, and in all. `calibrated`:
    weights are calibrated, not ranges alone. Raises AudioError for recordings of which the encoder makes no numbers,
    ConfigError for a static range of which nothing is heard.
    """
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    static = set(rules.static_ranges({path: leaf.shape for path, leaf in leaves.items()}))
    watched = [
        path
        for path, leaf in leaves.items()
        if path.startswith("encoder.") and rules.rule(path, leaf.shape) and layer_of(path, leaf.shape) in PRODUCTS
        if calibrated or path in static
    ]
    heard = Heard({}, {})

    def add(path: str, rows: np.ndarray) -> None:
        if path in static:
            heard.largest[path] = max(heard.largest.get(path, 0.0), float(np.abs(rows).max(initial=0.0)))
        if calibrated:
            gram = rows.T @ rows
            heard.grams[path] = heard.grams[path] + gram if path in heard.grams else gram

    hearing = Hearing(config, windows, watched)
    for done, _ in enumerate(hearing.batches(unflatten(leaves), add), start=1):
        if progress is not None:
            progress(done * windows.batch_seconds, windows.seconds)
    if unheard := static - heard.largest.keys():
        raise ConfigError(f"nothing is multiplied by {listing(sorted(unheard))}: leave out its static range")
    return heard


def quantize_heard(
    weights: np.ndarray, rule: Rule, layer: Layer, gram: np.ndarray, largest: float | None = None
) -> QuantizedArray:
    """The weights of a matrix or a convolution as a rule quantizes them, by `compensated` from what `hear` gives."""
    with usual_settings():
        begun = quantize_array(weights, rule, layer, largest)
        cells = jnp.arange(begun.scale.size // begun.scale.shape[-1]).reshape(*begun.scale.shape[:-1], 1)
        cell = np.broadcast_to(begun.spread(cells), (*weights.shape[:-1], 1)).reshape(-1)
        scale, zero = _rows(begun.scale), None if begun.zero is None else _rows(begun.zero)
        rows = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
        integers, grid = compensate(gram, rows, RowGrid(scale, zero, cell, *limits(begun.bits)), begun.scale.dtype)
        values = jnp.asarray(integers.reshape(weights.shape), jnp.int8)

        def stored(values: np.ndarray) -> jax.Array:
            return jnp.asarray(values.reshape(begun.scale.shape), begun.scale.dtype)

        zeros = None if grid.zero is None else stored(grid.zero)
        parts = {"integers": pack(values, begun.bits, begun.axis), "scale": stored(grid.scale), "zero": zeros}
        parts["step"] = begun.step
        given = {name: part for name, part in parts.items() if part is not None}
        made = assembled_array(given, weights.shape, rule, layer)
        held: QuantizedArray = jax.device_get(made)
        return held


def _rows(grid: Any) -> np.ndarray:
    """Scales or zeros as rows (cells, m or 1)."""
    return np.asarray(grid, np.float64).reshape(-1, grid.shape[-1])
