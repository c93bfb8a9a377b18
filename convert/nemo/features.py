"""The front end that `preprocessor` of a model_config.yaml describes, and its arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxasr.convert.mapping import Ignored, Rule, same
from jaxasr.convert.nemo.settings import Section
from jaxasr.errors import CheckpointError
from jaxasr.features import FeaturesConfig
from jaxasr.features.nemo_config import NemoMelConfig, WindowShape
from jaxasr.features.nemo_mfcc_config import TORCHAUDIO_MEL, NemoMFCCConfig

MEL_TARGET, MFCC_TARGET = "AudioToMelSpectrogramPreprocessor", "AudioToMFCCPreprocessor"

# Of training, of padding that NeMo's `transcribe` turns off, or of ways to compute the same frames.
_IGNORED_KEYS = frozenset(
    "_target_ pad_to max_duration rng nb_augmentation_prob nb_max_freq use_grads stft_conv stft_exact_pad "
    "use_torchaudio".split()
)
_USED_KEYS = frozenset(
    "sample_rate window_size window_stride n_window_size n_window_stride window normalize n_fft preemph features "
    "lowfreq highfreq log log_zero_guard_type log_zero_guard_value dither frame_splicing exact_pad pad_value mag_power "
    "mel_norm".split()
)
_MFCC_KEYS = frozenset(
    "_target_ sample_rate window_size window_stride n_window_size n_window_stride window n_fft lowfreq highfreq n_mels "
    "n_mfcc dct_type norm log".split()
)
_WINDOWS: tuple[WindowShape, ...] = ("hann", "hamming", "blackman", "bartlett")
_GUARDS = {"tiny": float(np.finfo(np.float32).tiny), "eps": float(np.finfo(np.float32).eps)}


def _filterbank(x: np.ndarray) -> np.ndarray:
    """(1, bins, lines) -> (lines, bins)."""
    return x.reshape(x.shape[1:]).T


TABLE = (
    Rule(r"preprocessor\.featurizer\.fb", "features.filterbank", _filterbank),
    Rule(r"preprocessor\.featurizer\.window", "features.window", same),
    Rule(r"preprocessor\.featurizer\.MelSpectrogram\.mel_scale\.fb", "features.mel.filterbank", same),
    Rule(r"preprocessor\.featurizer\.MelSpectrogram\.spectrogram\.window", "features.mel.window", same),
    Rule(r"preprocessor\.featurizer\.dct_mat", "features.cosines", same),
)

IGNORED = (Ignored(r"preprocessor\.featurizer\.stft\..*", "the Fourier transform as a convolution (stft_conv)"),)


def features_config(settings: Mapping[str, Any]) -> NemoMelConfig | NemoMFCCConfig:
    """The front end that the settings describe, with NeMo 3.0's defaults for what they leave out.

    CheckpointError for what it cannot be; ValueError where numbers contradict each other.
    """
    section = Section(settings, "preprocessor")
    if section.target == MFCC_TARGET:
        return _mfcc_config(section)
    if section.target != MEL_TARGET:
        raise section.refuse("_target_", f"no front end that jaxasr knows; known are {MEL_TARGET} and {MFCC_TARGET}")
    _refuse_unknown(section, _IGNORED_KEYS | _USED_KEYS)
    if section.integer("frame_splicing", 1) != 1:
        raise section.refuse("frame_splicing", "frames are not spliced here")
    if section.flag("exact_pad", False):
        raise section.refuse("exact_pad", "frames are centred here")
    rate, length, hop = _framing(section)
    window = section.text("window", "hann")
    return NemoMelConfig(
        sample_rate=rate,
        window_length=length,
        hop_length=hop,
        fft_length=_fft_length(section, length),
        bins=section.integer("features", 64),
        low_freq=section.number("lowfreq", 0.0),
        high_freq=section.number("highfreq", 0.0) or rate / 2,
        mel_norm=_mel_norm(section),
        window=next((known for known in _WINDOWS if known == window), "none"),
        # `preemph: null` is none, a missing key the default.
        preemphasis=section.number("preemph", 0.0) if "preemph" in section.values else 0.97,
        mag_power=section.number("mag_power", 2.0),
        log=section.flag("log", True),
        log_guard=_log_guard(section),
        log_guard_value=_log_guard_value(section),
        normalize=_normalization(section),
        pad_value=section.number("pad_value", 0.0),
        dither=section.number("dither", 1e-5),
    )


def _mfcc_config(section: Section) -> NemoMFCCConfig:
    """The cepstral front end, of which NeMo calls torchaudio's."""
    _refuse_unknown(section, _MFCC_KEYS)
    if not section.flag("log", True):
        raise section.refuse("log", "decibels depend on the loudest frame, and are not known here")
    if section.integer("dct_type", 2) != 2 or section.text("norm", "ortho") != "ortho":
        key = "norm" if section.integer("dct_type", 2) == 2 else "dct_type"
        raise section.refuse(key, "the cosine transform here is the orthonormal one of type 2")
    rate, length, hop = _framing(section)
    window = section.text("window", "hann")
    if window not in (*_WINDOWS, "ones"):
        raise section.refuse("window", f"known are {', '.join(_WINDOWS)} and ones")
    mel = dataclasses.replace(
        TORCHAUDIO_MEL,
        sample_rate=rate,
        window_length=length,
        hop_length=hop,
        fft_length=_fft_length(section, length),
        bins=section.integer("n_mels", 64),
        low_freq=section.number("lowfreq", 0.0),
        high_freq=section.number("highfreq", 0.0) or rate / 2,
        window=next((known for known in _WINDOWS if known == window), "none"),
    )
    return NemoMFCCConfig(mel=mel, coefficients=section.integer("n_mfcc", 64))


