"""Which weights suffer from few bits: the error of what is encoded when one group of an encoder's weights is quantized.

A group is what one module multiplies with, such as a feed-forward or an attention. Squared errors of groups are taken
to add up, so that bits for a size follow from the errors that the groups cause alone (as in HAWQ, Dong et al., 2019,
arXiv 1905.03696, whose measure is the curvature of the loss; here it is what the encoder makes of recordings).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np
import yaml

from jaxasr.compression.agreement import difference
from jaxasr.compression.calibration import Hearing
from jaxasr.compression.post_training import fitting_rules, stored_float
from jaxasr.configuration import to_mapping
from jaxasr.devices import usual_settings
from jaxasr.errors import ConfigError
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.array import abstract_array, quantize_array
from jaxasr.quant.rules import PACKED_AXIS, SMALLEST_BLOCK, Layer, QuantizationConfig, Rule, default_rules, layer_of
from jaxasr.store import flatten, unflatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bits = Literal[8, 4, 3, 2]
CHOICES: tuple[Bits, ...] = (8, 4, 3, 2)
ENCODER = "encoder."


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights below one `path`, its `members`, which get the same bits: `size` numbers.

    By bits: the `rules` that quantize them; the `bytes` that their arrays take then; the `errors` that they cause
    alone, the root mean square of what changes in what the encoder gives, as a share of that.
    """

    path: str
    members: tuple[str, ...]
    size: int
    rules: Mapping[Bits, Rule]
    bytes: Mapping[Bits, int]
    errors: Mapping[Bits, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The groups of a model's encoder, in its order.

    `other_bytes`: of all other arrays, quantized by `others` or float.
    """

    groups: tuple[Group, ...]
    other_bytes: int
    others: tuple[Rule, ...]

    def size(self, bits: Mapping[str, Bits]) -> int:
        """Bytes of all arrays with these bits for the groups' paths."""
        return self.other_bytes + sum(group.bytes[bits[group.path]] for group in self.groups)

    def expected(self, bits: Mapping[str, Bits]) -> float:
        """The error of all groups together, if their squares add up."""
        return math.sqrt(sum(group.errors[bits[group.path]] ** 2 for group in self.groups))

    def check_budget(self, most_bytes: float) -> None:
        """ConfigError where 2 bits for all groups are too many."""
        fewest = self.size({group.path: CHOICES[-1] for group in self.groups})
        if not fewest <= most_bytes:
            raise ConfigError(
                f"a budget of {most_bytes / 1e6:.3g} MB is too small: with 2 bits for all of the encoder the arrays "
                f"take {fewest / 1e6:.3g} MB"
            )

    def propose(self, most_bytes: float) -> dict[str, Bits]:
        """Bits by path with which all arrays take at most `most_bytes`. Raises what `check_budget` raises.

        From 8 bits for all, again and again the group goes down whose squared error grows least for a byte saved. What
        room is left then goes, again and again, to the group whose squared error shrinks most.
        """
        self.check_budget(most_bytes)
        chosen: dict[str, Bits] = {group.path: CHOICES[0] for group in self.groups}

        def gained(group: Group, bits: Bits) -> float:
            return group.errors[chosen[group.path]] ** 2 - group.errors[bits] ** 2

        def saved(group: Group, bits: Bits) -> int:
            return group.bytes[chosen[group.path]] - group.bytes[bits]

        choices = [(group, bits) for group in self.groups for bits in CHOICES]
        while self.size(chosen) > most_bytes:
            lower = [(group, bits) for group, bits in choices if saved(group, bits) > 0]
            group, bits = max(lower, key=lambda each: gained(*each) / saved(*each))
            chosen[group.path] = bits
        while better := [
            (group, bits)
            for group, bits in choices
            if gained(group, bits) > 0 and self.size(chosen) - saved(group, bits) <= most_bytes
        ]:
            group, bits = max(better, key=lambda each: gained(*each))
            chosen[group.path] = bits
        return chosen

    def spec(self, bits: Mapping[str, Bits]) -> QuantizationConfig:
        """Rules that give the groups these bits, and all else what the defaults say."""
        floats = tuple(rule for rule in self.others if rule.bits is None)
        # Deeper paths first: one that holds those of other groups takes what they leave.
        groups = sorted(self.groups, key=lambda group: -group.path.count("."))
        own = (group.rules[bits[group.path]] for group in groups)
        return QuantizationConfig(rules=(*floats, *own, *(rule for rule in self.others if rule.bits is not None)))


def grouped(
    config: ModelConfig, params: Parameters, *, block: int | None = None, symmetric: bool = True
) -> Sensitivity:
    """The groups of a model's encoder and what they take, before any error is measured.

    `block`, `symmetric`: of grids of less than 8 bits; a group whose weights all have fewer inputs gets a block of
    these. Raises ConfigError for a model that is quantized already, and for a block that is too small, or longer than
    every weight.
    """
    try:
        templates = {bits: _template(bits, block, symmetric) for bits in CHOICES}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    usual = fitting_rules(config, QuantizationConfig(rules=default_rules(4)), defaults=len(default_rules(4)))
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    members: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in leaves.items():
        if path.startswith(ENCODER) and usual.rule(path, leaf.shape) is not None:
            members.setdefault(path.rpartition(".")[0].rpartition(".")[0], {})[path] = leaf
    inputs = {
        name: max(leaf.shape[PACKED_AXIS[_layer(path, leaf)]] for path, leaf in own.items())
        for name, own in members.items()
    }
    if block is not None and block > max(inputs.values()):
        raise ConfigError(
            f"a block of {block} does not fit the encoder: its longest weight has {max(inputs.values())} inputs"
        )
    groups = []
    for name, own in members.items():
        rules = {bits: _fitted(template, name, inputs[name]) for bits, template in templates.items()}
        sizes = {bits: sum(_bytes(path, leaf, rule) for path, leaf in own.items()) for bits, rule in rules.items()}
        groups.append(Group(name, tuple(own), sum(leaf.size for leaf in own.values()), rules, sizes))
    others = tuple(rule for rule in usual.rules if rule.bits is None or not rule.path.startswith(ENCODER))
    rest = QuantizationConfig(rules=others)
    taken = {path for group in groups for path in group.members}
    other_bytes = sum(
        _bytes(path, leaf, rest.rule(path, leaf.shape)) for path, leaf in leaves.items() if path not in taken
    )
    return Sensitivity(tuple(groups), other_bytes, others)


def measured(
    found: Sensitivity,
    hearing: Hearing,
    params: Parameters,
    whole: np.ndarray,
    progress: Callable[[float, float | None], None] | None = None,
) -> Sensitivity:
    """The same with the errors of each group, all else float, on recordings.

    `whole`: what the encoder makes of them with `params`, as `hearing.encode` gives it. `progress` is called with
    seconds of sound heard, and in all. Raises AudioError for recordings of which the encoder makes no numbers.
    """
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    errors: list[dict[Bits, float]] = [{} for _ in found.groups]
    for number, (group, bits) in enumerate(itertools.product(found.groups, CHOICES)):
        rounded = {path: _rounded(path, leaves[path], group.rules[bits]) for path in group.members}
        heard = hearing.encode(unflatten({**leaves, **rounded}))
        errors[number // len(CHOICES)][bits] = difference(whole, heard)
        if progress is not None:
            progress((number + 1) * hearing.seconds, len(errors) * len(CHOICES) * hearing.seconds)
    groups = zip(found.groups, errors, strict=True)
    return dataclasses.replace(found, groups=tuple(dataclasses.replace(group, errors=each) for group, each in groups))


def proposed_error(hearing: Hearing, params: Parameters, whole: np.ndarray, rules: QuantizationConfig) -> float:
    """The error of what is encoded, `whole` as `measured` takes it, with an encoder's weights rounded by the rules."""
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    rounded = {
        path: _rounded(path, leaf, rule)
        for path, leaf in leaves.items()
        if path.startswith(ENCODER) and (rule := rules.rule(path, leaf.shape)) is not None
    }
    return difference(whole, hearing.encode(unflatten({**leaves, **rounded})))


def spec_text(spec: QuantizationConfig) -> str:
    """Rules as the yaml file that a spec is read from, without what is as by default."""
    usual = {field.name: field.default for field in dataclasses.fields(Rule)}
    rules = [
        {name: value for name, value in to_mapping(rule).items() if name in ("path", "bits") or value != usual[name]}
        for rule in spec.rules
    ]
    return yaml.safe_dump({"rules": rules, "floats": spec.floats}, sort_keys=False, default_flow_style=None, width=120)


def picture(found: Sensitivity, bits: Mapping[str, Bits]) -> Figure:
    """Each group's error by bits, those that it gets filled. ConfigError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs matplotlib: pip install 'jaxasr[notebooks]'") from None
    figure = Figure(figsize=(9, 1.5 + 0.17 * len(found.groups)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(found.groups))
    for number, choice in enumerate(CHOICES):
        errors = [100 * group.errors[choice] for group in found.groups]
        faces = [f"C{number}" if bits[group.path] == choice else "none" for group in found.groups]
        axes.scatter(errors, rows, s=22, facecolors=faces, edgecolors=f"C{number}")
        axes.scatter([], [], s=22, color=f"C{number}", label=f"{choice} bits")
    axes.set_yticks(rows, [group.path.removeprefix("encoder.") for group in found.groups], fontsize=6)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("error of what is encoded, %, with only these weights quantized (filled: proposed)")
    axes.set_title(f"{found.size(bits) / 1e6:,.1f} MB of arrays", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(CHOICES), fontsize=8)
    return figure


def _template(bits: Bits, block: int | None, symmetric: bool) -> Rule:
    """How the defaults quantize the encoder with so many bits; 8 bits need no blocks and no zeros."""
    rules = default_rules(bits) if bits == 8 else default_rules(bits, block=block, symmetric=symmetric)
    (encoder,) = (rule for rule in rules if rule.path == f"{ENCODER}*")
    return dataclasses.replace(encoder, activations="float")


def _fitted(template: Rule, path: str, inputs: int) -> Rule:
    """The template for the weights below a path, of which the longest has so many inputs.

    A longer block is one of these inputs, as the last block of a longer weight would be; too few for a block have one
    scale as a channel.
    """
    block = template.block
    if block is not None and block > inputs:
        block = inputs if inputs >= SMALLEST_BLOCK else None
    return dataclasses.replace(template, path=f"{path}.*", block=block)


def _layer(path: str, leaf: np.ndarray) -> Layer:
    layer = layer_of(path, leaf.shape)
    assert layer is not None
    return layer


def _rounded(path: str, leaf: np.ndarray, rule: Rule) -> np.ndarray:
    with usual_settings():
        return np.asarray(quantize_array(leaf, rule, _layer(path, leaf)).dequantize())


def _bytes(path: str, leaf: np.ndarray, rule: Rule | None) -> int:
    """What a leaf takes: integers and scales, or floats as they are stored beside them."""
    if rule is None:
        return stored_float(path, leaf, "float16").nbytes
    parts = jax.tree.leaves(abstract_array(leaf.shape, rule, _layer(path, leaf)))
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)
