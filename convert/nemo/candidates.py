"""Which files among many names are NeMo's: those that end in .nemo, the shallowest first, then by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from jaxasr.convert.protocol import Candidate

EXPECTED = "a .nemo archive"

_KIND = "NeMo archive (.nemo)"


def find(
    names: Collection[PurePosixPath], precision: str | None = None, named: PurePosixPath | None = None
) -> Iterator[Candidate]:
    """The candidates among `names`, as Family.find promises; an archive holds its vocabulary and is float32."""
    found = [named] if named is not None else [name for name in names if ".." not in name.parts]
    for name in sorted(found, key=lambda name: (len(name.parts), name)):
        if name.suffix == ".nemo":
            yield Candidate(_KIND, (name,))
