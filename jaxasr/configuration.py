"""Frozen dataclasses to plain mappings and back, strictly: what yaml files and manifests are checked with.

A field that may hold one of several dataclasses is written `Annotated[Protocol, TABLE]`. The table is the union: its
rows are the only list of the members, and the key `kind` of a mapping chooses the row.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, TypeVar

from jaxasr.errors import ConfigError

Config = TypeVar("Config")
Made = TypeVar("Made")


class Table(dict[str, tuple[type[Any], Callable[..., Made]]], Generic[Made]):
    """A union of configurations: `kind` to (configuration class, what is made from such a configuration).

    The class is a dataclass whose first field is `kind`. Whoever adds a row, a test or another package, adds a member.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]  # unions of annotations are hashed; a table equals itself only

    def make(self, config: Any, *arguments: Any, **options: Any) -> Made:
        """What the row of `config.kind` makes from `config` and the other arguments."""
        _, build = self[config.kind]
        return build(config, *arguments, **options)

    def read(self, value: Any, where: str) -> Any:
        """The member that the mapping `value` describes; ConfigError without a kind, or with one that has no row."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping with a kind ({', '.join(self)}), not {value!r}")
        if "kind" not in value:
            raise ConfigError(f"{where}: missing key kind; known are {', '.join(self)}")
        if not isinstance(value["kind"], str) or value["kind"] not in self:
            raise ConfigError(f"{where}: kind {value['kind']!r} is none of {', '.join(self)}")
        cls, _ = self[value["kind"]]
        return from_mapping(cls, value, where)


def deferred(module: str, name: str) -> Callable[..., Any]:
    """What `name` of `module` makes; the module is imported when the first is made.

    For rows of tables: a configuration can be read without what its modules need.
    """

    def make(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **options)

    make.__module__, make.__qualname__ = module, name
    return make


def from_mapping(cls: type[Config], mapping: Any, where: str) -> Config:
    """Build the dataclass `cls` from plain `mapping`.

    Fields may be dataclasses, unions by `kind`, tuples, mappings, and optional. `where` names the file or option in
    messages. Unknown and missing keys and values of another type raise ConfigError.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: {cls.__name__} must be a mapping of keys, not {type(mapping).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in mapping if key not in fields)
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in mapping and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(missing)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_mapping(config: Any) -> Any:
    """The inverse of `from_mapping`: only dicts, lists and scalars, as yaml and json write them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_mapping(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_mapping(value) for value in config]
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
    return config


def comes_from(package: str, config: Any) -> bool:
    """Whether `package` defines all classes of a configuration and all that its unions' tables make from them."""
    if not _is_inside(package, type(config)):
        return False
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            rows = [table[getattr(value, "kind", "")] for table in _tables(hints[field.name])]
            if not (comes_from(package, value) and all(_is_inside(package, build) for _, build in rows)):
                return False
    return True


def _is_inside(package: str, thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] == package


def _tables(hint: Any) -> list[Table[Any]]:
    """The table of a union's hint, which may be optional."""
    if typing.get_origin(hint) is Annotated:
        return [extra for extra in hint.__metadata__ if isinstance(extra, Table)]
    return [table for option in typing.get_args(hint) for table in _tables(option)]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        (hint,) = [option for option in options if option is not type(None)]  # of several members a Table is the union
        return _convert(hint, value, where)
    if origin is Annotated:
        (table,) = [extra for extra in hint.__metadata__ if isinstance(extra, Table)]
        return table.read(value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"{where}: {value!r} is none of {choices}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        elements = typing.get_args(hint)
        if elements[-1] is Ellipsis:
            elements = elements[:1] * len(value)
        elif len(elements) != len(value):
            raise ConfigError(f"{where}: expected {len(elements)} values, got {len(value)}: {list(value)}")
        pairs = zip(elements, value, strict=True)
        return tuple(_convert(element, item, f"{where}[{index}]") for index, (element, item) in enumerate(pairs))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        keys, values = typing.get_args(hint)
        return {_convert(keys, key, where): _convert(values, item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
