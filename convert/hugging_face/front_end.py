"""The front end that preprocessor_config.json describes: NeMo's of today, whose filterbank and window are designed."""

from __future__ import annotations

from jaxasr.convert.hugging_face.settings import FeatureSettings
from jaxasr.errors import CheckpointError, printable
from jaxasr.features.nemo_config import NemoMelConfig

EXTRACTOR = "ParakeetFeatureExtractor"
FFT_LIMIT, BINS_LIMIT = 1 << 14, 1 << 10  # beyond any front end for speech; arrays are designed by these sizes


def features_config(settings: FeatureSettings) -> NemoMelConfig:
    """ParakeetFeatureExtractor as our configuration; ValueError where numbers contradict each other.

    Its frames are those of NeMo 2.5 and later: zeros beyond the ends, samples // hop_length frames, per feature mean 0
    and deviation 1 over them. It adds no dither.
    """
    if settings.feature_extractor_type != EXTRACTOR:
        shown = printable(repr(settings.feature_extractor_type), 80)
        raise CheckpointError(
            f"feature_extractor_type is {shown}: no front end that jaxasr knows; known is {EXTRACTOR}"
        )
    if settings.n_fft % 2 or settings.n_fft > FFT_LIMIT or settings.feature_size > BINS_LIMIT:
        raise CheckpointError(
            f"n_fft and feature_size are {settings.n_fft:,} and {settings.feature_size:,}: known are even numbers to "
            f"{FFT_LIMIT:,}, and numbers to {BINS_LIMIT:,}"
        )
    return NemoMelConfig(
        sample_rate=settings.sampling_rate,
        window_length=settings.win_length,
        hop_length=settings.hop_length,
        fft_length=settings.n_fft,
        bins=settings.feature_size,
        high_freq=settings.sampling_rate / 2,
        preemphasis=settings.preemphasis or 0.0,
        dither=0.0,
    )
