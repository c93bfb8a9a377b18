from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    widths: tuple[int, ...] = ()
    kind: Literal["a", "b"] = "a"
    maybe: Inner | None = None

    def __post_init__(self) -> None:
        if self.inner.size < 0:
            raise ValueError("size must not be negative")


def test_there_and_back() -> None:
    config = Outer(Inner(3, 0.25), (1, 2), "b", Inner(4))
    assert from_mapping(Outer, to_mapping(config), "x.yaml") == config


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"inner": {"size": 1}, "widht": [1]}, "widht"),
        ({"inner": {"size": 1, "colour": 2}}, "colour"),
        ({"widths": [1]}, "inner"),
        ({"inner": {"size": "1"}}, "size"),
        ({"inner": {"size": True}}, "size"),
        ({"inner": {"size": 1}, "widths": [1, "2"]}, r"widths\[1\]"),
        ({"inner": {"size": 1}, "widths": 3}, "widths"),
        ({"inner": {"size": 1}, "kind": "c"}, "kind"),
        ({"inner": {"size": -1}}, "negative"),
        ({"inner": 3}, "inner"),
        ([], "mapping"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(mapping: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        from_mapping(Outer, mapping, "x.yaml")
    assert "x.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_whole_numbers_stand_for_floats() -> None:
    assert from_mapping(Inner, {"size": 1, "share": 2}, "x").share == 2.0
