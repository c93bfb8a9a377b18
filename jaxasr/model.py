"""A whole recogniser as one Flax module: features, encoder, heads; and the configuration that describes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.audio import SAMPLE_RATE
from jaxasr.encoders import ENCODERS, EncoderConfig
from jaxasr.errors import ConfigError
from jaxasr.features import FEATURES, FeaturesConfig
from jaxasr.heads.ctc import CTC, CTCConfig
from jaxasr.heads.transducer import Transducer, TransducerConfig
from jaxasr.search import SEARCHES, GreedyConfig, HeadConfig, SearchConfig, choose_search, searched_head
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import search_whole
from jaxasr.text import SPELLINGS, SpellingConfig

# Arrays nested by name, as a model directory stores them.
Parameters = dict[str, "Parameters | jax.Array | np.ndarray"]


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
    Raises ValueError where two parts do not agree.
    """

    name: str
    encoder: Annotated[EncoderConfig, ENCODERS]
    features: Annotated[FeaturesConfig, FEATURES]
    text: Annotated[SpellingConfig, SPELLINGS]
    transducer: TransducerConfig | None = None
    ctc: CTCConfig | None = None
    ctc_text: Annotated[SpellingConfig, SPELLINGS] | None = None
    search: Annotated[SearchConfig, SEARCHES] = GreedyConfig()
    audio: AudioConfig = AudioConfig()

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError("a model needs a transducer or a ctc head")
        if self.features.output_dim != self.encoder.input_dim:
            raise ValueError(
                f"the features have {self.features.output_dim} bins, but the encoder's input_dim is "
                f"{self.encoder.input_dim}"
            )
        if self.features.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"features.sample_rate is {self.features.sample_rate}, but recordings come at {SAMPLE_RATE} Hz"
            )
        if len({head.vocabulary_size for head in self.heads.values()}) > 1:
            sizes = ", ".join(f"{role} {head.vocabulary_size}" for role, head in self.heads.items())
            raise ValueError(f"the heads share one token table, but their vocabularies differ: {sizes}")
        if fault := self.search.fault(self.heads):
            raise ValueError(f"search is {self.search.kind}, but {fault}")

    @property
    def heads(self) -> dict[str, HeadConfig]:
        """The configurations of the heads by their role, the first one of which is searched if nothing is said."""
        roles: dict[str, HeadConfig | None] = {"transducer": self.transducer, "ctc": self.ctc}
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

    def choose_search(self, kind: str | None = None, head: str | None = None, beam: int | None = None) -> SearchConfig:
        """The search that is asked for, by `search.choose_search`; ConfigError where this model cannot do it."""
        try:
            return choose_search(self.search, self.heads, kind, head, beam)
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from None


class Model(nnx.Module):
    """Waveforms (B, S) at 16 kHz to Hypotheses; every part can also be called by itself."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.features = FEATURES.make(config.features, rngs=rngs)
        self.encoder = ENCODERS.make(config.encoder, rngs=rngs)
        width = config.encoder.output_dim
        self.transducer = Transducer(config.transducer, width, rngs=rngs) if config.transducer else None
        self.ctc = CTC(config.ctc, width, rngs=rngs) if config.ctc else None

    @property
    def heads(self) -> dict[str, Any]:
        """The head modules by their role, in the order of `ModelConfig.heads`."""
        return {role: getattr(self, role) for role in self.config.heads}

    def encode(
        self, waveforms: jax.Array, lengths: jax.Array, dtype: DTypeLike = jnp.float32
    ) -> tuple[jax.Array, jax.Array]:
        """waveforms (B, S) float32, lengths (B,) in samples -> encoded (B, T, D), lengths (B,) in frames to decode.

        `dtype` is the type of the activations inside the encoder.
        """
        frames, frame_lengths = self.features(waveforms, lengths)
        return self.encoder(frames.astype(dtype), frame_lengths)

    def search(
        self,
        encoded: jax.Array,
        lengths: jax.Array,
        search: SearchConfig | None = None,
        blank_penalty: jax.Array | float = 0.0,
    ) -> Hypotheses:
        """encoded (B, T, D), lengths (B,) -> Hypotheses of a search, the configuration's own by default.

        `blank_penalty` is taken off the blank's logit; in a joint search off the transducer's.
        """
        config = search or self.config.search
        return search_whole(SEARCHES.make(config, self.heads, blank_penalty), encoded, lengths)


class AbstractModel:
    """A model's structure without numbers: made once, then filled inside a traced function at no cost per call."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._graph, self._state = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=_AnyKey())))
        self.parameters: dict[str, Any] = _named(nnx.to_pure_dict(self._state))
        """Shapes and types of every parameter, nested by name as a model directory stores them."""

    def fill(self, parameters: Parameters) -> Model:
        """The model over nested `parameters`, to call it or parts of it."""
        state = jax.tree.map(lambda leaf: leaf, self._state)
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(parameters))
        return nnx.merge(self._graph, state)


def named_parameters(model: Model) -> Parameters:
    """A model's parameters, nested by name as a model directory stores them and `AbstractModel.fill` takes them."""
    return _named(nnx.to_pure_dict(nnx.state(model)))


class _AnyKey(nnx.Rngs):
    """One key for all, where only shapes matter: counting keys took four fifths of the time of an abstract model."""

    def __init__(self) -> None:
        super().__init__()

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _named(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Module lists count their members with integers; paths and files hold names only."""
    return {str(key): _named(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
