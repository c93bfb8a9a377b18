"""Which file of the output folder each recording of a run gets, and what becomes of files that stand there already.

A recording's file is called after its stem. Recordings of one stem are told apart by more of their paths. A recording
whose file of such a longer name stands in the folder, from an earlier run over more recordings, keeps that name.
Nothing says of which recording "x.txt" is, so a line tells whatever is left out or replaced.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import compress
from pathlib import Path

from jaxasr.cli.progress import say
from jaxasr.errors import ConfigError, listing, printable
from jaxasr.files import reason

_STEM = 0  # levels of naming: 0 the stem, 1 the file's name, 2 folder and file name, and so on
_LONGEST = 255  # bytes of a file's name on most file systems


def prepare_folder(folder: Path) -> list[str]:
    """Make the folder if it is missing; the names that it holds. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.listdir(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the folder cannot be made or read ({reason(error)}); give another --output"
        ) from None


def named_once(inputs: Sequence[str]) -> list[str]:
    """The inputs without those that name the file of an earlier one, of which a line tells."""
    first: dict[str, str] = {}
    again: list[str] = []
    for name in inputs:
        whole = name if name == "-" else os.path.abspath(name)
        if whole in first:
            again.append(first[whole])
        first.setdefault(whole, name)
    if again:
        twice = list(dict.fromkeys(again))
        say(f"{_recordings(len(twice))} transcribed once, though named more often: {listing(twice)}")
    return list(first.values())


def file_names(inputs: Sequence[str], suffix: str, existing: Collection[str] = ()) -> list[str]:
    """A file name for each input, in a folder for all that holds the names `existing`: its stem and the suffix.

    Inputs of one stem are told apart by their whole names ("a.wav.txt", "a.mp3.txt"), then by the folders above them
    ("x_a.wav.txt"), then by numbers. Case does not count, nor how accents are encoded, as on some file systems. An
    input whose longer name is among `existing` keeps the longest such name, unless another input is called that.
    """
    return [output_name(stem, suffix) for stem in _stems(inputs, suffix, existing)]


def without_existing(
    inputs: Sequence[str], targets: Sequence[Path], *, skip_existing: bool
) -> tuple[list[str], list[Path]]:
    """The inputs to transcribe with their targets: all, or with `skip_existing` those whose target does not exist.

    A line tells of what is left out, or will be replaced. Raises ConfigError for a target that is a folder.
    """
    standing = [target.exists() for target in targets]
    found = list(compress(targets, standing))
    for target in found:
        if target.is_dir():
            raise ConfigError(f"{target}: is a folder where a file is to be written; give another --output")
    if not found:
        return list(inputs), list(targets)
    folder = printable(found[0].parent)
    if not skip_existing:
        files = f"{len(found):,} file{'s' * (len(found) > 1)} of an earlier run"
        which = listing(target.name for target in found)
        say(f"{folder}: {files} will be replaced: {which}; --skip-existing keeps such files")
        return list(inputs), list(targets)
    left_out = zip(compress(inputs, standing), found, strict=True)
    which = listing(f"{source} ({target.name})" for source, target in left_out)
    why = "as their files exist" if len(found) > 1 else "as its file exists"
    say(
        f"{folder}: {_recordings(len(found))} left out, {why}: {which}; where a file is of another recording, give "
        "another --output"
    )
    missing = [not stands for stands in standing]
    return list(compress(inputs, missing)), list(compress(targets, missing))


def output_name(stem: str, suffix: str) -> str:
    """The name of an output file: `stem` with `suffix` (".txt"), of which a stem too long for a file's name is cut.

    What is cut off is told apart by eight hex digits of the whole stem's SHA-256.
    """
    room = _LONGEST - len(os.fsencode(suffix))
    if len(os.fsencode(stem)) <= room:
        return stem + suffix
    mark = "-" + hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
    while len(os.fsencode(stem)) > room - len(mark):
        stem = stem[:-1]
    return stem + mark + suffix


def _recordings(number: int) -> str:
    return f"{number:,} recording{'s are' if number > 1 else ' is'}"


def _stems(inputs: Sequence[str], suffix: str, existing: Collection[str]) -> list[str]:
    """What each input's output is called before the suffix."""
    paths = [("stdin",) if name == "-" else Path(os.path.abspath(name)).parts[1:] for name in inputs]
    levels = _tell_apart(paths, [_STEM] * len(paths))
    claimed = {_key(_spelled(parts, level)) for parts, level in zip(paths, levels, strict=True)}
    standing = {_key(name) for name in existing}
    for i, parts in enumerate(paths):
        for level in range(len(parts), levels[i], -1):
            name = _spelled(parts, level)
            if _key(name) not in claimed and _key(output_name(name, suffix)) in standing:
                levels[i] = level
                break
    taken: set[str] = set()
    unique = []
    for parts, level in zip(paths, _tell_apart(paths, levels), strict=True):
        name = stem = _spelled(parts, level)
        for number in itertools.count(2):
            if _key(name) not in taken:
                break
            name = f"{stem}-{number}"
        taken.add(_key(name))
        unique.append(name)
    return unique


def _tell_apart(paths: Sequence[tuple[str, ...]], levels: list[int]) -> list[int]:
    """The least levels, from `levels` up, at which no two paths are spelled alike, as far as there are any."""
    levels = list(levels)
    while True:
        names = [_key(_spelled(parts, level)) for parts, level in zip(paths, levels, strict=True)]
        counts = Counter(names)
        clashing = [i for i, name in enumerate(names) if counts[name] > 1 and levels[i] < len(paths[i])]
        if not clashing:
            return levels
        for i in clashing:
            levels[i] += 1


def _spelled(parts: tuple[str, ...], level: int) -> str:
    return Path(parts[-1]).stem if level == _STEM else "_".join(parts[-level:])


def _key(name: str) -> str:
    """What two names share that some file system takes for one."""
    return unicodedata.normalize("NFC", name.casefold())
