"""Manifests of transcribed utterances: tables that say where each one's audio lies and what is said."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from jaxasr.errors import AudioError, ConfigError
from jaxasr.files import reason

if TYPE_CHECKING:
    import numpy as np

# Silence after each piece of an utterance that is joined from several (s).
JOINT_SECONDS = 0.1
_ROUNDING = 0.1  # s; what a stated duration may exceed the file by, as a rounded number

_logger = logging.getLogger("jaxasr")


@dataclass(frozen=True)
class Piece:
    """A stretch of an audio file: `samples` of them (None: to the end) from `start` on, at the file's own rate.

    NeMo's manifests count in seconds: `offset` and `seconds` then stand for `start` and `samples`.
    """

    path: Path
    start: int = 0
    samples: int | None = None
    offset: float = 0.0
    seconds: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it is the whole file."""
        return not (self.start or self.offset) and self.samples is None and self.seconds is None


@dataclass(frozen=True)
class Utterance:
    """One row of a manifest: where the audio lies, what was said, and the row's columns as they stand."""

    manifest: str
    pieces: tuple[Piece, ...]
    text: str
    columns: Mapping[str, str] = field(default_factory=dict)


def read_manifest(path: str | os.PathLike[str], where: Mapping[str, Iterable[str]] | None = None) -> list[Utterance]:
    """The utterances of a manifest, of one of two kinds. Raises ConfigError.

    A table (TSV): a header line, no quoting, columns path and text, and start and samples (whole numbers) if any.
    Comma-separated lists in path, start and samples are pieces of one utterance, unless the path as a whole is a file.
    NeMo's JSON lines: audio_filepath and text, and offset and duration (s) if any; their columns are named path and so
    on as they stand. Paths are relative to the manifest's folder. `where` keeps the rows whose column has one of the
    values given for it.
    """
    wanted = {column: set(values) for column, values in (where or {}).items()}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a manifest ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a manifest (text in UTF-8): {error}") from None
    as_json = content.lstrip().startswith("{")
    read_rows, pieces = (_json_rows, _timed_piece) if as_json else (_table_rows, _pieces)
    rows = read_rows(path, content, wanted)
    if not rows:
        raise ConfigError(f"{path}: the manifest holds no utterances")
    found = [
        Utterance(str(path), pieces(Path(path), number, row), row["text"], row)
        for number, row in rows
        if all(row.get(column) in values for column, values in wanted.items())
    ]
    if not found:
        asked = ", ".join(f"{column}={value}" for column, values in wanted.items() for value in sorted(values))
        raise ConfigError(f"{path}: no utterance has {asked}")
    return found


_Rows: TypeAlias = list[tuple[int, Mapping[str, str]]]  # with the numbers of their lines


def _table_rows(path: str | os.PathLike[str], content: str, where: Iterable[str]) -> _Rows:
    try:
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [(reader.line_num, row) for row in reader]
        columns = list(reader.fieldnames or [])
    except csv.Error as error:
        raise ConfigError(f"{path}: not a manifest (tab-separated text): {error}") from None
    for column in ("path", "text", *where) if rows else ():
        if column not in columns:
            raise ConfigError(f"{path}: no column {column!r} among {', '.join(columns)}")
    for number, row in rows:
        if None in row or None in row.values():
            raise ConfigError(f"{path}: line {number} does not have {len(columns)} columns")
    return list(rows)


def _json_rows(path: str | os.PathLike[str], content: str, where: Iterable[str]) -> _Rows:
    rows: _Rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is not JSON ({reason(error)})") from None
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: line {number} is no JSON object with audio_filepath and text")
        for key in ("audio_filepath", "text", *where):
            if key not in entry:
                raise ConfigError(f"{path}: line {number} has no {key!r}, only {', '.join(map(str, entry))}")
        for key in ("audio_filepath", "text"):
            if not isinstance(entry[key], str):
                raise ConfigError(f"{path}: line {number}: {key} must be text, not {json.dumps(entry[key])[:40]}")
        columns = {key: value if isinstance(value, str) else json.dumps(value) for key, value in entry.items()}
        rows.append((number, {"path": entry["audio_filepath"], **columns}))
    return rows


