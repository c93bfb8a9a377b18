"""What a model directory stores of a converted model: floats, and integers where the files hold such."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxasr.compression.post_training import EXACT, narrowed
from jaxasr.convert.formats.mapped import release
from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.convert.mapping import FAULTS_SHOWN
from jaxasr.convert.protocol import Converted
from jaxasr.errors import CheckpointError, listing
from jaxasr.model_config import ModelConfig
from jaxasr.quant.rules import PACKED_AXIS, FloatType, QuantizationConfig, Rule, layer_of, stated_rules

# Floats that stay float32 unless another type is asked for. In the encoder they are few, and what they make is rounded
# to integers again and again: the least change of them makes another of its roundings, and so another noise.
NARROW: FloatType = "float16"
EXACT_BY_DEFAULT = (*EXACT, "encoder.")

if TYPE_CHECKING:
    import jax

    from jaxasr.quant.array import QuantizedArray


def with_integers(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    quantized: Mapping[str, QuantizedTensor],
    floats: FloatType | None,
) -> ModelConfig:
    """The configuration of a model of these arrays, some of which stay the integers that they were.

    `quantized`: those, by the path of the parameter. `floats`: as `parameters` takes it.
    """
    stray = [path for path, tensor in quantized.items() if layer_of(path, tensor.shape) is None]
    if stray:
        raise CheckpointError(f"integers stand where no weight is: {listing(stray, FAULTS_SHOWN)}")
    weights = {
        path: (array.shape, _rule(path, quantized[path]) if path in quantized else None)
        for path, array in arrays.items()
    }
    rules = QuantizationConfig(rules=stated_rules(weights), floats=floats or NARROW)
    return dataclasses.replace(config, quantization=rules)


def parameters(converted: Converted, floats: FloatType | None = None) -> dict[str, Any]:
    """The nested parameters of a converted model, on the device; its dictionaries of arrays are emptied.

    `floats`: the type of floats beside integers; None for 16 bits outside of what must stay `EXACT_BY_DEFAULT`.
    """
    from jaxasr.store import unflatten

    arrays, quantized = converted.arrays, converted.quantized
    rules = converted.config.quantization if isinstance(converted.config, ModelConfig) else None
    leaves: dict[str, Any] = {}
    # One by one: the file's pages are given back as soon as a tensor has been copied.
    for path in list(arrays):
        array = arrays.pop(path)
        if path in quantized and rules is not None:
            leaves[path] = _integers_on_device(path, quantized.pop(path), rules)
        elif rules is not None and not path.startswith(EXACT if floats is not None else EXACT_BY_DEFAULT):
            leaves[path] = _on_device(narrowed(array.astype(np.float32, copy=False), rules.floats))
        else:
            leaves[path] = _on_device(array.astype(np.float32, copy=False))
        release(array)
    return unflatten(leaves)


def _rule(path: str, tensor: QuantizedTensor) -> Rule:
    """How a tensor is multiplied: with integers, as by the files, where our products can, in dense layers and tables.

    Convolutions that the files multiply so are dequantized: their integers would be multiplied slowly.
    """
    integers = tensor.multiplied and layer_of(path, tensor.shape) in ("dense", "embedding")
    return Rule(
        path="*",
        bits=8,
        per="tensor" if tensor.scale.size == 1 else "channel",
        symmetric=tensor.zero_point is None,
        scale_type="float32",
        activations="uint8" if integers else "float",
        ranges="tensor" if integers else "token",
    )


def _integers_on_device(path: str, tensor: QuantizedTensor, rules: QuantizationConfig) -> QuantizedArray:
    from jaxasr.quant.array import assembled_array
    from jaxasr.quant.packing import pack

    rule, layer = rules.rule(path, tensor.shape), layer_of(path, tensor.shape)
    assert rule is not None and layer is not None
    integers = pack(_on_device(tensor.integers), 8, PACKED_AXIS[layer])
    parts = {"integers": integers, "scale": _on_device(tensor.scale)}
    if tensor.zero_point is not None:
        parts["zero"] = _on_device(tensor.zero_point.astype(np.float32))
    try:
        return assembled_array(parts, tensor.shape, rule, layer)
    except ValueError:
        raise CheckpointError(f"{path}: its scales run along another axis than its outputs") from None


def _on_device(array: np.ndarray) -> jax.Array:
    """A copy that no longer needs the file."""
    import jax

    copy: jax.Array = jax.device_put(np.array(array, order="C")).block_until_ready()
    return copy
