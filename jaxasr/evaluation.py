"""Word and character error rates: the errors of what was recognised in the utterances of a manifest."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxasr.errors import JaxasrError
from jaxasr.manifests import Utterance, read_audio
from jaxasr.transcripts import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxasr.inputs import DecodedSamples
    from jaxasr.recognizer import Recognizer

Metric = Literal["wer", "cer"]


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
class Scored:
    """An utterance with what was recognised in it and the errors of that; `error` where it could not be read.

    `spelling_errors`: how many of the errors vanish where case and punctuation do not count.
    """

    utterance: Utterance
    hypothesis: str = ""
    errors: Errors = Errors()
    duration: float = 0.0
    error: JaxasrError | None = None
    spelling_errors: int = 0


def units(text: str, metric: Metric) -> list[str]:
    """What is counted: words parted by white space, or the characters that are not white space."""
    return text.split() if metric == "wer" else [character for character in text if not character.isspace()]


def plain(text: str) -> str:
    """The text in lower case without punctuation; hyphens and dashes part words."""
    kinds = ((character, unicodedata.category(character)) for character in text.casefold())
    return "".join(" " if kind == "Pd" else character for character, kind in kinds if kind[0] != "P" or kind == "Pd")


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """The least number of edits that turn `reference` into `hypothesis`, parted by kind.

    Of several alignments with equally few errors the one is counted that Kaldi's LevenshteinEditDistance counts
    (util/edit-distance-inl.h; kaldialign has the same): per pair of prefixes a match or substitution only where it is
    strictly the best, else a deletion where that is better than an insertion.
    """
    import numpy as np

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


def evaluate(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    metric: Metric = "wer",
    progress: Callable[[float, float | None], None] | None = None,
) -> Iterator[Scored]:
    """Recognise the utterances and count the errors of each, in order; those that cannot be read come as errors.

    Audio is raised to the models' 16 kHz after its pieces are joined.
    """
    sounds = [_Sound(utterance) for utterance in utterances]
    results = recognizer.transcribe(sounds, on_error="yield", progress=progress)
    for utterance, result in zip(utterances, results, strict=True):
        if isinstance(result, Failure):
            yield Scored(utterance, error=result.error)
            continue
        errors = count_errors(units(utterance.text, metric), units(result.text, metric))
        spelling_errors = 0
        if errors.total:
            others = count_errors(units(plain(utterance.text), metric), units(plain(result.text), metric))
            spelling_errors = max(errors.total - others.total, 0)
        yield Scored(utterance, result.text, errors, result.duration, spelling_errors=spelling_errors)


@dataclass(frozen=True)
class _Sound:
    """An utterance as an input of a recognizer, which reads it when it comes to it."""

    utterance: Utterance

    @property
    def name(self) -> str:
        """Its file, in messages."""
        return str(self.utterance.pieces[0].path)

    def get_all_samples(self) -> DecodedSamples:
        """The sound, in the way in which torchcodec's decoders give it."""
        from jaxasr.inputs import DecodedSamples  # with it comes numpy

        return DecodedSamples(*read_audio(self.utterance))
