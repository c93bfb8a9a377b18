"""The audio files that command line arguments mean."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from jaxasr.errors import AudioError

# What `expand_paths` looks for in folders; `load` goes by content alone.
EXTENSIONS = frozenset(
    "wav wave w64 rf64 bwf flac ogg oga ogv spx opus mp3 mp2 mpga aif aiff aifc au snd caf "
    "m4a m4b mp4 mov 3gp 3g2 aac webm mka mkv wma asf amr ac3 eac3 ape wv tta tak avi flv ts mts m2ts mpg mpeg".split()
)


def expand_paths(inputs: Sequence[str]) -> list[str]:
    """The audio files that command line arguments mean, in their order.

    A folder stands for its audio files (by extension) in all its subfolders, sorted, without hidden ones and without
    following links to folders; a pattern (* ? [ ] **) for what it matches, sorted. "-" and other paths stay as they
    are, missing ones too: `load` says then what is wrong with one among many. AudioError for a folder or pattern that
    holds nothing.
    """
    found: list[str] = []
    for name in map(os.fspath, inputs):
        if name != "-" and glob.has_magic(name) and not os.path.exists(name):
            matches = sorted(glob.glob(name, recursive=True))
            files = [file for match in matches for file in (_audio_below(match) if os.path.isdir(match) else [match])]
            # data/** matches a folder and, again, what is in it.
            files = list(dict.fromkeys(files))
            if not files:
                raise AudioError(f"{name}: no audio file matches this pattern; check it, or quote it for the shell")
        elif os.path.isdir(name):
            files = _audio_below(name)
            if not files:
                raise AudioError(f"{name}: no audio file in this folder; name files of other extensions one by one")
        else:
            files = [name]
        found += files
    return found


def _audio_below(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions")

    files = []
    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            extension = os.path.splitext(name)[1].lower().lstrip(".")
            if extension in EXTENSIONS and not name.startswith("."):
                files.append(os.path.join(parent, name))
    return sorted(files)
