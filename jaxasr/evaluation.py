"""Word and character error rates: manifests of utterances, their audio, and the errors of what was recognised."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxasr.errors import AudioError, ConfigError, JaxasrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxasr.recognizer import Recognizer

Metric = Literal["wer", "cer"]

# Silence after each piece of an utterance that is joined from several (s).
JOINT_SECONDS = 0.1


@dataclass(frozen=True)
class Errors:
    """Edit operations that turn references into hypotheses, and the references' length in words or characters."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def total(self) -> int:
        """All errors together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit of reference: 0 for nothing against nothing, infinite for something against nothing."""
        if self.reference_length:
            return self.total / self.reference_length
        return float("inf") if self.total else 0.0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


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


@dataclass(frozen=True)
class Scored:
    """An utterance with what was recognised in it and the errors of that; `error` where it could not be read."""

    utterance: Utterance
    hypothesis: str = ""
    errors: Errors = Errors()
    duration: float = 0.0
    error: JaxasrError | None = None


def units(text: str, metric: Metric) -> list[str]:
    """What is counted: words parted by white space, or the characters that are not white space."""
    return text.split() if metric == "wer" else [character for character in text if not character.isspace()]


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """The least number of edits that turn `reference` into `hypothesis`, parted by kind.

    Of several alignments with equally few errors the one is counted that Kaldi's LevenshteinEditDistance counts
    (util/edit-distance-inl.h; kaldialign has the same): per pair of prefixes a match or substitution only where it is
    strictly the best, else a deletion where that is better than an insertion.
    """
    numbers: dict[str, int] = {}
    said = np.array([numbers.setdefault(unit, len(numbers)) for unit in reference], np.int64)
    heard = [numbers.setdefault(unit, len(numbers)) for unit in hypothesis]
    positions = np.arange(len(said) + 1)
    # Of the hypothesis so far against every reference[:j]: the errors and how many of them are substitutions.
    costs, substitutions = positions.copy(), np.zeros_like(positions)
    for unit in heard:
        mismatch = said != unit
        inserted = costs + 1
        substituted = np.concatenate(([np.iinfo(np.int64).max], costs[:-1] + mismatch))
        best = np.minimum(inserted, substituted)
        # costs[j] = min(best[j], costs[j - 1] + 1), unrolled along the row.
        row = np.minimum.accumulate(best - positions) + positions
        deleted = np.concatenate(([np.iinfo(np.int64).max], row[:-1] + 1))
        is_substitution = (substituted < inserted) & (substituted < deleted)
        is_deletion = ~is_substitution & (deleted < inserted)
        carried = np.where(is_substitution, np.concatenate(([0], substitutions[:-1] + mismatch)), substitutions)
        # A run of deletions carries the count of the cell that it starts from.
        origin = np.maximum.accumulate(np.where(is_deletion, 0, positions))
        costs, substitutions = row, carried[origin]
    total, substituted_units = int(costs[-1]), int(substitutions[-1])
    # Insertions minus deletions is the difference of the lengths.
    insertions = (total - substituted_units + len(heard) - len(said)) // 2
    return Errors(substituted_units, total - substituted_units - insertions, insertions, len(said))


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


def read_audio(utterance: Utterance) -> tuple[np.ndarray, int]:
    """The utterance's samples, float32 mono at the rate of its file, and that rate (Hz).

    Pieces are joined with JOINT_SECONDS of zeros after each, at their own rate. Raises AudioError.
    """
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
                wanted = file.frames - piece.start if piece.samples is None else piece.samples
                if not 0 <= wanted <= file.frames - piece.start:
                    raise AudioError(
                        f"{piece.path}: holds {file.frames} samples, not the {wanted} from {piece.start} on that "
                        f"{utterance.manifest} asks for"
                    )
                file.seek(piece.start)
                samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{piece.path}: cannot be read as audio ({error.error_string})") from None
        parts.append(samples)
        if len(utterance.pieces) > 1:
            parts.append(np.zeros(round(JOINT_SECONDS * rate), np.float32))
    return np.concatenate(parts) if len(parts) > 1 else parts[0], rate


def evaluate(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    metric: Metric = "wer",
    progress: Callable[[float, float | None], None] | None = None,
) -> Iterator[Scored]:
    """Recognise the utterances and count the errors of each, in order; those that cannot be read come as errors.

    Audio is raised to the models' 16 kHz after its pieces are joined.
    """
    from jaxasr import audio

    unreadable: dict[int, JaxasrError] = {}
    fed: list[int] = []

    def clips() -> Iterator[np.ndarray]:
        for index, utterance in enumerate(utterances):
            try:
                clip = audio.load(*read_audio(utterance))
            except JaxasrError as error:
                unreadable[index] = error
                continue
            fed.append(index)
            yield clip

    upcoming = 0
    results = recognizer.transcribe(clips(), sample_rate=audio.SAMPLE_RATE, on_error="yield", progress=progress)
    for number, result in enumerate(results):
        for index in range(upcoming, fed[number]):
            yield Scored(utterances[index], error=unreadable[index])
        upcoming = fed[number] + 1
        utterance = utterances[fed[number]]
        if hasattr(result, "error"):
            yield Scored(utterance, error=result.error)
            continue
        errors = count_errors(units(utterance.text, metric), units(result.text, metric))
        yield Scored(utterance, result.text, errors, result.duration)
    for index in range(upcoming, len(utterances)):
        yield Scored(utterances[index], error=unreadable[index])
