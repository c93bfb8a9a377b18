"""NeMo's Conformer and FastConformer encoders: the table of their names, and their settings as a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxasr.convert.mapping import Ignored, Rule, channels_last, conv1d, conv2d, linear, modules, pointwise, same
from jaxasr.convert.nemo.settings import Section, is_pair
from jaxasr.encoders.conformer_config import UNLIMITED, ConformerConfig
from jaxasr.errors import CheckpointError, listing

# Last parts of `_target_`. The adapter's class has the same layers, and its adapters, if any, are unknown tensors.
TARGETS = frozenset({"ConformerEncoder", "ConformerEncoderAdapter"})

# --- names -----------------------------------------------------------------------------------------------------------

LAYER = r"encoder\.layers\.(?P<layer>\d+)\."
IN_LAYER = "encoder.layers.{layer}."
NORMS = {
    "norm_feed_forward1": "norm_feed_forward1",
    "norm_self_att": "norm_attention",
    "norm_conv": "norm_conv",
    "norm_feed_forward2": "norm_feed_forward2",
    "norm_out": "norm_out",
    "conv.batch_norm": "conv.norm",  # its name also where it is a layer norm
}
LINEARS = {
    "feed_forward1.linear1": "feed_forward1.in_proj",
    "feed_forward1.linear2": "feed_forward1.out_proj",
    "feed_forward2.linear1": "feed_forward2.in_proj",
    "feed_forward2.linear2": "feed_forward2.out_proj",
    "self_attn.linear_q": "attention.query",
    "self_attn.linear_k": "attention.key",
    "self_attn.linear_v": "attention.value",
    "self_attn.linear_out": "attention.out",
    "self_attn.linear_pos": "attention.position",
}
POINTWISE = {"conv.pointwise_conv1": "conv.in_proj", "conv.pointwise_conv2": "conv.out_proj"}
# With tied biases the same tensor stands in every layer.
POSITION_BIASES = {"self_attn.pos_bias_u": "attention.content_bias", "self_attn.pos_bias_v": "attention.position_bias"}
STATISTICS = {"running_mean": "mean", "running_var": "variance"}


def rules(config: ConformerConfig) -> tuple[Rule, ...]:
    """The table of an encoder of this configuration, which decides how the front end's convolutions are numbered."""
    return (
        *_front_end(config),
        *modules(LAYER, NORMS, IN_LAYER, "scale", same),
        *modules(LAYER, LINEARS, IN_LAYER, "kernel", linear),
        *modules(LAYER, POINTWISE, IN_LAYER, "kernel", pointwise),
        *modules(LAYER, {"conv.depthwise_conv": "conv.depthwise"}, IN_LAYER, "kernel", conv1d),
        *(Rule(LAYER + re.escape(name), IN_LAYER + ours, np.ravel) for name, ours in POSITION_BIASES.items()),
        *(
            Rule(LAYER + re.escape(f"conv.batch_norm.{name}"), f"{IN_LAYER}conv.norm.{ours}", same)
            for name, ours in STATISTICS.items()
        ),
        *modules(r"encoder\.", {"out_proj": "out_proj"}, "encoder.", "kernel", linear),
    )


IGNORED: tuple[Ignored, ...] = (
    Ignored(LAYER + r"conv\.batch_norm\.num_batches_tracked", "counts batches of the training"),
    Ignored(r"encoder\.pos_enc\.pe", "the table of positions, which is computed"),
)


def _front_end(config: ConformerConfig) -> list[Rule]:
    """NeMo numbers the modules of a sequence, activations included."""

    names, ours = r"encoder\.pre_encode\.", "encoder.subsample."
    table = modules(names, {"conv.0": "convs.0"}, ours, "kernel", conv2d)
    for stage in range(1, config.stages):
        if config.front_end == "separable":
            table += modules(names, {f"conv.{3 * stage - 1}": f"convs.{stage}.depthwise"}, ours, "kernel", conv2d)
            table += modules(names, {f"conv.{3 * stage}": f"convs.{stage}.pointwise"}, ours, "kernel", pointwise)
        else:
            table += modules(names, {f"conv.{2 * stage}": f"convs.{stage}"}, ours, "kernel", conv2d)
    return table + modules(names, {"out": "out"}, ours, "kernel", channels_last(config.front_end_channels))


# --- settings --------------------------------------------------------------------------------------------------------