def _refuse_unknown(section: Section, known: frozenset[str]) -> None:
    if unknown := sorted(section.values.keys() - known):
        raise section.refuse(unknown[0], "an option that jaxasr does not know")


def _framing(section: Section) -> tuple[int, int, int]:
    """The sampling rate (Hz), and the samples of a window and from one window to the next."""
    rate = section.integer("sample_rate", 16000)
    length = section.integer("n_window_size", int(section.number("window_size", 0.02) * rate))
    hop = section.integer("n_window_stride", int(section.number("window_stride", 0.01) * rate))
    if length < 1 or hop < 1:
        raise CheckpointError("preprocessor: window_size and window_stride must cover at least one sample")
    return rate, length, hop


def _fft_length(section: Section, window_length: int) -> int:
    return section.integer("n_fft", 0) or 2 ** math.ceil(math.log2(window_length))


def with_designed_arrays(
    mapped: dict[str, np.ndarray], config: FeaturesConfig, notes: list[str]
) -> dict[str, np.ndarray]:
    """`mapped`, to which the front end's arrays are added by design where the checkpoint holds none."""
    from jaxasr.features.nemo import design_filterbank, design_window
    from jaxasr.features.nemo_mfcc import design_cosines

    designed: dict[str, Callable[[], np.ndarray]] = {}
    mel, prefix = config, "features."
    if isinstance(config, NemoMFCCConfig):
        designed["features.cosines"] = lambda: design_cosines(config)
        mel, prefix = config.mel, "features.mel."
    if isinstance(mel, NemoMelConfig):
        designed[f"{prefix}filterbank"] = lambda: design_filterbank(mel)
        if mel.window != "none":
            designed[f"{prefix}window"] = lambda: design_window(mel)
    missing = {path: design() for path, design in designed.items() if path not in mapped}
    if missing:
        notes.append(f"the checkpoint holds no {' and no '.join(missing)}: designed by its configuration")
    return mapped | missing


def _mel_norm(section: Section) -> Any:
    value = section.values.get("mel_norm", "slaney")
    if value not in ("slaney", None):
        raise section.refuse("mel_norm", "the triangles' norm is slaney or null")
    return value or "none"


def _log_guard(section: Section) -> Any:
    value = section.text("log_zero_guard_type", "add")
    if value not in ("add", "clamp"):
        raise section.refuse("log_zero_guard_type", "it is add or clamp")
    return value


def _log_guard_value(section: Section) -> float:
    named = section.values.get("log_zero_guard_value")
    if isinstance(named, str) and named in _GUARDS:
        return _GUARDS[named]
    return section.number("log_zero_guard_value", 2.0**-24)


def _normalization(section: Section) -> Any:
    """NeMo takes every other text for no normalization."""
    value = section.values.get("normalize", "per_feature")
    if isinstance(value, Mapping):
        raise section.refuse("normalize", "stored means and deviations are not known here")
    return value if value in ("per_feature", "all_features") else "none"
