"""Transformers' ParakeetEncoder, a FastConformer: the table of its names, and its settings as a configuration.

Source: transformers 5.24.0, models/parakeet/modeling_parakeet.py. The weights are NeMo's under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from jaxasr.convert.hugging_face.settings import EncoderSettings
from jaxasr.convert.mapping import Ignored, Rule, channels_last, conv1d, conv2d, linear, modules, pointwise, same
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.errors import CheckpointError, printable

# --- names -----------------------------------------------------------------------------------------------------------

LAYER = r"encoder\.layers\.(?P<layer>\d+)\."
IN_LAYER = "encoder.layers.{layer}."
NORMS = {
    "norm_feed_forward1": "norm_feed_forward1",
    "norm_self_att": "norm_attention",
    "norm_conv": "norm_conv",
    "norm_feed_forward2": "norm_feed_forward2",
    "norm_out": "norm_out",
    "conv.norm": "conv.norm",
}
LINEARS = {
    "feed_forward1.linear1": "feed_forward1.in_proj",
    "feed_forward1.linear2": "feed_forward1.out_proj",
    "feed_forward2.linear1": "feed_forward2.in_proj",
    "feed_forward2.linear2": "feed_forward2.out_proj",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "self_attn.relative_k_proj": "attention.position",
}
POINTWISE = {"conv.pointwise_conv1": "conv.in_proj", "conv.pointwise_conv2": "conv.out_proj"}
POSITION_BIASES = {"self_attn.bias_u": "attention.content_bias", "self_attn.bias_v": "attention.position_bias"}
STATISTICS = {"running_mean": "mean", "running_var": "variance"}
# Modules of which some have biases, by `attention_bias` or by `convolution_bias`.
BIASED = (*(name for name in LINEARS if name != "self_attn.relative_k_proj"), *POINTWISE, "conv.depthwise_conv")

IGNORED: tuple[Ignored, ...] = (
    Ignored(LAYER + r"conv\.norm\.num_batches_tracked", "counts batches of the training"),
    Ignored(r"encoder\.encode_positions\.inv_freq", "frequencies of the positions, which are computed"),
)


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
            Rule(LAYER + re.escape(f"conv.norm.{name}"), f"{IN_LAYER}conv.norm.{ours}", same)
            for name, ours in STATISTICS.items()
        ),
    )


def with_all_biases(tensors: Mapping[str, np.ndarray], settings: EncoderSettings) -> dict[str, np.ndarray]:
    """`tensors`, and zeros for the biases of layers that have only those of the attention or of the convolutions.

    Our layers have both or none; a bias of zeros is no bias.
    """
    if settings.attention_bias == settings.convolution_bias:
        return dict(tensors)
    biased = re.compile(LAYER + "(" + "|".join(map(re.escape, BIASED)) + r")\.weight")
    rows = {name.removesuffix("weight") + "bias": x.shape[:1] for name, x in tensors.items() if biased.fullmatch(name)}
    return {name: np.zeros(shape, np.float32) for name, shape in rows.items()} | dict(tensors)


def _front_end(config: ConformerConfig) -> list[Rule]:
    """Transformers numbers the modules of the list, activations included."""

    names, ours = r"encoder\.subsampling\.", "encoder.subsample."
    table = modules(names, {"layers.0": "convs.0"}, ours, "kernel", conv2d)
    for stage in range(1, config.stages):
        table += modules(names, {f"layers.{3 * stage - 1}": f"convs.{stage}.depthwise"}, ours, "kernel", conv2d)
        table += modules(names, {f"layers.{3 * stage}": f"convs.{stage}.pointwise"}, ours, "kernel", pointwise)
    return table + modules(names, {"linear": "out"}, ours, "kernel", channels_last(config.front_end_channels))


# --- settings --------------------------------------------------------------------------------------------------------

LAYER_LIMIT = 1000  # the deepest published encoder has 42
SUBSAMPLING_LIMIT = 64
ACTIVATIONS = ("silu", "swish")  # two names of one function
WINDOW, STRIDE = 3, 2  # of the front end's convolutions


def encoder_config(settings: EncoderSettings) -> ConformerConfig:
    """The encoder's settings as our configuration; CheckpointError for what is not done here."""
    heads = settings.num_attention_heads
    whole = settings.head_dim is None or settings.head_dim * heads == settings.hidden_size
    for name, fits, known in (
        ("hidden_act", settings.hidden_act in ACTIVATIONS, " and ".join(ACTIVATIONS)),
        ("subsampling_conv_kernel_size", settings.subsampling_conv_kernel_size == WINDOW, f"{WINDOW} alone"),
        ("subsampling_conv_stride", settings.subsampling_conv_stride == STRIDE, f"{STRIDE} alone"),
        (
            "subsampling_factor",
            settings.subsampling_factor <= SUBSAMPLING_LIMIT,
            f"powers of two up to {SUBSAMPLING_LIMIT}",
        ),
        ("num_hidden_layers", settings.num_hidden_layers <= LAYER_LIMIT, f"numbers up to {LAYER_LIMIT}"),
        ("num_attention_heads", heads > 0, "positive numbers"),
        ("head_dim", whole, "hidden_size / num_attention_heads alone"),
    ):
        if not fits:
            shown = printable(repr(getattr(settings, name)), 80)
            raise CheckpointError(f"encoder_config.{name} is {shown}: known are {known}")
    try:
        return ConformerConfig(
            num_layers=settings.num_hidden_layers,
            dim=settings.hidden_size,
            num_heads=heads,
            feedforward_dim=settings.intermediate_size,
            conv_kernel=settings.conv_kernel_size,
            input_dim=settings.num_mel_bins,
            subsampling=settings.subsampling_factor,
            front_end="separable",
            front_end_channels=settings.subsampling_conv_channels,
            scale_inputs=settings.scale_input,
            use_bias=settings.attention_bias or settings.convolution_bias,
        )
    except ValueError as error:
        raise CheckpointError(f"encoder_config: {error}") from None
