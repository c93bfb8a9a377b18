"""Frames to encoded frames: the table of encoders, one file an architecture, and what the other rooms ask of them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxasr.arrays import Count
from jaxasr.configuration import Table, deferred
from jaxasr.encoders.citrinet_config import CitrinetConfig
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.encoders.fsmn_config import FsmnConfig
from jaxasr.encoders.icefall_conformer_config import IcefallConformerConfig
from jaxasr.encoders.sanm_config import SanmConfig
from jaxasr.encoders.zipformer_config import ZipformerConfig
from jaxasr.layers.dropout import Dropout


@runtime_checkable  # an argument of a head's configuration, which the shape checker of tests looks at
class EncoderConfig(Protocol):
    """What an encoder's configuration answers, so that nobody needs the module to count frames."""

    @property
    def kind(self) -> str: ...

    @property
    def input_dim(self) -> int:
        """Width of the frames that it takes."""
        ...

    @property
    def output_dim(self) -> int:
        """Width of the encoded frames."""
        ...

    @property
    def subsampling(self) -> int:
        """Feature frames from one encoded frame to the next."""
        ...

    def encoded_length(self, frames: Count) -> Count:
        """Encoded frames of so many feature frames: an int for an int, an integer array for an array."""
        ...

    def facts(self) -> dict[str, Any]:
        """What `jaxasr info` shows of this architecture beside its sizes."""
        ...


@runtime_checkable
class LocalEncoderConfig(EncoderConfig, Protocol):
    """The configuration of an encoder that hears few frames around each, so that long audio can be run in pieces."""

    @property
    def context(self) -> int:
        """Feature frames on either side that an encoded frame depends on, but for statistics of the utterance."""
        ...


@runtime_checkable
class ChunkedEncoderConfig(EncoderConfig, Protocol):
    """The configuration of an encoder that may take an utterance in chunks, whose frames see one another."""

    @property
    def encoded_chunk(self) -> int | None:
        """Encoded frames of a chunk, None where there are no chunks."""
        ...


@runtime_checkable
class StreamingEncoderConfig(EncoderConfig, Protocol):
    """The configuration of an encoder that takes a stream in steps; `streamable` says whether with these settings.

    Step n reads the `frames_per_step` feature frames from `first_frame` + n * `shift_per_step` on. Steps may overlap;
    frames before the stream (`first_frame` below 0) and after its end are zeros. All numbers are known without a
    device, so that the host decides which step of which stream runs.
    """

    @property
    def streamable(self) -> bool:
        """Whether `StreamingEncoder.step` over the steps of a stream gives what the whole utterance gives."""
        ...

    @property
    def first_frame(self) -> int:
        """The feature frame at which the first step's window begins: 0, or below it."""
        ...

    @property
    def frames_per_step(self) -> int:
        """Feature frames that a step reads."""
        ...

    @property
    def shift_per_step(self) -> int:
        """Feature frames from one step's window to the next one's."""
        ...

    @property
    def encoded_per_step(self) -> int:
        """Encoded frames that a step gives at most."""
        ...

    def ready_steps(self, frames: int) -> int:
        """Steps that may run while more frames than these `frames` may come: none of them is the stream's last.

        A last step that need not know that it is the last may count among them.
        """
        ...

    def ending(self, frames: int, known: int) -> tuple[int, int]:
        """Steps of a stream that has ended after so many feature frames; and how many of the frames they read.

        known: as many were known while more could have come. Never fewer steps than were ready then.
        """
        ...

    def counted(self, step: int, frames: int) -> int:
        """How many of the encoded frames of a step a search is given, where so many feature frames are known."""
        ...


class Encoder(Protocol):
    """An encoder: a Flax module, whose batch gives what single utterances give."""

    def __call__(
        self, frames: jax.Array, lengths: jax.Array, dropout: Dropout | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """frames (B, T, F), lengths (B,) -> encoded (B, T', D) in the type of the frames, lengths (B,) to decode.

        The lengths are those of the encoded frames that a search shall see, at most `encoded_length`. `dropout` is
        given in training only.
        """
        ...


@runtime_checkable
class StreamingEncoder(Encoder, Protocol):
    """An encoder with a form that takes an utterance in pieces; a state is a pytree with the batch axis first."""

    def initial_state(self, batch: int, dtype: jnp.dtype = ...) -> Any:
        """The state before the first piece."""
        ...

    def step(
        self, state: Any, frames: jax.Array, lengths: jax.Array | None = None, final: jax.Array | None = None
    ) -> tuple[Any, jax.Array]:
        """One piece of frames (B, T, F) -> the state after it, encoded (B, T', D).

        lengths (B,): frames of the piece that exist, all of them where it is None. final (B,) bool: rows whose stream
        ends with this piece, none where it is None.
        """
        ...


# Every encoder by its `kind`: made as (config, rngs=).
ENCODERS: Table[Encoder] = Table(
    {
        "citrinet": (CitrinetConfig, deferred("jaxasr.encoders.citrinet", "Citrinet")),
        "conformer": (ConformerConfig, deferred("jaxasr.encoders.conformer", "Conformer")),
        "fsmn": (FsmnConfig, deferred("jaxasr.encoders.fsmn", "Fsmn")),
        "icefall_conformer": (
            IcefallConformerConfig,
            deferred("jaxasr.encoders.icefall_conformer", "IcefallConformer"),
        ),
        "sanm": (SanmConfig, deferred("jaxasr.encoders.sanm", "Sanm")),
        "zipformer": (ZipformerConfig, deferred("jaxasr.encoders.zipformer", "Zipformer")),
    }
)
