"""The configuration that describes a whole recogniser, and the type of its parameters. It needs no Flax."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated

from jaxasr.audio import SAMPLE_RATE
from jaxasr.encoders import ENCODERS, EncoderConfig
from jaxasr.errors import ConfigError
from jaxasr.features import FEATURES, FeaturesConfig, require_fit
from jaxasr.heads.configs import CTCConfig, TransducerConfig
from jaxasr.heads.parallel_config import ParallelConfig
from jaxasr.quant.rules import QuantizationConfig
from jaxasr.search import SEARCHES, GreedyConfig, HeadConfig, SearchConfig, choose_search, searched_head
from jaxasr.text import SPELLINGS, SpellingConfig

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jaxasr.quant.array import QuantizedArray

# Arrays nested by name, as a model's modules have them.
Parameters = dict[str, "Parameters | jax.Array | np.ndarray | QuantizedArray"]


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """How audio is presented to the features.

    `silence_before`, `silence_after` (s): zeros around every clip. `longest` (s): longer audio is cut into windows.
    """

    silence_before: float = 0.0
    silence_after: float = 0.0
    longest: float = 30.0

    def __post_init__(self) -> None:
        for name in ("silence_before", "silence_after", "longest"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "longest" and value == 0):
                raise ValueError(f"{name} must be a number of seconds, not {value}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole model, as config.yaml of a model directory and the files of configs/ write it.

    `encoder`, `features`, `text` and `search` are told apart by their `kind`. `text`: how ids are spelt; `ctc_text`:
    how those of the CTC head are, where that differs. `search`: how the model is searched where nobody says otherwise.
    `quantization`: which weights are integers; None where all are floats.
    Raises ValueError where two parts do not agree.
    """

    name: str
    encoder: Annotated[EncoderConfig, ENCODERS]
    features: Annotated[FeaturesConfig, FEATURES]
    text: Annotated[SpellingConfig, SPELLINGS]
    transducer: TransducerConfig | None = None
    ctc: CTCConfig | None = None
    parallel: ParallelConfig | None = None
    ctc_text: Annotated[SpellingConfig, SPELLINGS] | None = None
    search: Annotated[SearchConfig, SEARCHES] = GreedyConfig()
    audio: AudioConfig = AudioConfig()
    quantization: QuantizationConfig | None = None

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError("a model needs a transducer, a ctc or a parallel head")
        require_fit(self.features, self.encoder.input_dim, SAMPLE_RATE)
        for head in self.heads.values():
            if fault := head.fault(self.encoder):
                raise ValueError(fault)
        if len({head.vocabulary_size for head in self.heads.values()}) > 1:
            sizes = ", ".join(f"{role} {head.vocabulary_size}" for role, head in self.heads.items())
            raise ValueError(f"the heads share one token table, but their vocabularies differ: {sizes}")
        if fault := self.search.fault(self.heads):
            raise ValueError(f"search is {self.search.kind}, but {fault}")

    @property
    def heads(self) -> dict[str, HeadConfig]:
        """The configurations of the heads by their role, the first one of which is searched if nothing is said."""
        roles: dict[str, HeadConfig | None] = {
            "transducer": self.transducer,
            "ctc": self.ctc,
            "parallel": self.parallel,
        }
        return {role: head for role, head in roles.items() if head is not None}

    @property
    def vocabulary_size(self) -> int:
        """Ids that the heads can emit, blank included."""
        return next(iter(self.heads.values())).vocabulary_size

    @property
    def seconds_per_frame(self) -> float:
        """Duration of one encoded frame."""
        return self.features.frame_seconds * self.encoder.subsampling

    def spelling(self, search: SearchConfig) -> SpellingConfig:
        """How the ids that a search finds are spelt."""
        role = searched_head(search, self.heads)
        return self.ctc_text if role == "ctc" and self.ctc_text is not None else self.text

    def seconds_per_step(self, search: SearchConfig) -> float:
        """Duration of what a search counts as a frame of its tokens: an encoded frame, or a part of one."""
        head = self.heads[searched_head(search, self.heads)]
        return self.seconds_per_frame / (head.frame_parts if isinstance(head, ParallelConfig) else 1)

    def predicts_durations(self, search: SearchConfig) -> bool:
        """Whether the search says how many frames a token spans: of TDT, and where times are the publisher's."""
        head = self.heads[searched_head(search, self.heads)]
        match head:
            case TransducerConfig():
                return bool(head.durations)
            case CTCConfig():
                return head.token_frames == "previous"
            case ParallelConfig():
                return head.times == "publisher"
        return False

    def choose_search(self, kind: str | None = None, head: str | None = None, beam: int | None = None) -> SearchConfig:
        """The search that is asked for, by `search.choose_search`; ConfigError where this model cannot do it."""
        try:
            return choose_search(self.search, self.heads, kind, head, beam)
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from None
