"""config.yaml of a FunASR model directory: which classes it names, and their options, checked by name and type.

Classes were registered in lower case with underscores at first (`sanm`, `paraformer_decoder_sanm`), and under their
own names since 1.0 (`SANMEncoder`). Nothing is instantiated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxasr.configuration import from_mapping
from jaxasr.errors import CheckpointError, printable

Options = TypeVar("Options")

# Every spelling of a class in lower case, and what it stands for here.
MODELS = {
    "paraformer": "plain",
    "bicifparaformer": "plain",
    "bicif_paraformer": "plain",
    "paraformerstreaming": "plain",
    "paraformer_streaming": "plain",
    "paraformeronline": "plain",
    "paraformer_online": "plain",
}
ENCODERS = {
    "sanmencoder": "whole",
    "sanm": "whole",
    "sanmencoderchunkopt": "chunks",
    "sanm_chunk_opt": "chunks",
}
DECODERS = {"paraformersanmdecoder": "sanm", "paraformer_decoder_sanm": "sanm"}
PREDICTORS = {
    "cifpredictor": "depthwise",
    "cif_predictor": "depthwise",
    "cifpredictorv2": "full",
    "cif_predictor_v2": "full",
    "cifpredictorv3": "peaks",
    "cif_predictor_v3": "peaks",
}
FRONT_ENDS = {"wavfrontend": "lfr", "wav_frontend": "lfr", "wavfrontendonline": "lfr", "wav_frontend_online": "lfr"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """encoder_conf, with the defaults of the class."""

    output_size: int = 256
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 6
    kernel_size: int = 11
    sanm_shfit: int = 0
    input_layer: str = "conv2d"
    normalize_before: bool = True
    concat_after: bool = False
    positionwise_layer_type: str = "linear"
    selfattention_layer_type: str = "sanm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkedEncoderOptions(EncoderOptions):
    """encoder_conf of the streaming class: the kinds of chunks that it was trained with, one beside the other."""

    chunk_size: tuple[int, ...] = (16,)
    stride: tuple[int, ...] = (10,)
    pad_left: tuple[int, ...] = (0,)
    encoder_att_look_back_factor: tuple[int, ...] = (1,)
    decoder_att_look_back_factor: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """decoder_conf, with the defaults of the class."""

    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 6
    att_layer_num: int = 6
    kernel_size: int = 21
    sanm_shfit: int = 0
    normalize_before: bool = True
    concat_after: bool = False
    use_output_layer: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """predictor_conf, with the defaults of the classes."""

    l_order: int = 1
    r_order: int = 1
    threshold: float = 1.0
    smooth_factor: float = 1.0
    noise_threshold: float = 0.0
    tail_threshold: float | None = None  # 0.45 in the first class, 0 in the others
    smooth_factor2: float = 1.0
    noise_threshold2: float = 0.0
    upsample_times: int = 5
    upsample_type: str = "cnn"
    use_cif1_cnn: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontEndOptions:
    """frontend_conf, with the defaults of the class. Its dither, 1 by default, is never done here."""

    fs: int = 16000
    window: str = "hamming"
    n_mels: int = 80
    frame_length: int = 25
    frame_shift: int = 10
    lfr_m: int = 1
    lfr_n: int = 1
    snip_edges: bool = True
    upsacle_samples: bool = True


# Options of the training, of files that lie elsewhere, and of forms that are not run here.
WITHOUT_EFFECT = frozenset(
    "dropout_rate positional_dropout_rate attention_dropout_rate self_attention_dropout_rate "
    "src_attention_dropout_rate pos_enc_class padding_idx interctc_layer_idx interctc_use_conditioning "
    "tf2torch_tensor_name_prefix_torch tf2torch_tensor_name_prefix_tf embed_tensor_name_prefix_tf embeds_id "
    "concat_embeds idim dropout tail_mask dither cmvn_file filter_length_min filter_length_max "
    "positionwise_conv_kernel_size wo_input_layer input_size vocab_size encoder_output_size lora_list lora_rank "
    "lora_alpha lora_dropout chunk_multiply_factor".split()
)


def options(cls: type[Options], settings: Mapping[str, Any], key: str) -> Options:
    """The mapping `key` of config.yaml as `cls`; CheckpointError where it is none, ConfigError for a wrong option."""
    found = settings.get(key)
    if found is None:
        found = {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.yaml: {key} is not a mapping of keys")
    known = {name: value for name, value in found.items() if name not in WITHOUT_EFFECT}
    return from_mapping(cls, known, f"config.yaml: {key}")


def meaning(settings: Mapping[str, Any], key: str, known: Mapping[str, str]) -> str:
    """What the class that `key` names stands for; CheckpointError for one that is not known here."""
    name = settings.get(key)
    found = known.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"config.yaml: {key} is {printable(repr(name), 80)}, which jaxasr does not know; known are "
            f"{', '.join(known)}"
        )
    return found


def refuse(section: str, name: str, value: object, why: str) -> CheckpointError:
    """The error for an option that no model here can follow."""
    return CheckpointError(f"config.yaml: {section}.{name} is {printable(repr(value), 80)}: {why}")
