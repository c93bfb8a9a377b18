"""Which weights of a model are stored in how many bits: an ordered list of rules. It needs no JAX.

A weight is a leaf of the parameters that is called `kernel` or `embedding`. The first rule that names its path decides.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Layer: TypeAlias = Literal["dense", "convolution", "depthwise", "embedding"]
Activations: TypeAlias = Literal["float", "int8", "uint8", "fake"]
Ranges: TypeAlias = Literal["token", "tensor", "static"]
FloatType: TypeAlias = Literal["float16", "bfloat16", "float32"]

SMALLEST_BLOCK = 8  # with less a block's scale takes more than two bits a weight
FEWEST_INPUTS = 8  # of an output of a convolution: fewer, as in groups, fill no unit for integers
# The axis along which weights are packed and blocks run. A depthwise kernel has no inputs to add up but its taps.
PACKED_AXIS: dict[Layer, int] = {"dense": -2, "convolution": -2, "depthwise": -3, "embedding": -1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How the weights whose path fits a pattern are quantized.

    `path`: such as `encoder.layers.*.feed_forward1.*`; a `*` stands for anything, dots included. `bits`: 8, 4, 3 or 2;
    None leaves the weights in float. `layer`: only those of this kind of product. `per`: the weights that share a
    scale: those of one output `channel` (of an embedding: one row), or a whole `tensor`. `block`: instead, so many of
    one output's inputs, of which the last block may be shorter. `symmetric`: integers are multiples of the weights;
    else a zero is stored beside each scale. `bounds`: what the ends of the integers stand for: the largest weight
    (`max`), a `percentile` of the weights, or the bound of least squared error (`search`). `scale_type`: of scales and
    zeros. `activations`: what weights are multiplied by: `float` dequantizes the weights; `int8` quantizes
    activations to 8 bits and multiplies integers (dense layers and convolutions over time; others dequantize); `uint8`
    does so with a zero beside each scale of activations, as ONNX's DynamicQuantizeLinear (dense layers; others
    dequantize); `fake` gives the values of `int8` in float arithmetic. `ranges`: activations that share a scale: those
    of one `token` (frame), or the whole `tensor` of one utterance, or of one chunk of a model that streams
    (quant/ranges.py); or all that there will ever be (`static`), by the largest of recordings that were heard before.
    """

    path: str
    bits: Literal[8, 4, 3, 2] | None
    layer: Layer | None = None
    per: Literal["channel", "tensor"] = "channel"
    block: int | None = None
    symmetric: bool = True
    bounds: Literal["max", "percentile", "search"] = "max"
    percentile: float = 99.9
    scale_type: FloatType = "bfloat16"
    activations: Activations = "float"
    ranges: Ranges = "token"

    def __post_init__(self) -> None:
        if self.block is not None and self.block < SMALLEST_BLOCK:
            raise ValueError(f"block must be at least {SMALLEST_BLOCK}, not {self.block}")
        if self.block is not None and self.per == "tensor":
            raise ValueError(f"{self.path}: blocks and one scale per tensor exclude each other")
        if self.ranges == "static" and self.activations == "uint8":
            raise ValueError(f"{self.path}: static ranges have no zero: take the activations int8")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie above 50 and not above 100, not {self.percentile}")

    def fits(self, path: str, layer: Layer) -> bool:
        """Whether the rule is about this weight."""
        return self.layer in (None, layer) and fnmatch.fnmatchcase(path, self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """The rules of a model, in their order. `floats`: the type in which all that no rule quantizes is stored."""

    rules: tuple[Rule, ...]
    floats: FloatType = "float16"

    def __post_init__(self) -> None:
        if all(rule.bits is None for rule in self.rules):
            raise ValueError("no rule quantizes anything")

    def rule(self, path: str, shape: Shape) -> Rule | None:
        """The rule that quantizes the leaf of this path and shape; None where it stays float."""
        layer = layer_of(path, shape)
        found = next((rule for rule in self.rules if layer is not None and rule.fits(path, layer)), None)
        return found if found is not None and found.bits is not None else None

    def static_ranges(self, shapes: Mapping[str, Shape]) -> list[str]:
        """The weights, by path, among leaves of these shapes, beside which a static range of activations is stored."""
        ruled = ((path, shape, self.rule(path, shape), layer_of(path, shape)) for path, shape in shapes.items())
        return [path for path, shape, rule, layer in ruled if rule and layer and needs_range(rule, layer, shape)]

    def with_activations(self, activations: Activations) -> QuantizationConfig:
        """The same weights, multiplied in another way."""
        rules = tuple(dataclasses.replace(rule, activations=activations) for rule in self.rules)
        return dataclasses.replace(self, rules=rules)

    def fault(self, shapes: Mapping[str, Shape]) -> str | None:
        """What is wrong with the rules for a model with leaves of these shapes; None if nothing is."""
        for number, rule in enumerate(self.rules):
            own = self._decided(number, shapes)
            if not own:
                why = (
                    "fits no kernel or embedding"
                    if not self._fitting(rule, shapes)
                    else "comes after rules that fit all"
                )
                return f"the pattern {rule.path!r} {why}"
            inputs = [shape[PACKED_AXIS[layer]] for shape, layer in own]
            if rule.block is not None and rule.bits is not None and rule.block > max(inputs):
                return (
                    f"a block of {rule.block} does not fit {rule.path!r}: its longest weight has {max(inputs)} inputs"
                )
        return None

    def without_idle_rules(self, shapes: Mapping[str, Shape], first: int) -> QuantizationConfig:
        """The same, without rules from number `first` on that decide nothing in a model with leaves of these shapes.

        ValueError where none is left that quantizes.
        """
        rules = tuple(rule for number, rule in enumerate(self.rules) if number < first or self._decided(number, shapes))
        return dataclasses.replace(self, rules=rules)

    def _decided(self, number: int, shapes: Mapping[str, Shape]) -> list[tuple[Shape, Layer]]:
        """The weights for which the rule of this number is the first that fits."""
        before = self.rules[:number]
        return [
            (shape, layer)
            for path, shape, layer in self._fitting(self.rules[number], shapes)
            if not any(rule.fits(path, layer) for rule in before)
        ]

    def _fitting(self, rule: Rule, shapes: Mapping[str, Shape]) -> list[tuple[str, Shape, Layer]]:
        layers = ((path, shape, layer_of(path, shape)) for path, shape in shapes.items())
        return [(path, shape, layer) for path, shape, layer in layers if layer is not None and rule.fits(path, layer)]


def layer_of(path: str, shape: Sequence[int]) -> Layer | None:
    """The kind of product that a leaf is a weight of, None if it is none.

    Kernels are (in, out) and (window..., in / groups, out); one input for each output makes a depthwise convolution, or
    one of a single channel.
    """
    name = path.rpartition(".")[2]
    if name == "embedding" and len(shape) == 2:
        return "embedding"
    if name != "kernel" or len(shape) < 2:
        return None
    if len(shape) == 2:
        return "dense"
    return "depthwise" if shape[-2] == 1 else "convolution"


def multiplied(
    activations: Activations, layer: Layer, shape: Shape, per: Literal["channel", "tensor"] = "channel"
) -> Activations:
    """How products with weights of this kind and shape are made where a rule asks for `activations`.

    As asked for in dense layers, and with `int8` and `fake` in convolutions over time whose outputs have 8 inputs or
    more. All else is dequantized (`float`), but for a table with one scale whose activations have a zero: the
    products of its integers are exact in floats (`fake`).
    """
    if layer == "dense":
        return activations
    if layer == "convolution" and activations != "uint8":
        over_time = len(shape) == 3 or shape[1] == 1
        return activations if over_time and shape[-2] >= FEWEST_INPUTS else "float"
    return "fake" if layer == "embedding" and activations == "uint8" and per == "tensor" else "float"


def needs_range(rule: Rule, layer: Layer, shape: Shape) -> bool:
    """Whether a static range of activations is stored beside the weights: where integers can be multiplied."""
    return rule.ranges == "static" and multiplied("int8", layer, shape) == "int8"


def stated_rules(weights: Mapping[str, tuple[Shape, Rule | None]]) -> tuple[Rule, ...]:
    """Few rules that give every weight of a model its own: a rule of path `*` for any layer, None where it is a float.

    `weights`: their shapes and rules by path. A pattern covers all below a module where these agree, the layers of a
    stack together; a single weight has its path.
    """
    layers = {path: layer for path, (shape, _) in weights.items() if (layer := layer_of(path, shape)) is not None}
    wanted = {path: weights[path][1] for path in layers}
    alike: dict[str, set[Rule | None]] = {}
    for path, rule in wanted.items():
        alike.setdefault(_numberless(path), set()).add(rule)
    shown = {path: _numberless(path) if len(alike[_numberless(path)]) == 1 else path for path in layers}
    tree = {(shown[path], layers[path]): wanted[path] for path in layers}
    for rules in (
        tuple(_covering(tree, ())),
        tuple(dataclasses.replace(rule, path=path) for (path, _), rule in tree.items() if rule is not None),
    ):
        config = QuantizationConfig(rules=rules)
        found = {path: config.rule(path, weights[path][0]) for path in wanted}
        if wanted == {path: rule and dataclasses.replace(rule, path="*", layer=None) for path, rule in found.items()}:
            return rules
    # A pattern reached a weight that it was not made for.
    return tuple(dataclasses.replace(rule, path=path) for path, rule in wanted.items() if rule is not None)


def _covering(tree: Mapping[tuple[str, Layer], Rule | None], prefix: tuple[str, ...]) -> Iterator[Rule]:
    """The rules of weights by (path, layer), all of them below `prefix`."""
    kinds: dict[Layer, set[Rule | None]] = {}
    for (_, layer), rule in tree.items():
        kinds.setdefault(layer, set()).add(rule)
    if all(len(rules) == 1 for rules in kinds.values()):
        agreed = {layer: next(iter(rules)) for layer, rules in kinds.items()}
        pattern = next(iter(tree))[0] if len(tree) == 1 else ".".join((*prefix, "*"))
        together = len(set(agreed.values())) == 1
        for layer, rule in agreed.items():
            if rule is not None:
                yield dataclasses.replace(rule, path=pattern, layer=None if together else layer)
            if together:
                return
        return
    below: dict[str, dict[tuple[str, Layer], Rule | None]] = {}
    for (path, layer), rule in tree.items():
        below.setdefault(path.split(".")[len(prefix)], {})[path, layer] = rule
    for name, inner in below.items():
        yield from _covering(inner, (*prefix, name))


def _numberless(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def default_rules(
    bits: Literal[8, 4, 3, 2], *, block: int | None = None, symmetric: bool = True, clip: bool | None = None
) -> tuple[Rule, ...]:
    """What experience suggests for a model of which nothing else is known; a rule may decide nothing in it.

    The encoder's dense layers and convolutions take `bits`; a front end's convolutions and depthwise ones, a small
    share of the weights on which much hangs, stay float, as do norms and biases, which are no weights here; heads and
    a front end's dense layers keep 8 bits. `clip` looks for bounds of least squared error: by default at 3 and 2
    bits, where it is worth more than blocks. The encoder's integers of 8 bits are multiplied by activations of 8
    bits.
    """
    bounds: Literal["max", "search"] = "search" if clip or (clip is None and bits < 4) else "max"
    activations: Activations = "int8" if bits == 8 else "float"
    return (
        Rule(path="*", layer="depthwise", bits=None),
        *(
            rule
            for front_end in ("encoder.embed.*", "encoder.subsample.*")
            for rule in (Rule(path=front_end, layer="convolution", bits=None), Rule(path=front_end, bits=8))
        ),
        Rule(path="encoder.*", bits=bits, block=block, symmetric=symmetric, bounds=bounds, activations=activations),
        Rule(path="*", bits=8),
    )
