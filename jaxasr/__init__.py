"""jaxasr: published speech recognisers in JAX and Flax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxasr.convert import convert_checkpoint as convert_checkpoint
    from jaxasr.errors import JaxasrError as JaxasrError
    from jaxasr.loading import load_detector as load_detector
    from jaxasr.loading import load_model as load_model
    from jaxasr.process import configure_process as configure_process
    from jaxasr.quantizing import quantize as quantize
    from jaxasr.recognizer import Recognizer as Recognizer
    from jaxasr.streaming import Stream as Stream
    from jaxasr.streaming import Streams as Streams
    from jaxasr.training.train import train as train
    from jaxasr.transcripts import Failure as Failure
    from jaxasr.transcripts import Segment as Segment
    from jaxasr.transcripts import Transcript as Transcript
    from jaxasr.transcripts import Word as Word

__version__ = "0.1.0"

# Public names and the module that holds each; resolved on first use, so that `import jaxasr` stays light.
_HOME = {
    "load_model": "jaxasr.loading",
    "load_detector": "jaxasr.loading",
    "Recognizer": "jaxasr.recognizer",
    "Stream": "jaxasr.streaming",
    "Streams": "jaxasr.streaming",
    "Transcript": "jaxasr.transcripts",
    "Segment": "jaxasr.transcripts",
    "Word": "jaxasr.transcripts",
    "Failure": "jaxasr.transcripts",
    "convert_checkpoint": "jaxasr.convert",
    "train": "jaxasr.training.train",
    "quantize": "jaxasr.quantizing",
    "configure_process": "jaxasr.process",
    "JaxasrError": "jaxasr.errors",
}
__all__ = ["__version__", *_HOME]


if not TYPE_CHECKING:  # a checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        raise AttributeError(f"module 'jaxasr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
