"""Quantization after training: weights rounded by themselves, or the encoder's by what it hears."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxasr.compression.calibrated import Heard, quantize_heard
from jaxasr.detector_config import DetectorConfig
from jaxasr.devices import usual_settings
from jaxasr.errors import ConfigError, ModelError
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.array import quantize_array
from jaxasr.quant.rules import QuantizationConfig, layer_of
from jaxasr.store import StoredModel, flatten, load_any_config, open_model, unflatten

# Below its largest number's magnitude a leaf's float16 would keep fewer digits than it has: there all are subnormal.
FLOAT16_NORMAL, FLOAT16_LARGEST = 2.0**-14, 65504.0
# Parts of a model whose arrays stay float32: mel filterbanks and statistics are few, and the front end is float.
EXACT = ("features.",)


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized model: its configuration and its parameters, of numpy.

    `error`: the root mean square of what rounding changed in the quantized weights, as a share of that of the weights.
    """

    config: ModelConfig
    params: Parameters
    error: float


def open_recogniser(folder: Path) -> StoredModel:
    """Open a model directory whose weights are to become integers. ConfigError for that of a detector."""
    if isinstance(load_any_config(folder), DetectorConfig):
        raise ConfigError(f"{folder} is a voice activity detector, whose few weights stay float: quantize recognisers")
    return open_model(folder)


def fitting_rules(model: ModelConfig, rules: QuantizationConfig, *, defaults: int = 0) -> QuantizationConfig:
    """The rules, of which the last `defaults` may fit nothing and are then left out. ConfigError where others do
    not fit. They are applied to the shapes of the model, without its numbers.
    """
    if model.quantization is not None:
        raise ConfigError(f"{model.name} is quantized already: quantize the float model that it was made from")
    with usual_settings():
        shapes = {path: leaf.shape for path, leaf in flatten(AbstractModel(model).floats).items()}
    try:
        checked = rules.without_idle_rules(shapes, len(rules.rules) - defaults)
    except ValueError as error:
        raise ConfigError(f"{model.name}: {error}") from None
    if fault := checked.fault(shapes):
        raise ConfigError(f"{model.name}: {fault}")
    for path in checked.static_ranges(shapes):
        if not path.startswith("encoder."):
            raise ConfigError(
                f"{model.name}: static ranges are measured in the encoder alone, and a rule gives {path} one"
            )
    return checked


def check_finite(stored: StoredModel, params: Parameters, rules: QuantizationConfig) -> None:
    """ModelError for weights of a model directory, among those to be quantized, for which no integers can stand."""
    for path, weights in flatten(params).items():
        if rules.rule(path, weights.shape) is not None and not np.isfinite(weights).all():
            raise ModelError(f"{stored.folder}: {path} holds numbers that are not finite, which no integer stands for")


def quantize_stored(
    stored: StoredModel,
    params: Parameters,
    rules: QuantizationConfig,
    heard: Heard | None = None,
) -> Quantized:
    """Quantize `params` of a model directory by rules that fit, leaf by leaf, to the nearest integers of each grid.

    `heard`: what `calibrated.hear` gives: weights whose inputs it has are quantized by these instead.
    """
    leaves = flatten(params)
    quantized: dict[str, Any] = {}
    changed = whole = 0.0
    with usual_settings():
        for path in list(leaves):
            weights = np.asarray(leaves.pop(path))
            rule, layer = rules.rule(path, weights.shape), layer_of(path, weights.shape)
            if rule is None or layer is None:
                quantized[path] = stored_float(path, weights, rules.floats)
                continue
            gram = heard.grams.get(path) if heard is not None else None
            largest = heard.largest.get(path) if heard is not None else None
            if gram is None:
                array = quantize_array(weights, rule, layer, largest)
            else:
                array = quantize_heard(weights, rule, layer, gram, largest)
            difference = np.asarray(array.dequantize()) - weights
            changed += float(np.square(difference, dtype=np.float64).sum())
            whole += float(np.square(weights, dtype=np.float64).sum())
            quantized[path] = jax.device_get(array)
    config = dataclasses.replace(stored.config, quantization=rules)
    return Quantized(config, unflatten(quantized), math.sqrt(changed / whole) if whole else 0.0)


def stored_float(path: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    """A leaf that stays float, in the type in which it is stored."""
    return leaf if path.startswith(EXACT) else narrowed(leaf, dtype)


def narrowed(leaf: np.ndarray, dtype: str) -> np.ndarray:
    """A float leaf in a narrower type; as it is where float16 would lose its range or all of its digits."""
    if dtype == "float16":
        largest = float(np.abs(leaf.astype(np.float32)).max(initial=0.0))
        if largest != 0 and not FLOAT16_NORMAL <= largest <= FLOAT16_LARGEST:
            return leaf
    return leaf.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
