"""Which files among many names are FunASR's: a model.pt, or model.pb as it was called first, with its companions."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from jaxasr.convert.protocol import Candidate

EXPECTED = "a model.pt (or model.pb) of FunASR with its config.yaml and am.mvn"
WEIGHTS = ("model.pt", "model.pb")
# Beside the weights, in the order in which `models.read` takes them.
COMPANIONS = ("config.yaml", "am.mvn")
TOKENS = ("tokens.json", "tokens.txt")  # the second in directories of the first releases; or in config.yaml itself

_KIND = "FunASR model directory"


def find(
    names: Collection[PurePosixPath], precision: str | None = None, named: PurePosixPath | None = None
) -> Iterator[Candidate]:
    """The candidates among `names`, as Family.find promises: a file of weights whose companions lie beside it.

    A named file may be called otherwise, as one out of a training (model.pt.ep10).
    """
    known = set(names)
    found = [name for name in names if name.name in WEIGHTS and ".." not in name.parts] if named is None else [named]
    for name in sorted(found, key=lambda name: (len(name.parts), name.parent, name.name != WEIGHTS[0])):
        beside = [name.parent / companion for companion in COMPANIONS]
        if known.issuperset(beside) and name not in beside:
            tokens = [name.parent / each for each in TOKENS if name.parent / each in known]
            files = (name, *beside)
            yield Candidate(_KIND, files, tokens=tokens[0] if tokens else None, other_tokens=tuple(tokens[1:]))
