"""Quantized arrays in a model's parameters: taken apart to what is stored, put together again, and without numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxasr.quant.array import PARTS, QuantizedArray, abstract_array, assembled_array, parts_of
from jaxasr.quant.rules import QuantizationConfig, layer_of


def abstract_tree(config: QuantizationConfig | None, tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested shapes and types of float parameters -> those of the parameters as the rules quantize them."""
    made: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            made[name] = abstract_tree(config, value, f"{path}.")
            continue
        rule = config.rule(path, value.shape) if config is not None else None
        layer = layer_of(path, value.shape)
        made[name] = value if rule is None or layer is None else abstract_array(value.shape, rule, layer)
    return made


def taken_apart(leaves: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Leaves by path -> plain arrays by path, those of a quantized one below its own; and the shapes of these."""
    arrays: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, QuantizedArray):
            arrays.update({f"{path}.{name}": part for name, part in parts_of(leaf).items()})
            shapes[path] = leaf.shape
        else:
            arrays[path] = leaf
    return arrays, shapes


def put_together(
    arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], config: QuantizationConfig | None
) -> dict[str, Any]:
    """The inverse of `taken_apart`. Raises ValueError with the path of what does not fit the rules."""
    leaves = dict(arrays)
    for path, shape in shapes.items():
        rule = config.rule(path, shape) if config is not None else None
        layer = layer_of(path, shape)
        parts = {name: leaves.pop(f"{path}.{name}") for name in PARTS if f"{path}.{name}" in leaves}
        try:
            if rule is None or layer is None:
                raise ValueError("no rule quantizes it")
            leaves[path] = assembled_array(parts, shape, rule, layer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return leaves