def _timed_piece(manifest: Path, number: int, row: Mapping[str, str]) -> tuple[Piece, ...]:
    try:
        offset, seconds = (float(json.loads(row.get(key) or "null") or 0) for key in ("offset", "duration"))
        if not (0 <= offset < math.inf and 0 <= seconds < math.inf):
            raise ValueError("negative")
    except (TypeError, ValueError):
        raise ConfigError(f"{manifest}: line {number}: offset and duration must be seconds, 0 or more") from None
    # Without an offset the row is the whole file, and its duration says how long that is.
    stretch = seconds if row.get("offset") not in (None, "null") else None
    return (Piece(manifest.parent / row["path"], offset=offset, seconds=stretch or None),)


def _pieces(manifest: Path, number: int, row: Mapping[str, str]) -> tuple[Piece, ...]:
    whole = manifest.parent / row["path"]
    paths = [row["path"]] if "," not in row["path"] or whole.exists() else row["path"].split(",")
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


def duration(utterance: Utterance, *, intact: bool = False) -> float:
    """Seconds of the utterance's audio as `read_audio` gives it. Raises AudioError.

    Headers are believed where the size of the file bears them out; other files are decoded once, and their lengths
    kept. `intact`: files of which some sound is known to be damaged or missing are refused.
    """
    from jaxasr.audio import stretches  # with it comes numpy

    seconds = 0.0
    rates: set[int] = set()
    for piece in utterance.pieces:
        length = stretches.length(piece.path)
        _check_rates(rates, piece, length.rate)
        if intact:
            _check_intact(utterance, piece, length.lost)
        seconds += _span(utterance, piece, length.samples, length.rate)[1] / length.rate
    return seconds + (JOINT_SECONDS * len(utterance.pieces) if len(utterance.pieces) > 1 else 0.0)


def read_audio(utterance: Utterance, *, intact: bool = False) -> tuple[np.ndarray, int]:
    """The utterance's samples, float32 mono at the rate of its file, and that rate (Hz).

    Pieces are joined with JOINT_SECONDS of zeros after each, at their own rate. What is odd about a file is reported on
    the logger "jaxasr"; with `intact` a file of which sound is lost is refused instead. Raises AudioError.
    """
    import numpy as np

    from jaxasr.audio import stretches

    parts: list[np.ndarray] = []
    rates: set[int] = set()
    for piece in utterance.pieces:
        if piece.whole:
            stretch = stretches.read(piece.path)
        else:
            length = stretches.length(piece.path)
            stretch = stretches.read(piece.path, *_span(utterance, piece, length.samples, length.rate))
        _check_rates(rates, piece, stretch.rate)
        if intact:
            _check_intact(utterance, piece, stretch.lost)
        for remark in stretch.remarks:
            _logger.warning("%s", remark)
        parts.append(stretch.samples)
        if len(utterance.pieces) > 1:
            parts.append(np.zeros(round(JOINT_SECONDS * stretch.rate), np.float32))
    return np.concatenate(parts) if len(parts) > 1 else parts[0], rates.pop()


def _check_rates(rates: set[int], piece: Piece, rate: int) -> None:
    rates.add(rate)
    if len(rates) > 1:
        before = min(rates - {rate})
        raise AudioError(
            f"{piece.path}: has {rate} Hz where the pieces before it have {before} Hz; convert one of them"
        )


def _check_intact(utterance: Utterance, piece: Piece, lost: float) -> None:
    if lost:
        raise AudioError(
            f"{piece.path}: {lost:.2f} s of its sound are damaged or missing, so that the text that "
            f"{utterance.manifest} has may not fit; copy or export it again"
        )


def _span(utterance: Utterance, piece: Piece, samples: int, rate: int) -> tuple[int, int]:
    """Where a piece of a file of so many samples begins, and its samples. AudioError where the file ends before."""
    start = piece.start + int(piece.offset * rate)
    wanted = samples - start if piece.samples is None else piece.samples
    if piece.seconds is not None:
        wanted = int(piece.seconds * rate)
        if 0 <= wanted - (samples - start) <= _ROUNDING * rate:
            wanted = samples - start
    if not 0 <= wanted <= samples - start:
        raise AudioError(
            f"{piece.path}: holds {samples} samples, not the {wanted} from {start} on that "
            f"{utterance.manifest} asks for"
        )
    return start, wanted
