"""What a name of a published model may look like, and what it stands for.

    NAME[@COMMIT][:PRECISION]    reazonspeech-k2-v2    reazonspeech-k2-v2:int8    org/repo@<40 hex digits>

NAME is a name of configs/published, the repository that it stands for, or any `org/repo` of the hub.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from jaxasr.convert.hub.published import PublishedModel, published_models
from jaxasr.convert.protocol import PRECISIONS
from jaxasr.errors import DownloadError

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"(?P<name>[^@:]+)(@(?P<commit>[^:]*))?(:(?P<precision>.*))?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Request:
    """What a name stands for; `model` is None for a repository that is not among the published models."""

    name: str
    repository: str
    revision: str | None
    precision: str
    model: PublishedModel | None

    @property
    def folder(self) -> str:
        return self.repository.replace("/", "--")


def parse(name: str, precision: str | None = None) -> Request:
    """What `name` stands for; a precision in the name decides. DownloadError for a name that stands for nothing."""
    match = _NAME.fullmatch(name.strip())
    if not match:
        raise DownloadError(f"{name!r} is no model name: write NAME, NAME:PRECISION or org/repo@COMMIT")
    base, commit = match["name"], match["commit"]
    wanted = match["precision"] or precision or "float32"
    wanted = {"fp32": "float32"}.get(wanted, wanted)
    if commit is not None and not COMMIT.fullmatch(commit):
        raise DownloadError(f"{name}: after @ stands a whole commit id of 40 hex digits, not {commit!r}")
    model = next(
        (m for m in published_models() if base in (m.name, m.repository, PurePosixPath(m.repository).name)), None
    )
    if model is None and not _REPOSITORY.fullmatch(base):
        raise DownloadError(f"unknown model {name!r}: {_suggest(base)}")
    if wanted not in (model.precisions if model else PRECISIONS):
        have = ", ".join(model.precisions if model else PRECISIONS)
        raise DownloadError(f"{base} has no precision {wanted!r}; it has {have}")
    if model is None:
        _refuse_near_miss(base, commit)
        return Request(base, base, commit, wanted, None)
    if commit is not None and commit != model.revision:
        # Another commit than the listed one: its files may be others.
        model = replace(model, revision=commit, pinned={})
    return Request(base, model.repository, model.revision, wanted, model)


def _suggest(name: str) -> str:
    models = published_models()
    known = [model.name for model in models] + [model.repository for model in models]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(m.name for m in models)}."
    return f"{hint} A model directory written by `jaxasr convert` or a hub repository org/repo is taken too"


def _refuse_near_miss(repository: str, commit: str | None) -> None:
    """A name one or two letters off a listed repository is a typo or a trap; only a stated commit shows intent."""
    for model in published_models():
        if commit is None and _distance(repository.casefold(), model.repository.casefold()) <= 2:
            raise DownloadError(
                f"{repository} is not listed but {model.repository} is: did you mean that? "
                f"To use it all the same, name its commit: {repository}@COMMIT"
            )


def _distance(left: str, right: str) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
