"""A whole recogniser as one Flax module: features, encoder, heads; and the configuration that describes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.arrays import ceil_div, length_mask
from jaxasr.encoders.zipformer import PUBLISHER_PADDING, Zipformer, ZipformerConfig
from jaxasr.errors import ConfigError
from jaxasr.features.kaldi import KaldiConfig, fbank
from jaxasr.heads.ctc import CTC, CTCConfig
from jaxasr.heads.transducer import Transducer, TransducerConfig
from jaxasr.layers.dropout import Dropout
from jaxasr.search.beam import transducer_beam, with_ctc
from jaxasr.search.greedy import ctc_greedy, transducer_greedy
from jaxasr.search.hypotheses import Hypotheses

HeadName = Literal["transducer", "ctc", "joint"]
# Hypotheses that a joint search keeps if it is not told.
JOINT_BEAM = 4


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """How audio is presented to the encoder.

    `silence_before`, `silence_after` (s): zeros around every clip. `whole_chunks`: a model with chunks decodes full
    ones only, and a chunk only while more feature frames are ready than it reads (sherpa-onnx's online runtime).
    `longest` (s): longer audio is cut into windows.
    """

    silence_before: float = 0.0
    silence_after: float = 0.0
    whole_chunks: bool = False
    longest: float = 30.0


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How ids become text.

    `unknown_id` is the id of `<unk>`, `unknown_is_blank` whether the transducer search skips it (sherpa-onnx does,
    icefall emits it). `spelling` names the rules by which pieces are joined.
    """

    unknown_id: int | None = None
    unknown_is_blank: bool = True
    spelling: Literal["sherpa_onnx_offline_transducer", "sherpa_onnx_ctc", "sherpa_onnx_online"] = (
        "sherpa_onnx_offline_transducer"
    )


def least_beam(head: HeadName | None) -> int:
    """Hypotheses that a search by `head` needs: with one there is nothing for a joint search to rank."""
    return 2 if head == "joint" else 1


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How a model is searched where nobody says otherwise.

    `head`: which head is decoded, the transducer if unset and there; "joint" lets both decide. `beam`: hypotheses that
    a transducer's search keeps; 1 is greedy, and a joint search that is not told keeps 4. `ctc_weight`: what CTC
    counts for in a joint search, in 0..1.
    """

    head: HeadName | None = None
    beam: int | None = None
    ctc_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.beam is not None and self.beam < least_beam(self.head):
            raise ValueError(f"beam must be at least {least_beam(self.head)}, not {self.beam}")
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"ctc_weight must lie in 0..1, not {self.ctc_weight}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole model, as config.yaml of a model directory and the files of configs/ write it."""

    name: str
    encoder: ZipformerConfig
    features: KaldiConfig = KaldiConfig()
    transducer: TransducerConfig | None = None
    ctc: CTCConfig | None = None
    audio: AudioConfig = AudioConfig()
    text: TextConfig = TextConfig()
    search: SearchConfig = SearchConfig()

    def __post_init__(self) -> None:
        if self.transducer is None and self.ctc is None:
            raise ValueError("a model needs a transducer or a ctc head")
        if self.search.head is not None and self.search.head not in self.heads:
            raise ValueError(f"search.head is {self.search.head}, but there is only {' and '.join(self.heads)}")

    @property
    def vocabulary_size(self) -> int:
        """Ids that the heads can emit, blank included."""
        head = self.transducer or self.ctc
        return head.vocabulary_size

    @property
    def heads(self) -> tuple[HeadName, ...]:
        """What the model can be decoded with, the first one if nothing is said; jointly by heads of one vocabulary."""
        if self.transducer is None or self.ctc is None:
            return ("transducer",) if self.ctc is None else ("ctc",)
        sizes = [(head.vocabulary_size, head.blank_id) for head in (self.transducer, self.ctc)]
        return ("transducer", "ctc", "joint") if sizes[0] == sizes[1] else ("transducer", "ctc")

    @property
    def seconds_per_frame(self) -> float:
        """Duration of one encoded frame."""
        return self.features.frame_shift_ms / 1000 * 2 * self.encoder.output_downsampling

    def choose_head(self, head: str | None) -> HeadName:
        """The head to decode with; ConfigError where the model lacks the one asked for."""
        if head is None:
            return self.search.head or self.heads[0]
        if head not in self.heads:
            remedy = f"take {' or '.join(self.heads)}"
            if head == "joint":
                raise ConfigError(f"a joint search needs two heads of one vocabulary, unlike {self.name}'s: {remedy}")
            raise ConfigError(f"{self.name} has no {head} head: {remedy}")
        return head  # type: ignore[return-value]

    def choose_beam(self, head: HeadName, beam: int | None) -> int:
        """Hypotheses to keep; ConfigError where the head cannot keep as many."""
        if beam is None:
            own = 1 if head == "ctc" else self.search.beam
            return own or (JOINT_BEAM if head == "joint" else 1)
        if head == "ctc" and beam != 1:
            raise ConfigError(f"{self.name}'s ctc search keeps one hypothesis: leave out beam")
        if beam < least_beam(head):
            raise ConfigError(f"{self.name}'s {head} search needs a beam of {least_beam(head)} or more")
        return beam


class Model(nnx.Module):
    """Waveforms (B, S) at 16 kHz to Hypotheses; every part can also be called by itself."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.encoder = Zipformer(config.encoder, rngs=rngs)
        width = config.encoder.output_dim
        self.transducer = Transducer(config.transducer, width, rngs=rngs) if config.transducer else None
        self.ctc = CTC(config.ctc, width, rngs=rngs) if config.ctc else None

    def encode(
        self, waveforms: jax.Array, lengths: jax.Array, dtype: jnp.dtype = jnp.float32
    ) -> tuple[jax.Array, jax.Array]:
        """waveforms (B, S) float32, lengths (B,) in samples -> encoded (B, T, D), lengths (B,) in frames to decode.

        `dtype` is the type of the activations inside the encoder.
        """
        frames, frame_lengths = fbank(self.config.features, waveforms, lengths)
        encoded, encoded_lengths = self.encode_frames(frames, frame_lengths, dtype)
        if self.config.audio.whole_chunks and self.config.encoder.chunk_size > 0:
            encoded_lengths = self._whole_chunks(frame_lengths)
        return encoded, encoded_lengths

    def encode_frames(
        self, frames: jax.Array, lengths: jax.Array, dtype: jnp.dtype, dropout: Dropout | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """frames (B, T, F) float32, lengths (B,) -> encoded (B, T', D), lengths (B,) of all encoded frames."""
        if self.config.encoder.padding == "publisher":
            valid = length_mask(lengths, frames.shape[1])[..., None]
            frames = jnp.where(valid, frames, PUBLISHER_PADDING)
        return self.encoder(frames.astype(dtype), lengths, dropout)

    def search(
        self,
        encoded: jax.Array,
        lengths: jax.Array,
        head: HeadName,
        blank_penalty: jax.Array | float = 0.0,
        beam: int = 1,
    ) -> Hypotheses:
        """encoded (B, T, D), lengths (B,) -> Hypotheses of the named head's search, with N = beam of a transducer's.

        "joint" takes the transducer's hypotheses and ranks them with the CTC head's opinion, which `blank_penalty`
        leaves as it is.
        """
        if head == "ctc":
            log_probs = self.ctc(encoded)
            return ctc_greedy(log_probs, lengths, blank_id=self.ctc.config.blank_id, blank_penalty=blank_penalty)
        text = self.config.text
        silent = (text.unknown_id,) if text.unknown_is_blank and text.unknown_id is not None else ()
        if beam == 1 and head != "joint":
            return transducer_greedy(self.transducer, encoded, lengths, blank_penalty=blank_penalty, silent_ids=silent)
        found = transducer_beam(
            self.transducer,
            encoded,
            lengths,
            beam=beam,
            context_size=self.config.transducer.context_size,
            blank_penalty=blank_penalty,
            silent_ids=silent,
        )
        if head == "transducer":
            return found
        weight, blank = self.config.search.ctc_weight, self.config.ctc.blank_id
        return with_ctc(found, self.ctc(encoded), lengths, blank_id=blank, weight=weight)

    def _whole_chunks(self, frames: jax.Array) -> jax.Array:
        """Encoded frames of the chunks that a stream of this many feature frames (B,) decodes."""
        encoder = self.config.encoder
        chunks = ceil_div(jnp.maximum(frames - encoder.frames_per_step, 0), encoder.shift_per_step)
        return chunks * (encoder.chunk_size // encoder.output_downsampling)


class Skeleton:
    """A model's structure without numbers: made once, then filled inside a traced function at no cost per call."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._graph, self._state = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=_AnyKey())))
        self.parameters: dict[str, Any] = _named(nnx.to_pure_dict(self._state))
        """Shapes and types of every parameter, nested by name as a model directory stores them."""

    def fill(self, parameters: dict[str, Any]) -> Model:
        """The model over nested `parameters`, to call it or parts of it."""
        state = jax.tree.map(lambda leaf: leaf, self._state)
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(parameters))
        return nnx.merge(self._graph, state)


def named_parameters(model: Model) -> dict[str, Any]:
    """A model's parameters, nested by name as a model directory stores them and `Skeleton.fill` takes them."""
    return _named(nnx.to_pure_dict(nnx.state(model)))


class _AnyKey(nnx.Rngs):
    """One key for all where only shapes matter: counting keys takes four fifths of the time of making a skeleton."""

    def __init__(self) -> None:
        super().__init__()

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _named(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Module lists count their members with integers; paths and files hold names only."""
    return {str(key): _named(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
