"""One yaml per published model."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def named_configs() -> dict[str, Path]:
    """The configurations of published models by name."""
    folder = resources.files("jaxasr.configs")
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if str(f).endswith(".yaml")}
