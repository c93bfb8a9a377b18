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


class Features(Protocol):
    """A front end: a Flax module, since some hold arrays of the checkpoint."""

    def __call__(
        self, waveforms: jax.Array, lengths: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """waveforms (B, S) float32 in -1..1, lengths (B,) in samples -> frames (B, T, F) float32, lengths (B,)."""
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
