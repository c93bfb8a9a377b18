"""Waveform to frames: the table of front ends, one file each, and what the other rooms ask of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax

from jaxasr.arrays import Count
from jaxasr.configuration import Table, deferred
from jaxasr.features.kaldi_config import KaldiConfig
from jaxasr.features.lfr_config import LfrConfig
from jaxasr.features.nemo_config import NemoMelConfig
from jaxasr.features.nemo_mfcc_config import NemoMFCCConfig


@runtime_checkable  # an argument, which the shape checker of tests looks at
class FeaturesConfig(Protocol):
    """What a front end's configuration answers."""

    @property
    def kind(self) -> str: ...

    @property
    def sample_rate(self) -> int:
        """Samples per second that the front end takes (Hz)."""
        ...

    @property
    def output_dim(self) -> int:
        """Width of a frame."""
        ...

    @property
    def frame_seconds(self) -> float:
        """Seconds from frame to frame."""
        ...

    def frame_count(self, samples: Count) -> Count:
        """Frames that so many samples give: an int for an int, an integer array for an array."""
        ...


@runtime_checkable
class StreamingFeaturesConfig(FeaturesConfig, Protocol):
    """The configuration of a front end whose frames each depend on few samples, so that a stream's can be made."""

    @property
    def reach(self) -> tuple[int, int] | None:
        """Samples that a frame is made of: of those before and those from the sample where the frame stands on.

        Frame n stands at sample n * frame_seconds * sample_rate. None where a frame depends on the whole recording.
        """
        ...


class Features(Protocol):
    """A front end: a Flax module, since some hold arrays of the checkpoint."""

    def __call__(
        self, waveforms: jax.Array, lengths: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """waveforms (B, S) float32 in -1..1, lengths (B,) in samples -> frames (B, T, F) float32, lengths (B,)."""
        ...


@runtime_checkable
class StreamingFeatures(Features, Protocol):
    """A front end with a form that makes some of a stream's frames out of the samples around them. It has no state."""

    def piece(self, samples: jax.Array, begin: jax.Array, end: jax.Array) -> jax.Array:
        """samples (B, W) float32 around consecutive frames -> the frames (B, T, F), equal to those of the whole stream.

        With before, after = config.reach the first frame stands at sample `before` of the row, and W is before +
        (T - 1) * shift + after. begin, end (B,) int32: the stream is samples[begin:end]; begin is below 0 where the
        stream began before the row, end is W where more samples follow. Of a frame that does not exist in the stream
        any finite values may be returned.
        """
        ...


# Every front end by its `kind`: made as (config, rngs=).
FEATURES: Table[Features] = Table(
    {
        "kaldi": (KaldiConfig, deferred("jaxasr.features.kaldi", "KaldiFbank")),
        "lfr": (LfrConfig, deferred("jaxasr.features.lfr", "Lfr")),
        "nemo_mel": (NemoMelConfig, deferred("jaxasr.features.nemo", "NemoMel")),
        "nemo_mfcc": (NemoMFCCConfig, deferred("jaxasr.features.nemo_mfcc", "NemoMFCC")),
    }
)


def require_fit(features: FeaturesConfig, input_dim: int, sample_rate: int) -> None:
    """ValueError for features that an encoder of frames of this width, or recordings at this rate (Hz), do not fit."""
    if features.output_dim != input_dim:
        raise ValueError(f"the features have {features.output_dim} bins, but the encoder's input_dim is {input_dim}")
    if features.sample_rate != sample_rate:
        raise ValueError(f"features.sample_rate is {features.sample_rate}, but recordings come at {sample_rate} Hz")
