"""icefall Conformers, whichever file they came from: scales folded, the table of names, and the configuration."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxasr.convert.formats.mapped import release
from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.convert.icefall import heads
from jaxasr.convert.icefall.chunks import Frames, choose_chunks, refuse_chunks, trained_with
from jaxasr.convert.icefall.front_end import front_end_rules
from jaxasr.convert.mapping import (
    Checkpoint,
    Ignored,
    Rule,
    conv1d,
    linear,
    map_quantized,
    map_tensors,
    pointwise,
    same,
)
from jaxasr.convert.protocol import Options
from jaxasr.encoders.icefall_conformer_config import IcefallConformerConfig
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.model_config import ModelConfig

FRAME_SECONDS = 0.04  # between encoded frames, in which chunks are counted

# --- names -----------------------------------------------------------------------------------------------------------


def _head_bias(x: np.ndarray) -> np.ndarray:
    """(heads, d) -> (heads * d,), times sqrt(d): icefall adds it to queries that are scaled already, we to unscaled."""
    scaled: np.ndarray = x.reshape(-1) * np.float32(math.sqrt(x.shape[1]))
    return scaled


LAYER = r"encoder\.encoder\.layers\.(?P<layer>\d+)"
IN_LAYER = "encoder.layers.{layer}."
LINEARS = {
    "self_attn.in_proj.query": "attention.query",
    "self_attn.in_proj.key": "attention.key",
    "self_attn.in_proj.value": "attention.value",
    "self_attn.out_proj": "attention.out",
    "feed_forward_macaron.0": "feed_forward_macaron.in_proj",
    "feed_forward_macaron.4": "feed_forward_macaron.out_proj",
    "feed_forward.0": "feed_forward.in_proj",
    "feed_forward.4": "feed_forward.out_proj",
}
POINTWISE = {"conv_module.pointwise_conv1": "conv.in_proj", "conv_module.pointwise_conv2": "conv.out_proj"}

TABLE: tuple[Rule, ...] = (
    *front_end_rules("encoder.encoder_embed", (0, 3, 6)),
    Rule(r"encoder\.encoder_embed\.out_norm\.eps", "encoder.embed.norm.log_epsilon", same),
    *(Rule(LAYER + re.escape(f".{name}.weight"), f"{IN_LAYER}{ours}.kernel", linear) for name, ours in LINEARS.items()),
    *(Rule(LAYER + re.escape(f".{name}.bias"), f"{IN_LAYER}{ours}.bias", same) for name, ours in LINEARS.items()),
    Rule(LAYER + r"\.self_attn\.linear_pos\.weight", IN_LAYER + "attention.position.kernel", linear),
    Rule(LAYER + r"\.self_attn\.pos_bias_u", IN_LAYER + "attention.content_bias", _head_bias),
    Rule(LAYER + r"\.self_attn\.pos_bias_v", IN_LAYER + "attention.position_bias", _head_bias),
    *(
        Rule(LAYER + re.escape(f".{name}.weight"), f"{IN_LAYER}{ours}.kernel", pointwise)
        for name, ours in POINTWISE.items()
    ),
    *(Rule(LAYER + re.escape(f".{name}.bias"), f"{IN_LAYER}{ours}.bias", same) for name, ours in POINTWISE.items()),
    Rule(LAYER + r"\.conv_module\.depthwise_conv\.weight", IN_LAYER + "conv.depthwise.kernel", conv1d),
    Rule(LAYER + r"\.conv_module\.depthwise_conv\.bias", IN_LAYER + "conv.depthwise.bias", same),
    Rule(LAYER + r"\.norm_final\.eps", IN_LAYER + "norm.log_epsilon", same),
    *heads.TABLE,
)

IGNORED: tuple[Ignored, ...] = (
    Ignored(
        r"encoder\.encoder\.combiner\.linear\.\d+\.(weight|bias)",
        "weighs the outputs of layers in training; inference takes the last layer's (stateless5 before July 2022)",
    ),
    Ignored(
        r"(decoder|joiner|simple_(am|lm)_proj)_giga\..*",
        "a second predictor and joiner, trained on GigaSpeech beside those of the model (stateless3)",
    ),
    *heads.IGNORED,
)

_SCALE = re.compile(r"(?P<base>.+\.(weight|bias|pos_bias_u|pos_bias_v))_scale")
_EMBEDDING_SCALE = re.compile(r"(?P<base>.+\.embedding)\.scale")


def is_conformer(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a Conformer; an older class has the same and more."""
    return any(re.match(LAYER + r"\.self_attn\.(in_proj|pos_bias_u)", name) for name in tensors)


