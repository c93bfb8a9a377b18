"""What a search has found, as people read it: tokens and frames to a Transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxasr.model_config import ModelConfig
from jaxasr.search import SearchConfig
from jaxasr.text import SPELLINGS
from jaxasr.text.tokens import TokenTable
from jaxasr.transcripts import Transcript


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What a hypothesis says: ids, log-probabilities, times and durations (s, in the recording), each (L,)."""

    ids: np.ndarray
    times: np.ndarray
    durations: np.ndarray
    log_probs: np.ndarray


class Speller:
    """Spells what one search of one model finds."""

    def __init__(self, config: ModelConfig, tokens: TokenTable, search: SearchConfig) -> None:
        self._tokens = tokens
        self._spell = SPELLINGS.make(config.spelling(search))
        self._durations = config.predicts_durations(search)
        self._frame, self._silence = config.seconds_per_frame, config.audio.silence_before

    def spoken(
        self, ids: np.ndarray, frames: np.ndarray, durations: np.ndarray, log_probs: np.ndarray, start: float = 0.0
    ) -> Spoken:
        """Arrays (L,) of a hypothesis of what begins at `start` seconds, after the model's silence: frames to times."""
        times = np.maximum(frames * self._frame + (start - self._silence), start)
        return Spoken(ids, times, durations * self._frame, log_probs)

    def transcript(
        self, parts: Sequence[Spoken], *, audio: str, duration: float, channel: int | None = None
    ) -> Transcript:
        """What was said in a recording of `duration` seconds, part after part; `audio` and `channel` name it."""
        ids = [int(i) for part in parts for i in part.ids]
        lasting = [round(float(each), 4) for part in parts for each in part.durations] if self._durations else []
        text, tokens = self._spell([self._tokens[i] for i in ids], self._tokens.byte_coding)
        return Transcript(
            audio=audio,
            duration=duration,
            text=text,
            tokens=tokens,
            token_ids=ids,
            timestamps=[round(float(time), 4) for part in parts for time in part.times],
            durations=lasting,
            log_probs=[float(log_prob) for part in parts for log_prob in part.log_probs],
            channel=channel,
        )
