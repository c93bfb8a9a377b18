"""jaxasr: published speech recognisers in JAX and Flax."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and the module that holds each; resolved on first use, so that `import jaxasr` stays light.
_HOME = {
    "load_model": "jaxasr.loading",
    "Recognizer": "jaxasr.recognizer",
    "Transcript": "jaxasr.recognizer",
    "Failure": "jaxasr.recognizer",
    "convert_checkpoint": "jaxasr.convert",
    "train": "jaxasr.training.train",
    "JaxasrError": "jaxasr.errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jaxasr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
