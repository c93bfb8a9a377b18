"""icefall Zipformers, whichever file they came from: the table of names, and the configuration that shapes prove."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxasr.configs import named_configs
from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.convert.icefall import heads
from jaxasr.convert.icefall.chunks import Frames, choose_chunks, refuse_chunks, trained_with
from jaxasr.convert.icefall.front_end import front_end_rules
from jaxasr.convert.mapping import (
    Checkpoint,
    Ignored,
    Rule,
    conv1d,
    conv2d,
    linear,
    map_quantized,
    map_tensors,
    pointwise,
    same,
)
from jaxasr.convert.protocol import Options
from jaxasr.encoders.zipformer_config import ZipformerConfig
from jaxasr.errors import CheckpointError, ConfigError, listing
from jaxasr.model_config import ModelConfig
from jaxasr.store import read_config

# --- names -----------------------------------------------------------------------------------------------------------


def _edges(x: np.ndarray) -> np.ndarray:
    """(2, channels, width) -> (2, width, channels)."""
    return x.transpose(0, 2, 1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    """Only differences of a softmax's bias count: the one form in which .pt and .onnx agree."""
    shifted = x.astype(np.float64) - x.max()
    logarithms: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return logarithms.astype(np.float32)


STACK = r"encoder\.encoders\.(?P<stack>\d+)"
LAYER = STACK + r"\.(?:encoder\.)?layers\.(?P<layer>\d+)"
LINEARS = {
    "self_attn_weights.in_proj": "attention_weights.in_proj",
    "self_attn1.in_proj": "attention1.in_proj",
    "self_attn1.out_proj": "attention1.out_proj",
    "self_attn2.in_proj": "attention2.in_proj",
    "self_attn2.out_proj": "attention2.out_proj",
    "feed_forward1.in_proj": "feed_forward1.in_proj",
    "feed_forward1.out_proj": "feed_forward1.out_proj",
    "feed_forward2.in_proj": "feed_forward2.in_proj",
    "feed_forward2.out_proj": "feed_forward2.out_proj",
    "feed_forward3.in_proj": "feed_forward3.in_proj",
    "feed_forward3.out_proj": "feed_forward3.out_proj",
    "nonlin_attention.in_proj": "nonlin_attention.in_proj",
    "nonlin_attention.out_proj": "nonlin_attention.out_proj",
    "conv_module1.in_proj": "conv1.in_proj",
    "conv_module1.out_proj": "conv1.out_proj",
    "conv_module2.in_proj": "conv2.in_proj",
    "conv_module2.out_proj": "conv2.out_proj",
}
IN_LAYER = "encoder.stacks.{stack}.layers.{layer}."

