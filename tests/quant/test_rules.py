from __future__ import annotations

from typing import Any

import pytest

from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.errors import ConfigError
from jaxasr.quant.rules import QuantizationConfig, Rule, default_rules, layer_of

SHAPES = {
    "encoder.embed.out.kernel": (640, 64),
    "encoder.layers.0.in_proj.kernel": (64, 256),
    "encoder.layers.0.in_proj.bias": (256,),
    "encoder.layers.0.conv.depthwise.kernel": (31, 1, 64),
    "encoder.blocks.0.kernel": (5, 64, 64),
    "transducer.predictor.embedding": (500, 64),
    "transducer.output.kernel": (64, 500),
}


def bits_of(config: QuantizationConfig) -> dict[str, int | None]:
    rules = {path: config.rule(path, shape) for path, shape in SHAPES.items()}
    return {path: rule.bits if rule else None for path, rule in rules.items()}


def test_kinds_of_weights() -> None:
    kinds = ["dense", "dense", None, "depthwise", "convolution", "embedding", "dense"]
    assert [layer_of(path, shape) for path, shape in SHAPES.items()] == kinds


def test_defaults() -> None:
    config = QuantizationConfig(rules=default_rules(4, block=64))
    assert list(bits_of(config).values()) == [8, 4, None, None, 4, 8, 8]
    # The front end of another family is not in this model.
    assert "encoder.subsample.*" not in [rule.path for rule in config.without_idle_rules(SHAPES, 0).rules]
    assert config.without_idle_rules(SHAPES, 0).fault(SHAPES) is None


def test_the_first_rule_that_fits_decides() -> None:
    config = QuantizationConfig(rules=(Rule(path="*.in_proj.*", bits=None), *default_rules(2)))
    assert bits_of(config)["encoder.layers.0.in_proj.kernel"] is None
    assert bits_of(config)["encoder.blocks.0.kernel"] == 2


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"path": "decoder.*", "bits": 4}], "'decoder.*' fits no kernel or embedding"),
        ([{"path": "*.bias", "bits": 4}], "'*.bias' fits no kernel or embedding"),
        ([{"path": "*", "bits": 4}, {"path": "encoder.*", "bits": 8}], "comes after rules that fit all"),
        ([{"path": "encoder.*", "bits": 4, "block": 1024}], "a block of 1024 does not fit"),
    ],
)
def test_rules_that_do_not_fit_the_model(rules: list[dict[str, Any]], words: str) -> None:
    config = from_mapping(QuantizationConfig, {"rules": rules}, "spec.yaml")
    assert words in str(config.fault(SHAPES))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"path": "*", "bits": 5}, "bits: 5 is none of 8, 4, 3, 2"),
        ({"path": "*", "bits": 4, "block": 4}, "block must be at least 8"),
        ({"path": "*", "bits": 4, "block": 64, "per": "tensor"}, "exclude each other"),
        ({"path": "*", "bits": 4, "percentile": 20.0}, "percentile must lie above 50"),
        ({"path": "*", "bits": None}, "no rule quantizes anything"),
        ({"path": "*"}, "missing key bits"),
    ],
)
def test_rules_that_nothing_fits(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        from_mapping(QuantizationConfig, {"rules": [rule]}, "spec.yaml")
    assert "spec.yaml" in str(caught.value)


def test_rules_are_written_and_read() -> None:
    config = QuantizationConfig(rules=default_rules(3, block=32, symmetric=False))
    assert from_mapping(QuantizationConfig, to_mapping(config), "config.yaml") == config
