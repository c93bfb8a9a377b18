"""What a search has found, as people read it: tokens and frames to a Transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxasr.model_config import ModelConfig
from jaxasr.search import SearchConfig
from jaxasr.text import SPELLINGS, PartedSpelling, TimedSpelling
from jaxasr.text.tokens import TokenTable
from jaxasr.transcripts import Transcript


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What a hypothesis says: ids, log-probabilities, times and durations (s, in the recording), each (L,)."""

    ids: np.ndarray
    times: np.ndarray
    durations: np.ndarray
    log_probs: np.ndarray

    def followed_by(self, other: Spoken) -> Spoken:
        """This and what was said next, as one."""
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Spoken(*(np.concatenate(pair) for pair in zip(mine, others, strict=True)))


class Speller:
    """Spells what one search of one model finds."""

    def __init__(self, config: ModelConfig, tokens: TokenTable, search: SearchConfig) -> None:
        self._tokens = tokens
        self._spell = SPELLINGS.make(config.spelling(search))
        self._apart = isinstance(self._spell, PartedSpelling) and self._spell.apart
        self._durations = config.predicts_durations(search)
        self._frame, self._silence = config.seconds_per_step(search), config.audio.silence_before

    def spoken(self, found: Sequence[np.ndarray], start: float = 0.0) -> Spoken:
        """A hypothesis of what begins at `start` seconds, before which the model has its silence.

        found: ids, frames, durations in frames, and log-probabilities, each (L,).
        """
        ids, frames, durations, log_probs = found
        times = np.maximum(frames * self._frame + (start - self._silence), start)
        return Spoken(ids, times, durations * self._frame, log_probs)

    def transcript(
        self, parts: Sequence[Spoken], *, audio: str, duration: float, channel: int | None = None
    ) -> Transcript:
        """What was said in a recording of `duration` seconds, part after part; `audio` and `channel` name it."""
        ids = [int(i) for part in parts for i in part.ids]
        times = [float(time) for part in parts for time in part.times]
        durations = [float(each) for part in parts for each in part.durations] if self._durations else []
        if durations and isinstance(self._spell, TimedSpelling):
            spans = self._spell.timed([self._tokens[each] for each in ids], list(zip(times, durations, strict=True)))
            times, durations = [begin for begin, _ in spans], [lasting for _, lasting in spans]
        together = [part.ids for part in parts] if self._apart else [ids]
        spelt = [self._spell([self._tokens[int(i)] for i in each], self._tokens.byte_coding) for each in together]
        return Transcript(
            audio=audio,
            duration=duration,
            text="".join(text for text, _ in spelt),
            tokens=[token for _, tokens in spelt for token in tokens],
            token_ids=ids,
            timestamps=[round(time, 4) for time in times],
            durations=[round(each, 4) for each in durations],
            log_probs=[float(log_prob) for part in parts for log_prob in part.log_probs],
            channel=channel,
        )
