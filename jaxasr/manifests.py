"""Manifests of transcribed utterances: tables that say where each one's audio lies and what is said."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jaxasr.errors import AudioError, ConfigError

if TYPE_CHECKING:
    import numpy as np

# Silence after each piece of an utterance that is joined from several (s).
JOINT_SECONDS = 0.1


@dataclass(frozen=True)
class Piece:
    """A stretch of an audio file: `samples` of them (None: to the end) from `start` on, at the file's own rate."""

    path: Path
    start: int = 0
    samples: int | None = None


@dataclass(frozen=True)
class Utterance:
    """One row of a manifest: where the audio lies, what was said, and the row's columns as they stand."""

    manifest: str
    pieces: tuple[Piece, ...]
    text: str
    columns: Mapping[str, str] = field(default_factory=dict)


def read_manifest(path: str | os.PathLike[str], where: Mapping[str, Iterable[str]] | None = None) -> list[Utterance]:
    """The utterances of a TSV manifest: header line, no quoting, columns path and text, and start and samples if any.

    Paths are relative to the manifest's folder. Comma-separated lists in path, start and samples are pieces of one
    utterance. `where` keeps the rows whose column has one of the values given for it. Raises ConfigError.
    """
    where = {column: set(values) for column, values in (where or {}).items()}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a manifest ({error.strerror or error})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a manifest (tab-separated text in UTF-8): {error}") from None
    if not rows:
        raise ConfigError(f"{path}: the manifest holds no utterances")
    for column in ("path", "text", *where):
        if column not in columns:
            raise ConfigError(f"{path}: no column {column!r} among {', '.join(columns)}")
    found = []
    for number, row in rows:
        if None in row or None in row.values():
            raise ConfigError(f"{path}: line {number} does not have {len(columns)} columns")
        if all(row[column] in values for column, values in where.items()):
            found.append(Utterance(str(path), _pieces(Path(path), number, row), row["text"], row))
    if not found:
        asked = ", ".join(f"{column}={value}" for column, values in where.items() for value in sorted(values))
        raise ConfigError(f"{path}: no utterance has {asked}")
    return found


def _pieces(manifest: Path, number: int, row: Mapping[str, str]) -> tuple[Piece, ...]:
    paths = row["path"].split(",")
    try:
        starts = [int(value) for value in row["start"].split(",")] if row.get("start") else [0] * len(paths)
        lengths: list[int | None] = [None] * len(paths)
        if row.get("samples"):
            lengths = [int(value) for value in row["samples"].split(",")]
        if min(starts) < 0 or any(length is not None and length < 0 for length in lengths):
            raise ValueError("negative")
    except ValueError:
        raise ConfigError(f"{manifest}: line {number}: start and samples must be whole numbers") from None
    if not len(paths) == len(starts) == len(lengths):
        raise ConfigError(f"{manifest}: line {number}: path, start and samples list different numbers of pieces")
    return tuple(
        Piece(manifest.parent / path, start, length) for path, start, length in zip(paths, starts, lengths, strict=True)
    )


def duration(utterance: Utterance) -> float:
    """Seconds of the utterance's audio as `read_audio` gives it, from the headers of its files. Raises AudioError."""
    import soundfile

    seconds = 0.0
    rates = set()
    for piece in utterance.pieces:
        try:
            header = _header(os.fspath(piece.path))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{piece.path}: cannot be read as audio ({error.error_string})") from None
        frames, rate = header
        rates.add(rate)
        if len(rates) > 1:
            raise AudioError(f"{piece.path}: has {rate} Hz where a piece before it has another rate")
        seconds += _wanted(utterance, piece, frames) / rate
    return seconds + (JOINT_SECONDS * len(utterance.pieces) if len(utterance.pieces) > 1 else 0.0)


@functools.lru_cache(maxsize=4096)
def _header(path: str) -> tuple[int, int]:
    """Samples and their rate; many utterances lie in one file."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        return file.frames, file.samplerate


def _wanted(utterance: Utterance, piece: Piece, frames: int) -> int:
    """Samples of a piece, of a file that holds `frames`. Raises AudioError where the file ends before them."""
    wanted = frames - piece.start if piece.samples is None else piece.samples
    if not 0 <= wanted <= frames - piece.start:
        raise AudioError(
            f"{piece.path}: holds {frames} samples, not the {wanted} from {piece.start} on that "
            f"{utterance.manifest} asks for"
        )
    return wanted


def read_audio(utterance: Utterance) -> tuple[np.ndarray, int]:
    """The utterance's samples, float32 mono at the rate of its file, and that rate (Hz).

    Pieces are joined with JOINT_SECONDS of zeros after each, at their own rate. Raises AudioError.
    """
    import numpy as np
    import soundfile

    parts: list[np.ndarray] = []
    rate = 0
    for piece in utterance.pieces:
        try:
            with soundfile.SoundFile(os.fspath(piece.path)) as file:
                if rate and file.samplerate != rate:
                    raise AudioError(
                        f"{piece.path}: has {file.samplerate} Hz where the pieces before it have {rate} Hz"
                    )
                rate = file.samplerate
                wanted = _wanted(utterance, piece, file.frames)
                file.seek(piece.start)
                samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{piece.path}: cannot be read as audio ({error.error_string})") from None
        parts.append(samples)
        if len(utterance.pieces) > 1:
            parts.append(np.zeros(round(JOINT_SECONDS * rate), np.float32))
    return np.concatenate(parts) if len(parts) > 1 else parts[0], rate
