"""The table of families, and the search for a checkpoint of any of them: in a folder, or among a repository's names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from jaxasr.convert import funasr, hugging_face, icefall, nemo
from jaxasr.convert.protocol import PRECISIONS, Candidate, Family
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.files import refuse_pointer

# The only list of families. Several may claim a file whose name says little: one that knows it by its content is taken,
# else the first, so that the one that asks for most companions stands first.
FAMILIES: dict[str, Family] = {
    family.name: family for family in (funasr.FAMILY, icefall.FAMILY, nemo.FAMILY, hugging_face.FAMILY)
}

DEPTH = 3  # folders below the one named that are searched, as publishers nest them: exp/, data/lang/, snapshots


def find(
    names: Collection[PurePosixPath],
    precision: str | None = None,
    named: PurePosixPath | None = None,
    family: str | None = None,
) -> Iterator[Candidate]:
    """The checkpoints among `names`, the preferred one first: by the order of FAMILIES, then by the family's own.

    `named`, `precision`: as Family.find takes them. `family`: the only one to be asked.
    """
    for each in _asked(family):
        for candidate in each.find(names, precision, named):
            yield dataclasses.replace(candidate, family=each.name)


def detect(
    path: Path, precision: str | None = None, family: str | None = None
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """The checkpoint at `path`, a file or the folder that holds it, and those passed over.

    ConfigError for an unknown precision or family, CheckpointError where there is no checkpoint.
    """
    if precision not in (None, *PRECISIONS):
        raise ConfigError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a checkpoint file or the folder that holds it")
    if path.is_file():
        refuse_pointer(path, CheckpointError)
        folder, named = path.parent, PurePosixPath(path.name)
    else:
        folder, named = path, None
    names = list_names(folder, 0 if named else DEPTH)
    for each in _asked(family):
        names |= _companions(folder, each.companions)
    try:
        candidates = [dataclasses.replace(each, folder=folder) for each in find(names, precision, named, family)]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not candidates:
        holds = "is" if named else "holds"
        raise CheckpointError(f"{path} {holds} no checkpoint that jaxasr knows: expected {expected(family)}")
    chosen, *others = _claimed_once(candidates)
    return chosen, tuple(others)


def _claimed_once(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates, of those of several families over one file one: that which owns its content, else the first."""
    chosen: list[Candidate] = []
    claims: dict[PurePosixPath, int] = {}  # a file to the place of the candidate that has it
    for candidate in candidates:
        places = {claims[file] for file in candidate.files if file in claims}
        rivals = [place for place in places if chosen[place].family != candidate.family]
        owns = FAMILIES[candidate.family].owns
        if not rivals:
            claims.update(dict.fromkeys(candidate.files, len(chosen)))
            chosen.append(candidate)
        elif owns is not None and owns(candidate):
            chosen[min(rivals)] = candidate
    return chosen


def expected(family: str | None = None) -> str:
    """What checkpoints of the families consist of, for messages."""
    return "; or ".join(each.expected for each in _asked(family))


def refuse(path: Path) -> None:
    """CheckpointError for a file of a repository by which any family refuses all of it."""
    for each in FAMILIES.values():
        if each.refuse is not None:
            each.refuse(path)


def list_names(folder: Path, depth: int) -> set[PurePosixPath]:
    """The files in `folder` and up to `depth` folders below it, relative to `folder`.

    Hidden folders and links to folders are not entered; what cannot be listed counts as empty.
    """
    names: set[PurePosixPath] = set()
    level = [PurePosixPath()]
    for _ in range(depth + 1):
        deeper: list[PurePosixPath] = []
        for inside in level:
            with contextlib.suppress(OSError), os.scandir(folder / inside) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        deeper += [] if entry.name.startswith(".") else [inside / entry.name]
                    elif entry.is_file():
                        names.add(inside / entry.name)
        level = deeper
    return names


def _companions(folder: Path, patterns: tuple[str, ...]) -> set[PurePosixPath]:
    """Files of `patterns` in `folder` and in the two above it, relative to `folder`."""
    found = set()
    for pattern in patterns:
        for above in map(PurePosixPath, ("", "..", "../..")):
            place = folder / above
            found |= {above / path.relative_to(place).as_posix() for path in place.glob(pattern) if path.is_file()}
    return found


def _asked(family: str | None) -> list[Family]:
    if family is None:
        return list(FAMILIES.values())
    if family not in FAMILIES:
        raise ConfigError(f"family {family!r} is none of {', '.join(FAMILIES)}")
    return [FAMILIES[family]]
