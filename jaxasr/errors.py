"""The errors that jaxasr raises on purpose; every message is one line that says what is wrong and what to do."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

NAME_SHOWN = 200  # characters of one entry of a list


def printable(text: str | os.PathLike[str], most: int | None = None) -> str:
    """A foreign name or line as it may reach a terminal: one line, in which nothing is a command.

    Control and format characters, line breaks and bytes that are no text are escaped as Python writes them; letters of
    all scripts, spaces and backslashes stay, so that a second pass changes nothing. Of more than `most` characters the
    first are kept, with an ellipsis for the rest.
    """
    whole = os.fspath(text)
    kept = whole if most is None or len(whole) <= most else whole[: most - 1] + "…"
    return kept if kept.isprintable() else "".join(map(_escaped, kept))


def listing(names: Iterable[str], most: int = 8, separator: str = ", ") -> str:
    """`names` in one line, each printable and of at most NAME_SHOWN characters; after `most` of them a count."""
    shown = [printable(name, NAME_SHOWN) if number < most else "" for number, name in enumerate(names)]
    left = len(shown) - most
    return separator.join(shown[:most]) + (f" and {left:,} more" if left > 0 else "")


class JaxasrError(Exception):
    """Base of every error that a user may meet; the command line prints its message without a traceback.

    The message is kept as `printable` makes it, whatever names it quotes. A line break before an indent is the
    message's own and becomes a space.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(re.sub(r"[ \t]*\n[ \t]+", " ", message)))


class CheckpointError(JaxasrError):
    """A publisher's file is broken, unsafe, of another kind, or does not fit the architecture."""


class ConfigError(JaxasrError):
    """A configuration or an option has an unknown, missing or impossible value."""


class AudioError(JaxasrError):
    """An audio input cannot be found, opened or decoded."""


class ModelError(JaxasrError):
    """A model directory is missing, incomplete or damaged."""


class DownloadError(JaxasrError):
    """A published model cannot be fetched or is not what was pinned."""


class TrainingError(JaxasrError):
    """A training run that cannot go on."""


def _escaped(character: str) -> str:
    # The ideographic space and its like move nothing but the next letter.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]
