"""What heads are made of: sizes of CTC heads, classifiers, transducers and predictors, and the table of the last."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from jaxasr.configuration import Table, deferred
from jaxasr.encoders import EncoderConfig
from jaxasr.heads.lstm_config import LSTMConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """Size of a CTC head; the vocabulary includes the blank.

    `token_frames`: the frame that a search gives a token: its own, the first of its run; or the one before, as NeMo's
    timestamps have it: a token begins at the previous token's own frame (the first one a frame early) and ends at its
    own.
    """

    vocabulary_size: int
    blank_id: int = 0
    token_frames: Literal["own", "previous"] = "own"

    def __post_init__(self) -> None:
        if not 0 <= self.blank_id < self.vocabulary_size:
            raise ValueError(f"blank_id {self.blank_id} does not lie in the vocabulary of {self.vocabulary_size}")

    def fault(self, encoder: EncoderConfig) -> str | None:
        """It takes the frames of any encoder."""
        return None


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Size of a detector's classifier: linear `layers`, ReLU between them, and a softmax over `classes`.

    `nonspeech`: the classes that are no speech; all others together are.
    """

    classes: int = 2
    nonspeech: tuple[int, ...] = (0,)
    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be positive, not {self.layers}")
        if not set(self.nonspeech) < set(range(self.classes)) or not self.nonspeech:
            raise ValueError(
                f"nonspeech must hold some of the {self.classes} classes and not all of them: {self.nonspeech}"
            )


@runtime_checkable  # a field of a dataclass, which the shape checker of tests looks at
class PredictorConfig(Protocol):
    """What a predictor's configuration answers."""

    @property
    def kind(self) -> str: ...

    @property
    def output_dim(self) -> int:
        """Width of the predictor's output."""
        ...


class Predictor(Protocol):
    """A predictor: a Flax module. Its state is a pytree of arrays with the batch axis first."""

    @property
    def length_offset(self) -> int:
        """What a beam search adds to a hypothesis' number of tokens when it divides scores by lengths."""
        ...

    def start(self, batch: int) -> tuple[Any, Float[Array, "{batch} P"]]:
        """Nothing said yet: the state, and the output (B, P)."""
        ...

    def step(self, state: Any, tokens: Int[Array, " B"]) -> tuple[Any, Float[Array, "B P"]]:
        """tokens (B,) int32 were said: the state after them, and the output (B, P)."""
        ...

    def __call__(self, labels: Int[Array, "B U"]) -> Float[Array, "B U+1 P"]:
        """The outputs after none, one, ... all of labels (B, U), for training: (B, U + 1, P)."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatelessConfig:
    """Sizes of a stateless predictor: `dim` channels, `context_size` tokens that it sees (1 or 2).

    `group_size`: channels that the convolution over the tokens mixes; 1 for a depthwise one.
    """

    kind: Literal["stateless"] = "stateless"
    dim: int = 512
    context_size: int = 2
    group_size: int = 4

    def __post_init__(self) -> None:
        if self.context_size not in (1, 2):
            raise ValueError(f"context_size must be 1 or 2, not {self.context_size}")
        if self.group_size < 1 or self.dim < self.group_size or self.dim % self.group_size:
            raise ValueError(f"dim must be divisible by group_size {self.group_size}, not {self.dim}")

    @property
    def output_dim(self) -> int:
        """Width of the predictor's output."""
        return self.dim


# Every predictor by its `kind`: made as (config, vocabulary_size, blank_id, rngs=).
PREDICTORS: Table[Predictor] = Table(
    {
        "lstm": (LSTMConfig, deferred("jaxasr.heads.lstm", "LSTMPredictor")),
        "stateless": (StatelessConfig, deferred("jaxasr.heads.predictors", "StatelessPredictor")),
    }
)


@dataclasses.dataclass(frozen=True)
class TransducerConfig:
    """Sizes of a transducer head; the vocabulary includes the blank.

    `silent_ids`: ids taken for blank by a search, neither emitted nor shown to the predictor (sherpa-onnx treats <unk>
    so, icefall's own search does not). `durations`: encoded frames that a token may span, in the order of the joiner's
    further outputs; empty where the head predicts none. `activation`: that of the joiner's sum. `max_symbols`: tokens
    that one encoded frame may emit in a search; with 1 every token ends its frame.
    """

    vocabulary_size: int
    predictor: Annotated[PredictorConfig, PREDICTORS] = StatelessConfig()
    joiner_dim: int = 512
    blank_id: int = 0
    silent_ids: tuple[int, ...] = ()
    durations: tuple[int, ...] = ()
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"
    max_symbols: int = 1

    def __post_init__(self) -> None:
        if self.max_symbols < 1:
            raise ValueError(f"max_symbols must be positive, not {self.max_symbols}")
        for token_id in (self.blank_id, *self.silent_ids):
            if not 0 <= token_id < self.vocabulary_size:
                raise ValueError(
                    f"blank_id and silent_ids must lie in the vocabulary of {self.vocabulary_size}: {token_id}"
                )
        if self.durations and (min(self.durations) < 0 or max(self.durations) < 1):
            raise ValueError(f"durations must be numbers of frames of which one is positive, not {self.durations}")

    def fault(self, encoder: EncoderConfig) -> str | None:
        """It takes the frames of any encoder."""
        return None