def fold_scales(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with every weight multiplied by the exponential of the log scale that training keeps beside it.

    icefall's own convert_scaled_to_non_scaled leaves the attention's in_proj, out_proj and biases as they are; here all
    are folded. CheckpointError for a scale that is no single number.
    """
    folded = dict(tensors)
    for name, scale in tensors.items():
        match = _SCALE.fullmatch(name) or _EMBEDDING_SCALE.fullmatch(name)
        base = None if match is None else match["base"] + ("" if name.endswith("_scale") else ".weight")
        if base is None or base not in tensors:
            continue
        if scale.shape != ():
            raise CheckpointError(f"tensor {name} has shape {scale.shape}: a scale of icefall's is one number")
        with np.errstate(over="ignore"):  # what is not finite then is named with all such parameters
            folded[base] = tensors[base].astype(np.float32) * np.exp(scale.astype(np.float32))
        release(tensors[base])
        del folded[name]
    return folded


def map_checkpoint(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The checkpoint's tensors by the paths of our parameters, folded; CheckpointError where one has no place."""
    return map_tensors(split_projections(fold_scales(checkpoint.tensors)), TABLE, IGNORED)


def map_integers(checkpoint: Checkpoint) -> dict[str, QuantizedTensor]:
    """The integers that are to stay such by the paths of our parameters."""
    split: dict[str, QuantizedTensor] = {}
    for name, tensor in checkpoint.quantized.items():
        prefix, found, parameter = name.partition(".self_attn.in_proj.")
        if not found:
            split[name] = tensor
            continue
        rows = tensor.shape[0] // 3
        for place, part in enumerate(("query", "key", "value")):
            split[f"{prefix}{found}{part}.{parameter}"] = tensor.entries(place * rows, (place + 1) * rows)
    return map_quantized(split, TABLE)


def split_projections(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the rows of every attention's in_proj as those of query, key and value."""
    split: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        prefix, found, parameter = name.partition(".self_attn.in_proj.")
        if not found or tensor.ndim == 0 or tensor.shape[0] % 3:
            split[name] = tensor
            continue
        for part, rows in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
            split[f"{prefix}{found}{part}.{parameter}"] = rows
    return split


# --- configuration ---------------------------------------------------------------------------------------------------


def derive_config(checkpoint: Checkpoint, options: Options, unknown_id: int | None) -> ModelConfig:
    """The configuration that the shapes of a checkpoint's tensors and the recipe's arguments prove.

    `checkpoint.notes` says what was assumed. ConfigError where arguments and shapes contradict each other, and where
    nothing tells whether the convolutions are causal: either way a model would come out, one of them speaking nonsense.
    """
    tensors, settings = checkpoint.tensors, checkpoint.settings
    sizes = _derive_sizes(tensors)
    for key, value in sizes.items():
        stated = trained_with(settings, key)
        if stated and stated != (value,):
            raise ConfigError(f"{key} is {settings[key]} in the configuration, but the tensors say {value}")
    causal = _is_causal(checkpoint)
    chunk, left_context = _chunks(settings, causal, options, checkpoint.notes)
    try:
        encoder = IcefallConformerConfig(
            num_layers=sizes["num_encoder_layers"],
            encoder_dim=sizes["encoder_dim"],
            feedforward_dim=sizes["dim_feedforward"],
            num_heads=sizes["nhead"],
            conv_kernel=sizes["cnn_module_kernel"],
            input_dim=heads.feature_bins(settings),
            causal=causal,
            chunk_size=chunk,
            left_context=left_context,
            right_context=int(settings.get("right_context", 0)) if chunk > 0 else 0,
            whole_chunks=chunk > 0,
        )
        return heads.model_config(options.name, encoder, checkpoint, unknown_id, encoder.whole_chunks)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def complete_config(config: ModelConfig, checkpoint: Checkpoint, options: Options) -> ModelConfig:
    """A given configuration with the chunks of the options, else of the export, and the heads that the file holds."""
    settings, encoder = checkpoint.settings, config.encoder
    if not isinstance(encoder, IcefallConformerConfig):
        raise ConfigError(f"{config.name} describes a {encoder.kind}, but the checkpoint holds an icefall Conformer")
    stated = settings.get("causal_convolution")
    if stated is not None and bool(stated) != encoder.causal:
        raise ConfigError(
            f"{config.name} has causal {encoder.causal}, but the checkpoint's causal_convolution is {stated}"
        )
    asked = options.chunk_seconds is not None or options.left_context_seconds is not None
    try:
        config = heads.without_absent(config, checkpoint)
        if asked or (encoder.causal and "chunk_size" in settings):
            chunk, left_context = _chunks(settings, encoder.causal, options, [])
            ahead = int(settings.get("right_context", encoder.right_context)) if chunk > 0 else 0
            encoder = dataclasses.replace(
                encoder,
                chunk_size=chunk,
                left_context=left_context,
                right_context=ahead,
                whole_chunks=chunk > 0,
            )
            config = dataclasses.replace(config, encoder=encoder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def _derive_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The recipe's arguments, from the shapes of the first layer; the table holds all layers against them."""
    older = next((name for name in tensors if re.match(LAYER + r"\.norm_(ff|mha|conv|ff_macaron)\.", name)), None)
    if older is not None:
        raise CheckpointError(
            f"tensor {older} belongs to icefall's older Conformer (transducer_stateless, and "
            "pruned_transducer_stateless without a number), which jaxasr does not know: known are "
            "pruned_transducer_stateless2 to 5"
        )
    numbers = {int(match["layer"]) for match in (re.match(LAYER, name) for name in tensors) if match}
    if numbers != set(range(len(numbers))):
        raise CheckpointError("the numbers of the encoder's layers have holes: tensors are missing")

    def size(name: str, axis: int) -> int:
        name = f"encoder.encoder.layers.0.{name}"
        if name not in tensors or tensors[name].ndim <= axis:
            raise CheckpointError(f"tensor {name} is missing: this is not a whole icefall Conformer")
        return int(tensors[name].shape[axis])

    return {
        "num_encoder_layers": len(numbers),
        "encoder_dim": size("self_attn.in_proj.weight", 1),
        "dim_feedforward": size("feed_forward.0.weight", 0),
        "nhead": size("self_attn.pos_bias_u", 0),
        "cnn_module_kernel": size("conv_module.depthwise_conv.weight", 2),
    }


def _is_causal(checkpoint: Checkpoint) -> bool:
    """What the export or the arguments say; the recipe's default where arguments are there and do not mention it."""
    settings = checkpoint.settings
    if "causal_convolution" in settings:
        return bool(settings["causal_convolution"])
    if not settings.keys() & {"num_encoder_layers", "dim_feedforward", "nhead", "encoder_dim"}:
        raise ConfigError(
            "the tensors leave open whether the convolutions are causal: give the arguments of its train.py "
            "(causal_convolution: false, or true for a model that streams), or its configuration, as config"
        )
    checkpoint.notes.append("the arguments do not mention causal_convolution: false is taken, the recipe's default")
    return False


def _chunks(settings: Mapping[str, Any], causal: bool, options: Options, notes: list[str]) -> tuple[int, int]:
    """Chunk size and left context in encoded frames, -1 both for a model that sees whole utterances."""
    if not causal:
        refuse_chunks(options)
        return -1, -1
    asked = options.chunk_seconds is not None or options.left_context_seconds is not None
    if not asked and not settings.get("dynamic_chunk_training", True):
        notes.append("the model was trained without chunks: it sees whole utterances (chunk_seconds overrides)")
        return -1, -1
    chunk, left_context = choose_chunks(settings, options, Frames(FRAME_SECONDS), notes)
    if chunk < 0:
        return -1, -1
    if left_context < 0:
        raise ConfigError(
            "left_context_seconds must be limited where a Conformer streams: chunk_seconds inf decodes whole utterances"
        )
    return chunk, left_context
