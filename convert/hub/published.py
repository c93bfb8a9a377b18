"""Published checkpoints by name: where each lies on the hub, which commit and hashes are pinned, its licence.

The rows are configs/published/NAME.yaml. A revision or hash stands there only where public documents state it for the
hub's own copy of the file. Where none was known, the first download takes the newest commit, is checked against the
hash that the hub states, and is pinned in the user's cache (downloads.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jaxasr.configuration import from_mapping
from jaxasr.files import read_yaml


@dataclass(frozen=True)
class Pin:
    """What is known of a file: its size in bytes, its sha256 in hex."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One published checkpoint.

    `name` is ours, `repository` the hub's org/name, `revision` a whole commit id. `licence`: as the repository states
    it; "not stated" where it states none, "see the repository" where we do not know. `family`: of converters, a name of
    FAMILIES. `config`: NAME of configs/, where the checkpoint does not say everything. `precisions`: the paths in the
    repository that make a whole checkpoint, by precision. `pinned`: what is known of some of these files, by path.
    """

    name: str
    repository: str
    revision: str | None = None
    licence: str
    family: str
    config: str | None = None
    precisions: Mapping[str, tuple[str, ...]]
    pinned: Mapping[str, Pin] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = {path for files in self.precisions.values() for path in files}
        if unknown := sorted(set(self.pinned) - paths):
            raise ValueError(f"pinned: {', '.join(unknown)} is in no precision")

    def pin(self, path: str) -> Pin:
        """What is known of a file of the repository."""
        return self.pinned.get(path, Pin())


@functools.cache
def published_models() -> tuple[PublishedModel, ...]:
    """All rows, by name. Raises ConfigError for a file that is none."""
    entries = [Path(str(entry)) for entry in resources.files("jaxasr.configs.published").iterdir()]
    return tuple(
        from_mapping(PublishedModel, {"name": path.stem, **read_yaml(path)}, path.name)
        for path in sorted(entries, key=lambda path: path.stem)
        if path.suffix == ".yaml"
    )
