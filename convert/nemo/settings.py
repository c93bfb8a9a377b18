"""model_config.yaml as data: one spelling for all versions of NeMo, and typed values with the names of their keys.

Nothing is instantiated. Older files write `cls` and `params` where newer ones write `_target_` and the parameters
beside it; `${model.sample_rate}` stands for what the file says elsewhere, and may be left over where it says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from jaxasr.errors import CheckpointError, printable

NODE_LIMIT = 2_000_000  # values in all; the largest files have about 30,000, and aliases can multiply a few
DEPTH_LIMIT = 64
CHAIN_LIMIT = 8  # interpolations that lead to each other

_REFERENCE = re.compile(r"\$\{(?P<path>[A-Za-z0-9_.]+)\}")
# YAML 1.1, which PyYAML reads, takes 1e-5 for a text; OmegaConf, which wrote the file, for a number.
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, in C where it has one, with OmegaConf's numbers."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_settings(text: bytes, where: str) -> dict[str, Any]:
    """The mapping in model_config.yaml, in the newest spelling; `where` names the file in errors.

    CheckpointError for what is no yaml, no mapping, or too large.
    """
    try:
        root = yaml.load(text.decode("utf-8"), _Loader)  # noqa: S506  (a safe loader)
        if isinstance(root, Mapping) and isinstance(root.get("model"), Mapping):
            root = root["model"]  # the training program's own file, whose part this is
        if not isinstance(root, Mapping):
            raise CheckpointError(f"{where} is not a mapping of keys")
        settings: dict[str, Any] = _Newest(root).mapping(root, 0)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
        raise CheckpointError(f"{where} is not valid yaml: fetch or copy the archive again") from None
    except _TooLarge:
        raise CheckpointError(f"{where} holds more than a configuration does: refused") from None
    return settings


class _TooLarge(Exception):
    pass


class _Newest:
    """The values of a file in the newest spelling, interpolations resolved as far as the file says what they are."""

    def __init__(self, root: Mapping[Any, Any]) -> None:
        self.root, self.left = root, NODE_LIMIT

    def value(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > DEPTH_LIMIT:
            raise _TooLarge
        if isinstance(value, Mapping):
            return self.mapping(value, depth)
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        for _ in range(CHAIN_LIMIT):
            if not isinstance(value, str) or not (match := _REFERENCE.fullmatch(value)):
                break
            found = self.named(match["path"])
            if found is None or isinstance(found, (Mapping, list)):
                break
            value = found
        return value

    def mapping(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        if isinstance(mapping.get("cls"), str):
            inner = mapping.get("params") or {}
            mapping = {"_target_": mapping["cls"], **(inner if isinstance(inner, Mapping) else {})}
        return {str(key): self.value(item, depth + 1) for key, item in mapping.items()}

    def named(self, path: str) -> Any:
        """The value at a dotted path of the file, with or without the training program's `model.`; None without."""
        for parts in (path.split("."), path.removeprefix("model.").split(".")):
            node: Any = self.root
            for part in parts:
                if isinstance(node, Mapping) and part not in node and isinstance(node.get("params"), Mapping):
                    node = node["params"]
                node = node.get(part) if isinstance(node, Mapping) else None
            if node is not None:
                return node
        return None


class Section:
    """A mapping of the file, `name` being its place in it; values are checked where they are asked for."""

    def __init__(self, settings: Mapping[str, Any], name: str) -> None:
        found = settings.get(name)
        self.name = name
        self.values: Mapping[str, Any] = found if isinstance(found, Mapping) else {}

    @property
    def target(self) -> str:
        """The last part of `_target_`, the name of NeMo's class; "" where none is stated."""
        return last_part(self.values.get("_target_"))

    def section(self, name: str) -> Section:
        """A mapping inside, empty where there is none."""
        inner = Section(self.values, name)
        inner.name = f"{self.name}.{name}"
        return inner

    def integer(self, key: str, default: int) -> int:
        """A whole number; the default where there is none, or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
            raise self._wrong(key, "a whole number")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A number; the default where there is none, or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; the default where there is none, or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A text; the default where there is none, or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of texts; None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of texts")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers; None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self._wrong(key, "a list of whole numbers")
        return tuple(value)

    def refuse(self, key: str, why: str) -> CheckpointError:
        """The error for a value that no model here can follow."""
        return CheckpointError(f"{self.name}.{key} is {printable(repr(self.values.get(key)), 80)}: {why}")

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        return self.refuse(key, f"model_config.yaml should have {wanted} there")


def is_pair(value: Any) -> bool:
    """Whether a value is two whole numbers, as contexts are written."""
    return isinstance(value, list) and len(value) == 2 and all(type(frames) is int for frames in value)


def last_part(target: Any) -> str:
    """The class in a dotted name such as nemo.collections.asr.modules.ConformerEncoder; "" for what is no text."""
    return target.rpartition(".")[2] if isinstance(target, str) else ""
