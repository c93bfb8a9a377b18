"""config.json and preprocessor_config.json as data: what of them shapes a recogniser, with Transformers' defaults.

Source: transformers 5.24.0, models/parakeet/configuration_parakeet.py and feature_extraction_parakeet.py. Keys of the
training, and those that every model of Transformers has, are not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxasr.configuration import from_mapping
from jaxasr.errors import CheckpointError, ConfigError, printable

Settings = TypeVar("Settings")

_SHOWN = 200  # characters of a message that quotes a foreign value


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """ParakeetEncoderConfig: a FastConformer. Attention and feed-forward have biases together, convolutions their own.

    `head_dim` None: hidden_size / num_attention_heads.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    intermediate_size: int = 4096
    hidden_act: str = "silu"
    attention_bias: bool = True
    convolution_bias: bool = True
    conv_kernel_size: int = 9
    subsampling_factor: int = 8
    subsampling_conv_channels: int = 256
    subsampling_conv_kernel_size: int = 3
    subsampling_conv_stride: int = 2
    num_mel_bins: int = 80
    scale_input: bool = True
    head_dim: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTCSettings:
    """ParakeetCTCConfig: the token that pads is the blank."""

    vocab_size: int = 1025
    pad_token_id: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransducerSettings:
    """ParakeetRNNTConfig: an LSTM and a joint network of the same width."""

    vocab_size: int = 8193
    decoder_hidden_size: int = 640
    num_decoder_layers: int = 2
    hidden_act: str = "relu"
    max_symbols_per_step: int = 10
    blank_token_id: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class DurationSettings(TransducerSettings):
    """ParakeetTDTConfig: `durations` are frames that a token may span, in the order of the joint's further outputs."""

    durations: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """ParakeetFeatureExtractor, in samples and Hz; `preemphasis` null for none."""

    feature_extractor_type: str = "ParakeetFeatureExtractor"
    feature_size: int = 80
    sampling_rate: int = 16000
    hop_length: int = 160
    n_fft: int = 512
    win_length: int = 400
    preemphasis: float | None = 0.97


def read_settings(cls: type[Settings], mapping: Any, where: str) -> Settings:
    """The fields of `cls` in `mapping`; its other keys are left alone. CheckpointError for a value of another type."""
    if not isinstance(mapping, Mapping):
        raise CheckpointError(f"{where} is no mapping of keys")
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    try:
        return from_mapping(cls, {name: mapping[name] for name in names if name in mapping}, where)
    except ConfigError as error:
        raise CheckpointError(printable(str(error), _SHOWN)) from None
