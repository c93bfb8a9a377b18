"""How far a quantized model is from the float one that it was made from: in what it encodes, and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxasr.caches import programs_kept
from jaxasr.devices import usual_settings
from jaxasr.evaluation import Errors, Scored, count_errors, evaluate, units
from jaxasr.manifests import Utterance
from jaxasr.recognizer import Recognizer
from jaxasr.speechlike import speechlike

SECONDS = 4.0  # of sound to measure with


@dataclasses.dataclass(frozen=True)
class Words:
    """Word errors of the float and of the quantized model on the same utterances.

    `differing`: edits that turn the words of the one into those of the other.
    """

    before: Errors
    after: Errors
    differing: int

    def facts(self) -> dict[str, Any]:
        """What is reported of it; rates are shares of the reference's words."""
        words = self.before.reference_length
        return {
            "words": words,
            "error_rate_before": self.before.rate,
            "error_rate_after": self.after.rate,
            "words_that_differ": self.differing / words if words else 0.0,
        }


def encoded_difference(before: Recognizer, after: Recognizer, seconds: float = SECONDS) -> float:
    """The root mean square difference of what two models encode, as a share of that of the first one.

    Of noise with the rhythm and the spectrum of speech, which needs no recording.
    """
    waveform = speechlike(seconds, 0)[None]
    first, second = (_encode(recognizer, waveform) for recognizer in (before, after))
    return difference(first, second)


def difference(whole: np.ndarray, rounded: np.ndarray) -> float:
    """The root mean square of the difference, as a share of that of the first."""
    return float(np.sqrt(np.square(rounded - whole).sum() / np.square(whole).sum()))


def compare_words(
    before: Recognizer,
    after: Recognizer,
    utterances: Sequence[Utterance],
    progress: Callable[[float, float | None], None] | None = None,
) -> Words:
    """Recognise the utterances with both models. Raises the error of an utterance that cannot be read."""
    results = [_scored(recognizer, utterances, progress) for recognizer in (before, after)]
    sums = [sum((scored.errors for scored in each), start=Errors()) for each in results]
    differing = sum(
        count_errors(units(one.hypothesis, "wer"), units(other.hypothesis, "wer")).total
        for one, other in zip(*results, strict=True)
    )
    return Words(sums[0], sums[1], differing)


def _scored(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    progress: Callable[[float, float | None], None] | None,
) -> list[Scored]:
    scored = []
    for each in evaluate(recognizer, utterances, progress=progress):
        if each.error is not None:
            raise each.error
        scored.append(each)
    return scored


def _encode(recognizer: Recognizer, waveform: np.ndarray) -> np.ndarray:
    """What the encoder makes of a waveform (1, S), as the recogniser's programs do: (1, T, D) float32."""
    programs = recognizer.programs
    lengths = np.array([waveform.shape[1]], np.int32)

    def encode(params: Any, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        model = programs.abstract_model.fill(params)
        return model.encode(waveforms, lengths, programs.policy.activations)[0]

    with programs_kept(), usual_settings():
        return np.asarray(jax.jit(encode)(programs.params, waveform, lengths)).astype(np.float32)
