from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Protocol

import pytest

from jaxasr.configuration import Table, comes_from, from_mapping, to_mapping
from jaxasr.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


class Shape(Protocol):
    @property
    def kind(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    side: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


SHAPES: Table[str] = Table(
    {
        "square": (Square, lambda config, unit: f"{config.side} {unit}"),
        "circle": (Circle, lambda config, unit: f"{config.radius} {unit} round"),
    }
)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    widths: tuple[int, ...] = ()
    kind: Literal["a", "b"] = "a"
    maybe: Inner | None = None
    shape: Annotated[Shape, SHAPES] = Circle()
    other: Annotated[Shape, SHAPES] | None = None
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.inner.size < 0:
            raise ValueError("size must not be negative")


def test_there_and_back() -> None:
    config = Outer(Inner(3, 0.25), (1, 2), "b", Inner(4), Square(side=2), Circle(radius=0.5), (0.25, 0.5))
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
        ({"inner": {"size": 1}, "shape": {"side": 2}}, "shape: missing key kind; known are square, circle"),
        ({"inner": {"size": 1}, "shape": {"kind": "oval"}}, "shape: kind 'oval' is none of square, circle"),
        ({"inner": {"size": 1}, "shape": {"kind": ["square"]}}, "is none of square, circle"),
        ({"inner": {"size": 1}, "shape": "square"}, "shape must be a mapping with a kind"),
        ({"inner": {"size": 1}, "shape": {"kind": "square", "radius": 1}}, "shape: unknown key radius"),
        ({"inner": {"size": 1}, "other": {"kind": "square"}}, "other: missing key side"),
        ({"inner": {"size": 1}, "span": [1.0]}, "span: expected 2 values, got 1"),
        ({"inner": {"size": 1}, "span": [1.0, 2.0, 3.0]}, "span: expected 2 values, got 3"),
        ({"inner": {"size": 1}, "span": [1.0, "2"]}, r"span\[1\]"),
        ([], "mapping"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(mapping: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        from_mapping(Outer, mapping, "x.yaml")
    assert "x.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_whole_numbers_stand_for_floats() -> None:
    assert from_mapping(Inner, {"size": 1, "share": 2}, "x").share == 2.0


def test_a_row_makes_what_its_kind_says() -> None:
    assert SHAPES.make(Square(side=3), "m") == "3 m"
    outer = from_mapping(Outer, {"inner": {"size": 1}, "other": {"kind": "circle", "radius": 2}}, "x")
    assert SHAPES.make(outer.other, unit="m") == "2.0 m round"


def test_whoever_adds_a_row_adds_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Line:
        kind: Literal["line"] = "line"

    mapping: dict[str, Any] = {"inner": {"size": 1}, "shape": {"kind": "line"}}
    with pytest.raises(ConfigError, match="'line' is none of square, circle"):
        from_mapping(Outer, mapping, "x")
    monkeypatch.setitem(SHAPES, "line", (Line, lambda config: "a line"))
    assert SHAPES.make(from_mapping(Outer, mapping, "x").shape) == "a line"


def test_a_configuration_comes_from_the_package_of_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, package = Inner(1), __name__.partition(".")[0]
    for config in (inner, Outer(inner), Outer(inner, other=Square(side=2))):
        assert comes_from(package, config) and not comes_from("another", config)
    monkeypatch.setitem(SHAPES, "square", (Square, dataclasses.replace))
    assert comes_from(package, Outer(inner, maybe=inner))
    assert not comes_from(package, Outer(inner, other=Square(side=2)))
    monkeypatch.setattr(Circle, "__module__", "typing")
    assert not comes_from(package, Outer(inner, maybe=inner))
    assert comes_from(package, inner)
