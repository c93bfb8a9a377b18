"""Few rules that say of every weight what is wanted of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxasr.quant.rules import QuantizationConfig, Rule, stated_rules

EIGHT = Rule(path="*", bits=8, per="tensor")
FOUR = Rule(path="*", bits=4)


def given(weights: dict[str, tuple[tuple[int, ...], Rule | None]]) -> tuple[list[str], bool]:
    """The patterns, and whether each weight gets its own rule by them."""
    rules = stated_rules(weights)
    config = QuantizationConfig(rules=rules)
    found: dict[str, Any] = {path: config.rule(path, shape) for path, (shape, _) in weights.items()}
    plain = {path: rule and dataclasses.replace(rule, path="*", layer=None) for path, rule in found.items()}
    return [rule.path for rule in rules], plain == {path: rule for path, (_, rule) in weights.items()}


def layer(number: int, **others: Rule | None) -> dict[str, tuple[tuple[int, ...], Rule | None]]:
    kernels = {"in_proj": EIGHT, "out_proj": EIGHT} | others
    dense = {f"encoder.layers.{number}.{name}.kernel": ((4, 4), rule) for name, rule in kernels.items()}
    return {**dense, f"encoder.layers.{number}.depthwise.kernel": ((3, 1, 4), None)}


def test_what_agrees_is_one_pattern() -> None:
    weights = {**layer(0), **layer(1), "head.output.kernel": ((4, 9), EIGHT), "head.output.bias": ((9,), None)}
    assert given(weights) == (["*"], True)
    weights["head.inner.kernel"] = ((4, 4), None)
    assert given(weights) == (["encoder.*", "head.output.kernel"], True)


def test_what_differs_within_a_layer_has_its_own_pattern_for_all_layers() -> None:
    weights = {**layer(0, out_proj=FOUR), **layer(1, out_proj=FOUR)}
    patterns, right = given(weights)
    assert (sorted(patterns), right) == (["encoder.layers.*.in_proj.kernel", "encoder.layers.*.out_proj.kernel"], True)


def test_a_layer_that_differs_from_the_others_is_named() -> None:
    weights = {**layer(0), **layer(1, in_proj=None), **layer(2)}
    patterns, right = given(weights)
    assert right and "encoder.layers.*.out_proj.kernel" in patterns and "encoder.layers.0.in_proj.kernel" in patterns


def test_a_pattern_that_reaches_too_far_gives_way_to_paths() -> None:
    weights: dict[str, tuple[tuple[int, ...], Rule | None]] = {
        "encoder.0.inner.kernel": ((4, 4), EIGHT),
        "encoder.1.inner.kernel": ((4, 4), EIGHT),
        "encoder.more.0.inner.kernel": ((4, 4), None),
    }
    assert given(weights) == (["encoder.0.inner.kernel", "encoder.1.inner.kernel"], True)