FRONT_ENDS = {"striding": "ordinary", "dw_striding": "separable"}
POSITIONS = {"rel_pos": "relative", "abs_pos": "absolute"}
STYLES = {"regular": "regular", "chunked_limited": "chunked"}
CONV_NORMS = {"batch_norm": "batch", "layer_norm": "layer"}
CAUSAL = "causal"
LAYER_LIMIT = 1000  # the deepest published encoder has 42
# Settings that `encoder_config` reads.
KNOWN = frozenset(
    "_target_ feat_in feat_out n_layers d_model subsampling subsampling_factor subsampling_conv_channels "
    "causal_downsampling ff_expansion_factor self_attention_model n_heads att_context_size att_context_style xscaling "
    "conv_kernel_size conv_norm_type conv_context_size use_bias reduction".split()
)
# Settings of the training, and of how NeMo computes the same. The global tokens are those of the local attention, the
# factor and position those of the reduction, which are refused themselves.
WITHOUT_EFFECT = frozenset(
    "untie_biases pos_emb_max_len subsampling_conv_chunking_factor att_context_probs dropout dropout_pre_encoder "
    "dropout_emb dropout_att stochastic_depth_drop_prob stochastic_depth_mode stochastic_depth_start_layer "
    "global_tokens global_tokens_spacing global_attn_separate use_pytorch_sdpa use_pytorch_sdpa_backends "
    "sync_max_audio_length export_cache_support reduction_position reduction_factor".split()
)


def encoder_config(settings: Mapping[str, Any], input_dim: int) -> ConformerConfig:
    """The mapping `encoder` of model_config.yaml as our configuration, for features with `input_dim` bins.

    CheckpointError names the setting that is unknown, is no value of its kind, or asks for what is not done here: the
    front ends vggnet, stacking and those of one dimension, local attention, a reduction between the layers.
    """
    unknown = sorted(str(key) for key in settings if key not in KNOWN | WITHOUT_EFFECT)
    if unknown:
        raise CheckpointError(f"encoder has settings that are not known here: {listing(unknown)}")
    section = Section({"encoder": settings}, "encoder")
    if settings.get("reduction") is not None:
        raise section.refuse("reduction", "a Conformer that shortens between its layers is not known here")
    bins, layers = section.integer("feat_in", 0), section.integer("n_layers", 0)
    if bins != input_dim:
        raise section.refuse("feat_in", f"the preprocessor gives {input_dim} bins")
    if layers > LAYER_LIMIT:
        raise section.refuse("n_layers", f"at most {LAYER_LIMIT} are plausible")
    dim, kernel = section.integer("d_model", 0), section.integer("conv_kernel_size", 31)
    channels, projected = section.integer("subsampling_conv_channels", -1), section.integer("feat_out", -1)
    try:
        return ConformerConfig(
            num_layers=layers,
            dim=dim,
            num_heads=section.integer("n_heads", 4),
            feedforward_dim=dim * section.integer("ff_expansion_factor", 4),
            conv_kernel=kernel,
            input_dim=bins,
            subsampling=section.integer("subsampling_factor", 4),
            front_end=_choice(section, "subsampling", "striding", FRONT_ENDS),
            front_end_channels=channels if channels > 0 else dim,
            causal_front_end=section.flag("causal_downsampling", False),
            positions=_choice(section, "self_attention_model", "rel_pos", POSITIONS),
            scale_inputs=section.flag("xscaling", True),
            context=_context(section),
            context_style=_choice(section, "att_context_style", "regular", STYLES),
            conv_context=_conv_context(section, kernel),
            conv_norm=_choice(section, "conv_norm_type", "batch_norm", CONV_NORMS),
            use_bias=section.flag("use_bias", True),
            projected_dim=projected if projected > 0 and projected != dim else None,
        )
    except ValueError as error:
        raise CheckpointError(f"encoder: {error}") from None


def _choice(section: Section, key: str, default: str, known: Mapping[str, str]) -> Any:
    """What NeMo's name for a choice is called here; null is a name of its own, of no subsampling at all."""
    value = section.values.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise section.refuse(key, f"known are {', '.join(known)}")
    return known[value]


def _context(section: Section) -> tuple[int, int]:
    """Frames before and after; of a list of such pairs, as models are trained with, NeMo infers with the first."""
    value = section.values.get("att_context_size")
    if value is None:
        return UNLIMITED, UNLIMITED
    pair = value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
    if not is_pair(pair):
        raise section.refuse("att_context_size", "neither two numbers of frames nor a list of such")
    return pair[0], pair[1]


def _conv_context(section: Section, kernel: int) -> tuple[int, int] | None:
    value = section.values.get("conv_context_size")
    if value is None:
        return None
    if value == CAUSAL:
        return kernel - 1, 0
    if not is_pair(value):
        raise section.refuse("conv_context_size", f"neither {CAUSAL} nor two numbers of frames")
    return value[0], value[1]
