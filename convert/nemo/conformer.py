"""NeMo's Conformer and FastConformer encoders: the table of their names, and their settings as a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxasr.convert.mapping import Ignored, Rule, conv1d, conv2d, linear, same
from jaxasr.encoders.conformer_config import UNLIMITED, ConformerConfig
from jaxasr.errors import CheckpointError

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
        *_both(LAYER, NORMS, IN_LAYER, "scale", same),
        *_both(LAYER, LINEARS, IN_LAYER, "kernel", linear),
        *_both(LAYER, POINTWISE, IN_LAYER, "kernel", _pointwise1d),
        *_both(LAYER, {"conv.depthwise_conv": "conv.depthwise"}, IN_LAYER, "kernel", conv1d),
        *(Rule(LAYER + _quoted(name), IN_LAYER + ours, np.ravel) for name, ours in POSITION_BIASES.items()),
        *(
            Rule(LAYER + _quoted(f"conv.batch_norm.{name}"), f"{IN_LAYER}conv.norm.{ours}", same)
            for name, ours in STATISTICS.items()
        ),
        *_both(r"encoder\.", {"out_proj": "out_proj"}, "encoder.", "kernel", linear),
    )


IGNORED: tuple[Ignored, ...] = (
    Ignored(LAYER + r"conv\.batch_norm\.num_batches_tracked", "counts batches of the training"),
    Ignored(r"encoder\.pos_enc\.pe", "the table of positions, which is computed"),
)


def _front_end(config: ConformerConfig) -> list[Rule]:
    """NeMo numbers the modules of a sequence, activations included."""

    def channels_last(x: np.ndarray) -> np.ndarray:
        """(out, channels * bins) -> (bins * channels, out): our convolutions keep channels last."""
        return x.reshape(x.shape[0], config.front_end_channels, -1).transpose(2, 1, 0).reshape(-1, x.shape[0])

    names, ours = r"encoder\.pre_encode\.", "encoder.subsample."
    table = _both(names, {"conv.0": "convs.0"}, ours, "kernel", conv2d)
    for stage in range(1, config.stages):
        if config.front_end == "separable":
            table += _both(names, {f"conv.{3 * stage - 1}": f"convs.{stage}.depthwise"}, ours, "kernel", conv2d)
            table += _both(names, {f"conv.{3 * stage}": f"convs.{stage}.pointwise"}, ours, "kernel", _pointwise2d)
        else:
            table += _both(names, {f"conv.{2 * stage}": f"convs.{stage}"}, ours, "kernel", conv2d)
    return table + _both(names, {"out": "out"}, ours, "kernel", channels_last)


def _both(
    prefix: str, names: Mapping[str, str], our_prefix: str, weight: str, layout: Callable[[np.ndarray], np.ndarray]
) -> list[Rule]:
    """The rows of weight and bias of the modules of these names; `weight` is what ours is called."""
    return [
        row
        for name, ours in names.items()
        for row in (
            Rule(prefix + _quoted(f"{name}.weight"), f"{our_prefix}{ours}.{weight}", layout),
            Rule(prefix + _quoted(f"{name}.bias"), f"{our_prefix}{ours}.bias", same),
        )
    ]


def _quoted(name: str) -> str:
    return name.replace(".", r"\.")


def _pointwise1d(x: np.ndarray) -> np.ndarray:
    """(out, in, 1) -> (in, out)."""
    return x[:, :, 0].T


def _pointwise2d(x: np.ndarray) -> np.ndarray:
    """(out, in, 1, 1) -> (in, out)."""
    return x[:, :, 0, 0].T


# --- settings --------------------------------------------------------------------------------------------------------

FRONT_ENDS = {"striding": "ordinary", "dw_striding": "separable"}
POSITIONS = {"rel_pos": "relative", "abs_pos": "absolute"}
STYLES = {"regular": "regular", "chunked_limited": "chunked"}
CONV_NORMS = {"batch_norm": "batch", "layer_norm": "layer"}
# Settings of the training, of what is computed elsewhere, or of how the same result is computed.
WITHOUT_EFFECT = frozenset(
    {
        "_target_",
        "untie_biases",
        "pos_emb_max_len",
        "subsampling_conv_chunking_factor",
        "att_context_probs",
        "dropout",
        "dropout_pre_encoder",
        "dropout_emb",
        "dropout_att",
        "stochastic_depth_drop_prob",
        "stochastic_depth_mode",
        "stochastic_depth_start_layer",
        "global_tokens",  # of the local attention, which is refused itself
        "global_tokens_spacing",
        "global_attn_separate",
        "use_pytorch_sdpa",
        "use_pytorch_sdpa_backends",
        "sync_max_audio_length",
        "export_cache_support",
        "reduction_position",
        "reduction_factor",
    }
)


def encoder_config(settings: Mapping[str, Any], input_dim: int) -> ConformerConfig:
    """The configuration of NeMo's `encoder:` mapping; `input_dim`: mel bins of the preprocessor.

    CheckpointError names the setting that is unknown, that is no value of its kind, or that says what is not done here
    (the front ends vggnet, stacking and the one-dimensional ones, local attention, a reduction within the stack).
    """
    left = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT and value is not None}

    def take(key: str, default: Any = None) -> Any:
        """The value of a setting of the type of its default; without a default, an integer that must be there."""
        value = left.pop(key, default)
        kind = int if default is None else type(default)
        if type(value) is not kind:
            raise CheckpointError(f"encoder.{key} is {value!r}, not of type {kind.__name__}")
        return value

    def choose(key: str, default: str, known: Mapping[str, str]) -> Any:
        value = left.pop(key, default)
        if not isinstance(value, str) or value not in known:
            raise CheckpointError(f"encoder.{key} is {value!r}, which is not known; known are {', '.join(known)}")
        return known[value]

    dim, kernel = take("d_model"), take("conv_kernel_size", 31)
    channels, output = take("subsampling_conv_channels", UNLIMITED), take("feat_out", UNLIMITED)
    bins = take("feat_in")
    if bins != input_dim:
        raise CheckpointError(f"encoder.feat_in is {bins}, but the preprocessor makes {input_dim} mel bins")
    fields: dict[str, Any] = {
        "num_layers": take("n_layers"),
        "dim": dim,
        "num_heads": take("n_heads", 4),
        "feedforward_dim": dim * take("ff_expansion_factor", 4),
        "conv_kernel": kernel,
        "input_dim": bins,
        "subsampling": take("subsampling_factor", 4),
        "front_end": choose("subsampling", "striding", FRONT_ENDS),
        "front_end_channels": dim if channels == UNLIMITED else channels,
        "causal_front_end": take("causal_downsampling", False),
        "positions": choose("self_attention_model", "rel_pos", POSITIONS),
        "scale_inputs": take("xscaling", True),
        "context": _context(left.pop("att_context_size", (UNLIMITED, UNLIMITED))),
        "context_style": choose("att_context_style", "regular", STYLES),
        "conv_context": _conv_context(left.pop("conv_context_size", None), kernel),
        "conv_norm": choose("conv_norm_type", "batch_norm", CONV_NORMS),
        "use_bias": take("use_bias", True),
        "projected_dim": output if output > 0 and output != dim else None,
    }
    if left:
        unknown = ", ".join(f"encoder.{key}" for key in left)
        raise CheckpointError(f"{unknown}: a setting of the Conformer that is not known here")
    try:
        return ConformerConfig(**fields)
    except ValueError as error:
        raise CheckpointError(f"the encoder's settings cannot be: {error}") from None


def _context(value: Any) -> tuple[int, int]:
    """Frames before and after; of a list of such pairs, as models are trained with, NeMo infers with the first."""
    first = value[0] if _is_list(value) and value and _is_list(value[0]) else value
    if not _is_list(first) or len(first) != 2 or not all(type(frames) is int for frames in first):
        raise CheckpointError(f"encoder.att_context_size is {value!r}, not two numbers of frames or a list of such")
    return first[0], first[1]


def _conv_context(value: Any, kernel: int) -> tuple[int, int] | None:
    if value is None:
        return None
    if value == "causal":
        return kernel - 1, 0
    if not _is_list(value) or len(value) != 2 or not all(type(frames) is int for frames in value):
        raise CheckpointError(f"encoder.conv_context_size is {value!r}, neither causal nor two numbers of frames")
    return value[0], value[1]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
