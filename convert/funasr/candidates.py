"""Which files among many names are FunASR's: a model.pt, or model.pb as it was called first, with its companions.

Of detectors of speech their exports (.onnx) too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from jaxasr.convert.protocol import Candidate

EXPECTED = "a model.pt (or model.pb) of FunASR, or its detector's .onnx, with its config.yaml and am.mvn"
WEIGHTS = ("model.pt", "model.pb", "vad.pb")
# Beside the weights, in the order in which `models.read` takes them; each under its name and that of first releases.
COMPANIONS = (("config.yaml", "vad.yaml"), ("am.mvn", "vad.mvn"))
TOKENS = ("tokens.json", "tokens.txt")  # the second in directories of the first releases; or in config.yaml itself

_KIND, _EXPORT = "FunASR model directory", "export of a FunASR detector (.onnx)"
_ONNX = re.compile(r"(?i)(model|.*vad).*\.onnx")
_QUANTIZED = re.compile(r"(?i).*(quant|int8).*")


def find(
    names: Collection[PurePosixPath], precision: str | None = None, named: PurePosixPath | None = None
) -> Iterator[Candidate]:
    """The candidates among `names`, as Family.find promises: a file of weights whose companions lie beside it.

    A named file may be called otherwise, as one out of a training (model.pt.ep10). Of a folder's files exports come
    last, of these the quantized ones, or with the precision "int8" first.
    """
    known = set(names)
    found = [name for name in names if _is_weights(name) and ".." not in name.parts] if named is None else [named]

    def order(name: PurePosixPath) -> tuple[int, PurePosixPath, bool, bool, bool, str]:
        quantized = _is_quantized(name)
        wanted = quantized == (precision or "float32").startswith("int8")
        return (
            len(name.parts), name.parent, precision is not None and not wanted, name.suffix == ".onnx", quantized,
            "" if name.name == WEIGHTS[0] else name.name,
        )  # fmt: skip

    for name in sorted(found, key=order):
        beside = [
            next((name.parent / each for each in both if name.parent / each in known), None) for both in COMPANIONS
        ]
        config, statistics = beside
        if config is None or statistics is None or name in beside:
            continue
        tokens = [name.parent / each for each in TOKENS if name.parent / each in known]
        yield Candidate(
            _EXPORT if name.suffix == ".onnx" else _KIND,
            (name, config, statistics),
            "int8" if _is_quantized(name) else "float32",
            tokens=tokens[0] if tokens else None,
            other_tokens=tuple(tokens[1:]),
        )


def _is_weights(name: PurePosixPath) -> bool:
    return name.name in WEIGHTS or _ONNX.fullmatch(name.name) is not None


def _is_quantized(name: PurePosixPath) -> bool:
    return name.suffix == ".onnx" and _QUANTIZED.fullmatch(name.name) is not None
