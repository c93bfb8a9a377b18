"""Which files among many names are NeMo's: those that end in .nemo, then exports of detectors (.onnx).

Of each kind the shallowest comes first, then the first by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from jaxasr.convert.protocol import Candidate

EXPECTED = "a .nemo archive, or a frame classifier's .onnx"

_KIND, _EXPORT = "NeMo archive (.nemo)", "export of a NeMo detector (.onnx)"
_DETECTOR = re.compile(r"(?i)(.*marblenet.*|(.*[-_.])?vad([-_.].*)?|model)\.onnx")


def find(
    names: Collection[PurePosixPath], precision: str | None = None, named: PurePosixPath | None = None
) -> Iterator[Candidate]:
    """The candidates among `names`, as Family.find promises; an archive holds its vocabulary and is float32."""
    found = [named] if named is not None else [name for name in names if ".." not in name.parts]
    found.sort(key=lambda name: (len(name.parts), name))
    yield from (Candidate(_KIND, (name,)) for name in found if name.suffix == ".nemo")
    for name in found:
        if name.suffix == ".onnx" and (named is not None or _DETECTOR.fullmatch(name.name)):
            yield Candidate(_EXPORT, (name,))