TABLE: tuple[Rule, ...] = (
    *front_end_rules("encoder_embed", (0, 4, 7)),
    Rule(r"encoder_embed\.convnext\.depthwise_conv\.weight", "encoder.embed.convnext.depthwise.kernel", conv2d),
    Rule(r"encoder_embed\.convnext\.depthwise_conv\.bias", "encoder.embed.convnext.depthwise.bias", same),
    Rule(
        r"encoder_embed\.convnext\.pointwise_conv(?P<n>[12])\.weight",
        "encoder.embed.convnext.pointwise{n}.kernel",
        pointwise,
    ),
    Rule(r"encoder_embed\.convnext\.pointwise_conv(?P<n>[12])\.bias", "encoder.embed.convnext.pointwise{n}.bias", same),
    Rule(r"encoder_embed\.out_norm\.(?P<name>bias|log_scale)", "encoder.embed.norm.{name}", same),
    *(Rule(LAYER + re.escape(f".{name}.weight"), f"{IN_LAYER}{ours}.kernel", linear) for name, ours in LINEARS.items()),
    *(Rule(LAYER + re.escape(f".{name}.bias"), f"{IN_LAYER}{ours}.bias", same) for name, ours in LINEARS.items()),
    Rule(LAYER + r"\.self_attn_weights\.linear_pos\.weight", IN_LAYER + "attention_weights.linear_pos.kernel", linear),
    Rule(LAYER + r"\.self_attn_weights\.position_table", IN_LAYER + "attention_weights.stored.embedding", same),
    Rule(
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.weight", IN_LAYER + "conv{n}.depthwise.conv.kernel", conv1d
    ),
    Rule(LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.bias", IN_LAYER + "conv{n}.depthwise.conv.bias", same),
    Rule(
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.(?P<kind>causal|chunkwise)_conv\.weight",
        IN_LAYER + "conv{n}.depthwise.{kind}.kernel",
        conv1d,
    ),
    Rule(
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.(?P<kind>causal|chunkwise)_conv\.bias",
        IN_LAYER + "conv{n}.depthwise.{kind}.bias",
        same,
    ),
    Rule(
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.chunkwise_conv_scale",
        IN_LAYER + "conv{n}.depthwise.edge_scale",
        _edges,
    ),
    Rule(LAYER + r"\.norm\.(?P<name>bias|log_scale)", IN_LAYER + "norm.{name}", same),
    Rule(LAYER + r"\.(?P<which>bypass|bypass_mid)\.bypass_scale", IN_LAYER + "{which}.scale", same),
    Rule(STACK + r"\.downsample\.bias", "encoder.stacks.{stack}.downsample.bias", _log_softmax),
    Rule(STACK + r"\.out_combiner\.bypass_scale", "encoder.stacks.{stack}.combiner.scale", same),
    Rule(r"encoder\.downsample_output\.bias", "encoder.downsample_output.bias", _log_softmax),
    *heads.TABLE,
)

IGNORED: tuple[Ignored, ...] = (
    Ignored(LAYER + r"\.bypass_scale", "stored by the layer, used by nothing in its forward pass"),
    *heads.IGNORED,
)


def map_checkpoint(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The checkpoint's tensors by the paths of our parameters; CheckpointError where one has no place."""
    return map_tensors(checkpoint.tensors, TABLE, IGNORED)


def map_integers(checkpoint: Checkpoint) -> dict[str, QuantizedTensor]:
    """The integers that are to stay such by the paths of our parameters."""
    return map_quantized(checkpoint.quantized, TABLE)


# --- configuration ---------------------------------------------------------------------------------------------------

FRAME_SECONDS = 0.02  # between frames at 50 Hz, in which chunks are counted


def derive_config(checkpoint: Checkpoint, options: Options, unknown_id: int | None) -> ModelConfig:
    """The configuration that the shapes of a checkpoint's tensors and the recipe's arguments prove.

    What they leave open takes the publisher's default, and `checkpoint.notes` says so. ConfigError where arguments
    and shapes contradict each other.
    """
    tensors, settings = checkpoint.tensors, checkpoint.settings
    sizes = _derive_sizes(checkpoint)
    for key, value in sizes.items():
        _agree(key, settings.get(key), value)
    causal = _is_causal(tensors)
    if "causal" in settings and bool(settings["causal"]) != causal:
        raise ConfigError(f"causal is {settings['causal']} in the configuration, but the tensors say {causal}")
    output_downsampling = _shape(tensors, "encoder.downsample_output.bias")[0]
    steps = (*sizes["downsampling_factor"], output_downsampling)
    chunk, left_context = _chunks(settings, causal, steps, options, checkpoint.notes)
    streams, stored = causal and chunk > 0, bool(settings.get("stored_positions"))
    first = f"{_layer_prefixes(tensors)[0][0]}.self_attn_weights"
    try:
        encoder = ZipformerConfig(
            num_layers=sizes["num_encoder_layers"],
            downsampling=sizes["downsampling_factor"],
            encoder_dim=sizes["encoder_dim"],
            feedforward_dim=sizes["feedforward_dim"],
            num_heads=sizes["num_heads"],
            query_head_dim=sizes["query_head_dim"],
            value_head_dim=sizes["value_head_dim"],
            pos_head_dim=sizes["pos_head_dim"],
            conv_kernel=sizes["cnn_module_kernel"],
            pos_dim=ZipformerConfig.pos_dim if stored else _shape(tensors, f"{first}.linear_pos.weight")[1],
            input_dim=heads.feature_bins(settings),
            output_downsampling=output_downsampling,
            causal=causal,
            chunk_size=chunk,
            left_context=left_context,
            whole_chunks=streams,
            stored_positions=stored,
        )
        return heads.model_config(options.name, encoder, checkpoint, unknown_id, streams)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def complete_config(config: ModelConfig, checkpoint: Checkpoint, options: Options) -> ModelConfig:
    """A given configuration with the chunks of the options, else of the export, and the heads that the file holds.

    An export has one head where the recipe trains two; `checkpoint.notes` says which one is left out.
    """
    settings, encoder = checkpoint.settings, config.encoder
    if not isinstance(encoder, ZipformerConfig):
        raise ConfigError(f"{config.name} describes a {encoder.kind}, but the checkpoint holds a Zipformer")
    exported = all(len(trained_with(settings, key)) == 1 for key in ("chunk_size", "left_context_frames"))
    asked = options.chunk_seconds is not None or options.left_context_seconds is not None
    try:
        config = heads.without_absent(config, checkpoint)
        if asked or (exported and encoder.causal):
            steps = (*encoder.downsampling, encoder.output_downsampling)
            chunk, left_context = _chunks(settings, encoder.causal, steps, options, [])
            stored = bool(settings.get("stored_positions"))
            encoder = dataclasses.replace(encoder, chunk_size=chunk, left_context=left_context, stored_positions=stored)
            config = dataclasses.replace(config, encoder=encoder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def _is_causal(tensors: Mapping[str, np.ndarray]) -> bool:
    return f"{_layer_prefixes(tensors)[0][0]}.conv_module1.depthwise_conv.causal_conv.weight" in tensors


def _derive_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The recipe's arguments that have a value per stack, from the shapes of each stack's first layer."""
    tensors = checkpoint.tensors
    prefixes = _layer_prefixes(tensors)
    first = [layers[0] for layers in prefixes]
    convolution = "chunkwise_conv.weight" if _is_causal(tensors) else "weight"

    def rows(name: str, axis: int = 0) -> tuple[int, ...]:
        return tuple(_shape(tensors, f"{prefix}.{name}")[axis] for prefix in first)

    stored = bool(checkpoint.settings.get("stored_positions"))
    table = "self_attn_weights.position_table" if stored else "self_attn_weights.linear_pos.weight"
    positions = rows(table, -1 if stored else 0)
    queries = tuple(
        (total - width) // 2 for total, width in zip(rows("self_attn_weights.in_proj.weight"), positions, strict=True)
    )
    widths = {
        "query_head_dim": queries,
        "value_head_dim": rows("self_attn1.in_proj.weight"),
        "pos_head_dim": positions,
    }
    biases = [f"encoder.encoders.{stack}.downsample.bias" for stack in range(len(prefixes))]
    sizes = {
        "num_encoder_layers": tuple(len(layers) for layers in prefixes),
        "downsampling_factor": tuple(_shape(tensors, bias)[0] if bias in tensors else 1 for bias in biases),
        "encoder_dim": rows("norm.bias"),
        "feedforward_dim": rows("feed_forward2.in_proj.weight"),
        "cnn_module_kernel": rows(f"conv_module1.depthwise_conv.{convolution}", -1),
    }
    num_heads = _heads(checkpoint, sizes, widths)
    return sizes | {"num_heads": num_heads} | {key: _per_head(total, num_heads) for key, total in widths.items()}


def _shape(tensors: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"tensor {name} is missing: this is not a whole icefall Zipformer")
    return tensors[name].shape


def _per_head(widths: tuple[int, ...], num_heads: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(width // number for width, number in zip(widths, num_heads, strict=True))


def _layer_prefixes(tensors: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Per stack, the prefixes of its layers' names, in order."""
    found: dict[int, dict[int, str]] = {}
    for name in tensors:
        match = re.match(LAYER, name)
        if match:
            found.setdefault(int(match["stack"]), {})[int(match["layer"])] = match.group(0)
    if not found:
        raise CheckpointError("no tensor is named encoder.encoders.0...: this is not an icefall Zipformer (version 2)")
    if sorted(found) != list(range(len(found))) or any(sorted(e) != list(range(len(e))) for e in found.values()):
        raise CheckpointError("the numbers of the encoder's stacks and layers have holes: tensors are missing")
    return [[found[stack][layer] for layer in sorted(found[stack])] for stack in sorted(found)]


def _heads(
    checkpoint: Checkpoint, sizes: Mapping[str, tuple[int, ...]], widths: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Attention heads per stack: stated, or those of the known models of exactly these sizes.

    `widths`: heads times the width of each, all that shapes give. ConfigError where the heads stay unknown, since with
    other heads every product of the attention is another one and the text is plausible nonsense.
    """
    stated = checkpoint.settings.get("num_heads")
    if stated is not None:
        stacks = len(sizes["encoder_dim"])
        numbers = _per_stack(stated, stacks)
        if len(numbers) != stacks or any(
            type(number) is not int or number < 1 or width % number
            for totals in widths.values()
            for width, number in zip(totals, numbers, strict=True)
        ):
            raise ConfigError(f"num_heads {numbers} does not fit the tensors of {stacks} stacks: give the recipe's own")
        return numbers
    known = _models_of_sizes(sizes, widths, _is_causal(checkpoint.tensors))
    if len(set(known.values())) != 1:
        fitting = f"these configurations have its sizes: {listing(known)}" if known else "no known model has its sizes"
        raise ConfigError(
            f"the tensors leave the number of attention heads open, and {fitting}: give the arguments of its train.py "
            "(num_heads), or its configuration, as config"
        )
    (numbers,) = set(known.values())
    checkpoint.notes.append(
        f"the tensors leave the number of attention heads open: {','.join(map(str, numbers))} as in {listing(known)}, "
        "which has exactly these sizes (config overrides)"
    )
    return numbers


def _models_of_sizes(
    sizes: Mapping[str, tuple[int, ...]], widths: Mapping[str, tuple[int, ...]], causal: bool
) -> dict[str, tuple[int, ...]]:
    """The heads of the published configurations that have these sizes, by name; causal ones only if any is as asked."""
    same: dict[str, tuple[int, ...]] = {}
    alike: dict[str, tuple[int, ...]] = {}
    for name, path in sorted(named_configs().items()):
        encoder = read_config(path).encoder
        if isinstance(encoder, ZipformerConfig) and _sizes_of(encoder) == {**sizes, **widths}:
            same[name] = encoder.num_heads
            if encoder.causal == causal:
                alike[name] = encoder.num_heads
    return alike or same


def _sizes_of(encoder: ZipformerConfig) -> dict[str, tuple[int, ...]]:
    """What shapes tell of an encoder, by the recipe's names; the widths of all its heads together."""
    widths = {
        "query_head_dim": encoder.query_head_dim,
        "value_head_dim": encoder.value_head_dim,
        "pos_head_dim": encoder.pos_head_dim,
    }
    return {
        "num_encoder_layers": encoder.num_layers,
        "downsampling_factor": encoder.downsampling,
        "encoder_dim": encoder.encoder_dim,
        "feedforward_dim": encoder.feedforward_dim,
        "cnn_module_kernel": encoder.conv_kernel,
        **{
            key: tuple(size * number for size, number in zip(each, encoder.num_heads, strict=True))
            for key, each in widths.items()
        },
    }


def _per_stack(value: Any, stacks: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return numbers * stacks if len(numbers) == 1 else numbers


def _agree(key: str, stated: Any, derived: tuple[int, ...]) -> None:
    if stated is not None and _per_stack(stated, len(derived)) != derived:
        raise ConfigError(f"{key} is {stated} in the configuration, but the tensors say {derived}")


def _chunks(
    settings: Mapping[str, Any], causal: bool, steps: tuple[int, ...], options: Options, notes: list[str]
) -> tuple[int, int]:
    """Chunk size and left context in frames at 50 Hz, -1 both where the model is not causal.

    `steps`: the downsampling factors of the stacks, and that of the output, which must divide a chunk.
    """
    if not causal:
        refuse_chunks(options)
        return -1, -1
    frames = Frames(FRAME_SECONDS, math.lcm(*steps), math.lcm(*steps[:-1]))
    return choose_chunks(settings, options, frames, notes)
