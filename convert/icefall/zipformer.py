"""icefall Zipformer checkpoints, whichever file they came from: the table of names and the configuration.

The readers (`icefall_pt`, `icefall_onnx`) return an `IcefallCheckpoint`; `build` turns it into a configuration and
the parameters of `jaxasr.model.Model`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxasr.convert.formats.mapped import release
from jaxasr.encoders.zipformer import ZipformerConfig
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.heads.ctc import CTCConfig
from jaxasr.heads.transducer import TransducerConfig
from jaxasr.model import AudioConfig, ModelConfig, SearchConfig, Skeleton, TextConfig
from jaxasr.store import flatten, read_config, unflatten


@dataclasses.dataclass
class IcefallCheckpoint:
    """Tensors under icefall's own names, and what the source says about its recipe.

    `tensors`: state-dict names to arrays in PyTorch's layouts ((out, in) linear, (out, in/groups, width) convolution).
    `arguments`: the recipe's argument names to values; lists as tuples of integers; only what the source states or
    proves. `notes`: lines for the user. `source`: the files read.
    """

    tensors: dict[str, np.ndarray]
    arguments: dict[str, Any]
    notes: list[str]
    source: list[Path]


EMBED_CHANNELS = 128  # behind the front end's last convolution, in every recipe

# --- names -----------------------------------------------------------------------------------------------------------


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _linear(x: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return x.T


def _conv1d(x: np.ndarray) -> np.ndarray:
    """(out, in/groups, width) -> (width, in/groups, out)."""
    return x.transpose(2, 1, 0)


def _conv2d(x: np.ndarray) -> np.ndarray:
    """(out, in/groups, height, width) -> (height, width, in/groups, out)."""
    return x.transpose(2, 3, 1, 0)


def _depthwise2d(x: np.ndarray) -> np.ndarray:
    """(channels, 1, height, width) -> (height, width, 1, channels)."""
    return x.transpose(2, 3, 1, 0)


def _edges(x: np.ndarray) -> np.ndarray:
    """(2, channels, width) -> (2, width, channels)."""
    return x.transpose(0, 2, 1)


def _channels_last(x: np.ndarray) -> np.ndarray:
    """(out, channels * frequencies) -> (frequencies * channels, out): our convolutions keep channels last."""
    return x.reshape(x.shape[0], EMBED_CHANNELS, -1).transpose(2, 1, 0).reshape(-1, x.shape[0])


def _log_softmax(x: np.ndarray) -> np.ndarray:
    """Only differences of a softmax's bias count: the one form in which .pt and .onnx agree."""
    shifted = x.astype(np.float64) - x.max()
    return (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)


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

# (icefall's name, path in our tree, transform); the first pattern that matches whole decides.
TABLE: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    (r"encoder_embed\.conv\.0\.weight", "encoder.embed.conv1.kernel", _conv2d),
    (r"encoder_embed\.conv\.0\.bias", "encoder.embed.conv1.bias", _same),
    (r"encoder_embed\.conv\.4\.weight", "encoder.embed.conv2.kernel", _conv2d),
    (r"encoder_embed\.conv\.4\.bias", "encoder.embed.conv2.bias", _same),
    (r"encoder_embed\.conv\.7\.weight", "encoder.embed.conv3.kernel", _conv2d),
    (r"encoder_embed\.conv\.7\.bias", "encoder.embed.conv3.bias", _same),
    (r"encoder_embed\.convnext\.depthwise_conv\.weight", "encoder.embed.convnext.depthwise.kernel", _depthwise2d),
    (r"encoder_embed\.convnext\.depthwise_conv\.bias", "encoder.embed.convnext.depthwise.bias", _same),
    (
        r"encoder_embed\.convnext\.pointwise_conv(?P<n>[12])\.weight",
        "encoder.embed.convnext.pointwise{n}.kernel",
        lambda x: x[:, :, 0, 0].T,
    ),
    (r"encoder_embed\.convnext\.pointwise_conv(?P<n>[12])\.bias", "encoder.embed.convnext.pointwise{n}.bias", _same),
    (r"encoder_embed\.out\.weight", "encoder.embed.out.kernel", _channels_last),
    (r"encoder_embed\.out\.bias", "encoder.embed.out.bias", _same),
    (r"encoder_embed\.out_norm\.(?P<name>bias|log_scale)", "encoder.embed.norm.{name}", _same),
    *((LAYER + re.escape(f".{name}.weight"), f"{IN_LAYER}{ours}.kernel", _linear) for name, ours in LINEARS.items()),
    *((LAYER + re.escape(f".{name}.bias"), f"{IN_LAYER}{ours}.bias", _same) for name, ours in LINEARS.items()),
    (LAYER + r"\.self_attn_weights\.linear_pos\.weight", IN_LAYER + "attention_weights.linear_pos.kernel", _linear),
    (LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.weight", IN_LAYER + "conv{n}.depthwise.conv.kernel", _conv1d),
    (LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.bias", IN_LAYER + "conv{n}.depthwise.conv.bias", _same),
    (
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.(?P<kind>causal|chunkwise)_conv\.weight",
        IN_LAYER + "conv{n}.depthwise.{kind}.kernel",
        _conv1d,
    ),
    (
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.(?P<kind>causal|chunkwise)_conv\.bias",
        IN_LAYER + "conv{n}.depthwise.{kind}.bias",
        _same,
    ),
    (
        LAYER + r"\.conv_module(?P<n>[12])\.depthwise_conv\.chunkwise_conv_scale",
        IN_LAYER + "conv{n}.depthwise.edge_scale",
        _edges,
    ),
    (LAYER + r"\.norm\.(?P<name>bias|log_scale)", IN_LAYER + "norm.{name}", _same),
    (LAYER + r"\.(?P<which>bypass|bypass_mid)\.bypass_scale", IN_LAYER + "{which}.scale", _same),
    (STACK + r"\.downsample\.bias", "encoder.stacks.{stack}.downsample.bias", _log_softmax),
    (STACK + r"\.out_combiner\.bypass_scale", "encoder.stacks.{stack}.combiner.scale", _same),
    (r"encoder\.downsample_output\.bias", "encoder.downsample_output.bias", _log_softmax),
    (r"decoder\.embedding\.weight", "transducer.predictor.embedding", _same),
    (r"decoder\.conv\.weight", "transducer.predictor.kernel", _conv1d),
    (r"joiner\.encoder_proj\.weight", "transducer.encoder_proj.kernel", _linear),
    (r"joiner\.encoder_proj\.bias", "transducer.encoder_proj.bias", _same),
    (r"joiner\.decoder_proj\.weight", "transducer.predictor_proj.kernel", _linear),
    (r"joiner\.decoder_proj\.bias", "transducer.predictor_proj.bias", _same),
    (r"joiner\.output_linear\.weight", "transducer.output.kernel", _linear),
    (r"joiner\.output_linear\.bias", "transducer.output.bias", _same),
    (r"ctc_output\.1\.weight", "ctc.output.kernel", _linear),
    (r"ctc_output\.1\.bias", "ctc.output.bias", _same),
)

# Tensors of a checkpoint that inference does not need, with the reason.
IGNORED: tuple[tuple[str, str], ...] = (
    (r"simple_(am|lm)_proj\.(weight|bias)", "projections of the pruned training loss"),
    (LAYER + r"\.bypass_scale", "stored by the layer, used by nothing in its forward pass"),
    (r"attention_decoder\..*", "the attention decoder rescales during training"),
)


def map_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """icefall's names and layouts to ours, through TABLE; CheckpointError lists every name that has no place."""
    mapped: dict[str, np.ndarray] = {}
    faults = []
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern, _ in IGNORED):
            continue
        for pattern, path, transform in TABLE:
            match = re.fullmatch(pattern, name)
            if match:
                ours = path.format(**match.groupdict())
                if ours in mapped:
                    faults.append(f"{name} fills {ours} a second time")
                try:
                    mapped[ours] = transform(tensor)
                except (ValueError, IndexError):
                    faults.append(f"{name} has the impossible shape {tensor.shape}")
                break
        else:
            faults.append(f"{name} {tensor.shape} is unknown")
    if faults:
        raise CheckpointError("; ".join(faults))
    return mapped


# --- configuration ---------------------------------------------------------------------------------------------------

# egs/librispeech/ASR/zipformer/train.py's defaults for what shapes leave open.
DEFAULT_HEADS = (4, 4, 4, 8, 4, 4)
DEFAULT_QUERY_HEAD_DIM = 32
DEFAULT_CHUNK, DEFAULT_LEFT_CONTEXT = 16, 64
# Zeros that sherpa-onnx's examples feed behind a stream, so that the last words leave the look-ahead (s).
ONLINE_TAIL = 0.66


def derive_config(
    checkpoint: IcefallCheckpoint,
    name: str,
    *,
    unknown_id: int | None = None,
    chunk: int | None = None,
    left_context: int | None = None,
) -> ModelConfig:
    """The configuration that the shapes of a checkpoint's tensors and the recipe's arguments prove.

    What they leave open takes the publisher's default, and `checkpoint.notes` says so. ConfigError where arguments
    and shapes contradict each other.
    """
    tensors, arguments, notes = checkpoint.tensors, checkpoint.arguments, checkpoint.notes
    prefixes = _layer_prefixes(tensors)
    stacks = len(prefixes)

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing: this is not a whole icefall Zipformer")
        return tensors[name].shape

    first = [layers[0] for layers in prefixes]
    causal = f"{first[0]}.conv_module1.depthwise_conv.causal_conv.weight" in tensors
    conv = "chunkwise_conv.weight" if causal else "weight"
    factors = tuple(
        shape(f"encoder.encoders.{i}.downsample.bias")[0] if f"encoder.encoders.{i}.downsample.bias" in tensors else 1
        for i in range(stacks)
    )
    queries_and_positions = [shape(f"{p}.self_attn_weights.in_proj.weight")[0] for p in first]
    positions = [shape(f"{p}.self_attn_weights.linear_pos.weight") for p in first]
    values = [shape(f"{p}.self_attn1.in_proj.weight")[0] for p in first]
    query_widths = [(total - rows) // 2 for total, (rows, _) in zip(queries_and_positions, positions, strict=True)]
    heads = _heads(arguments, query_widths, [rows for rows, _ in positions], values, notes)
    derived: dict[str, tuple[int, ...]] = {
        "num_encoder_layers": tuple(len(layers) for layers in prefixes),
        "downsampling_factor": factors,
        "encoder_dim": tuple(shape(f"{p}.norm.bias")[0] for p in first),
        "feedforward_dim": tuple(shape(f"{p}.feed_forward2.in_proj.weight")[0] for p in first),
        "num_heads": heads,
        "query_head_dim": tuple(q // h for q, h in zip(query_widths, heads, strict=True)),
        "value_head_dim": tuple(v // h for v, h in zip(values, heads, strict=True)),
        "pos_head_dim": tuple(rows // h for (rows, _), h in zip(positions, heads, strict=True)),
        "cnn_module_kernel": tuple(shape(f"{p}.conv_module1.depthwise_conv.{conv}")[-1] for p in first),
    }
    for key, value in derived.items():
        _agree(key, arguments.get(key), value)
    if "causal" in arguments and bool(arguments["causal"]) != causal:
        raise ConfigError(f"causal is {arguments['causal']} in the configuration, but the tensors say {causal}")
    size, context = _chunks(arguments, causal, chunk, left_context, notes)
    try:
        encoder = ZipformerConfig(
            num_layers=derived["num_encoder_layers"],
            downsampling=factors,
            encoder_dim=derived["encoder_dim"],
            feedforward_dim=derived["feedforward_dim"],
            num_heads=heads,
            query_head_dim=derived["query_head_dim"],
            value_head_dim=derived["value_head_dim"],
            pos_head_dim=derived["pos_head_dim"],
            conv_kernel=derived["cnn_module_kernel"],
            pos_dim=positions[0][1],
            feature_dim=int(arguments.get("feature_dim", 80)),
            output_downsampling=shape("encoder.downsample_output.bias")[0],
            causal=causal,
            chunk_size=size,
            left_context=context,
        )
        return ModelConfig(
            name=name,
            encoder=encoder,
            transducer=_transducer(tensors, arguments),
            ctc=_ctc(tensors, arguments),
            audio=AudioConfig(
                silence_after=ONLINE_TAIL if causal and size > 0 else 0.0, whole_chunks=causal and size > 0
            ),
            text=TextConfig(
                unknown_id=unknown_id,
                spelling="sherpa_onnx_online" if causal and size > 0 else "sherpa_onnx_offline_transducer",
            ),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


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
    arguments: Mapping[str, Any], queries: list[int], positions: list[int], values: list[int], notes: list[str]
) -> tuple[int, ...]:
    """Heads per stack: a checkpoint's shapes give heads times width only."""
    stated = arguments.get("num_heads")
    if stated is not None:
        heads = _per_stack(stated, len(queries))
    elif len(queries) == len(DEFAULT_HEADS):
        heads = DEFAULT_HEADS
    else:
        heads = tuple(max(width // DEFAULT_QUERY_HEAD_DIM, 1) for width in queries)
    widths = zip(heads, queries, positions, values, strict=True)
    if any(width % head for head, *rest in widths for width in rest):
        raise ConfigError(f"{heads} attention heads do not fit the tensors: give the recipe's arguments with --config")
    if stated is None:
        notes.append(
            f"the tensors leave the number of attention heads open: the recipe's {','.join(map(str, heads))} is taken"
            " (--config overrides)"
        )
    return heads


def _per_stack(value: Any, stacks: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return numbers * stacks if len(numbers) == 1 else numbers


def _agree(key: str, stated: Any, derived: tuple[int, ...]) -> None:
    if stated is not None and _per_stack(stated, len(derived)) != derived:
        raise ConfigError(f"{key} is {stated} in the configuration, but the tensors say {derived}")


def _chunks(
    arguments: Mapping[str, Any], causal: bool, chunk: int | None, left: int | None, notes: list[str]
) -> tuple[int, int]:
    """Chunk size and left context in frames at 50 Hz: the option, else the first of those trained with."""
    if not causal:
        if chunk is not None or left is not None:
            raise ConfigError("--chunk and --left-context are for causal models, and this one is not causal")
        return -1, -1
    chosen = []
    for key, asked, default in (
        ("chunk_size", chunk, DEFAULT_CHUNK),
        ("left_context_frames", left, DEFAULT_LEFT_CONTEXT),
    ):
        trained = arguments.get(key)
        trained = _per_stack(trained, 1) if trained is not None else ()
        if arguments.get("fixed_chunk") and asked is not None and asked != trained[0]:
            raise ConfigError(
                f"this export holds weights for {key} {trained[0]} only: {asked} needs the .pt checkpoint"
            )
        value = asked if asked is not None else next((v for v in trained if v > 0), default)
        if asked is None and len(trained) != 1:
            options = f"the first of {','.join(map(str, trained))}" if trained else "the recipe's first"
            notes.append(f"{key} {value} is taken, {options} (--chunk and --left-context override)")
        chosen.append(value)
    return chosen[0], chosen[1]


def _transducer(tensors: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> TransducerConfig | None:
    if "joiner.output_linear.weight" not in tensors:
        return None
    for name in ("decoder.embedding.weight", "joiner.decoder_proj.weight", "joiner.encoder_proj.weight"):
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing: the transducer is not whole")
    vocabulary, joiner = tensors["joiner.output_linear.weight"].shape
    convolution = tensors.get("decoder.conv.weight")
    return TransducerConfig(
        vocabulary_size=vocabulary,
        predictor_dim=tensors["decoder.embedding.weight"].shape[1],
        joiner_dim=joiner,
        context_size=1 if convolution is None else convolution.shape[2],
        blank_id=int(arguments.get("blank_id", 0)),
    )


def _ctc(tensors: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> CTCConfig | None:
    if "ctc_output.1.weight" not in tensors:
        return None
    return CTCConfig(
        vocabulary_size=tensors["ctc_output.1.weight"].shape[0], blank_id=int(arguments.get("blank_id", 0))
    )


def vocabulary_size(checkpoint: IcefallCheckpoint) -> int:
    """Ids that the checkpoint's heads emit."""
    for name in ("joiner.output_linear.weight", "ctc_output.1.weight"):
        if name in checkpoint.tensors and checkpoint.tensors[name].ndim == 2:
            return checkpoint.tensors[name].shape[0]
    raise CheckpointError("neither a transducer's joiner nor a CTC output is there: not a whole icefall model")


def adapt(
    config: ModelConfig, checkpoint: IcefallCheckpoint, chunk: int | None, left_context: int | None
) -> ModelConfig:
    """A given configuration with the chunks of the options, else of the export, and the heads that the file holds.

    An export has one head where the recipe trains two; `checkpoint.notes` says which one is left out.
    """
    held = {"transducer": "joiner.output_linear.weight", "ctc": "ctc_output.1.weight"}
    absent = [
        head for head, name in held.items() if getattr(config, head) is not None and name not in checkpoint.tensors
    ]
    for head in absent:
        checkpoint.notes.append(f"the file holds no {head} head, which {config.name} would have: it is left out")
    arguments = checkpoint.arguments
    exported = all(len(_per_stack(arguments.get(key, ()), 1)) == 1 for key in ("chunk_size", "left_context_frames"))
    try:
        if absent:  # and with it what was to be done with both
            config = dataclasses.replace(config, search=SearchConfig(), **dict.fromkeys(absent))
        if chunk is not None or left_context is not None or (exported and config.encoder.causal):
            size, context = _chunks(arguments, config.encoder.causal, chunk, left_context, [])
            encoder = dataclasses.replace(config.encoder, chunk_size=size, left_context=context)
            config = dataclasses.replace(config, encoder=encoder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def suggest(checkpoint: IcefallCheckpoint, model: ModelConfig, named: Mapping[str, Path]) -> None:
    """Add a note where a published model of exactly these sizes is presented with other silence."""
    for name, path in sorted(named.items()):
        other = read_config(path)
        if (other.encoder, other.transducer, other.ctc) == (model.encoder, model.transducer, model.ctc) and (
            other.audio != model.audio
        ):
            checkpoint.notes.append(
                f"the sizes are those of {name}, used with {other.audio.silence_before} s of silence before and "
                f"{other.audio.silence_after} s after: --config {name} if it is that model"
            )


def fit(checkpoint: IcefallCheckpoint, config: ModelConfig) -> dict[str, np.ndarray]:
    """An array for every parameter of `Model(config)`, by its path; CheckpointError lists all that does not fit.

    The arrays are views of the file where the format allows.
    """
    mapped = map_tensors(checkpoint.tensors)
    wanted = {path: leaf.shape for path, leaf in flatten(Skeleton(config).parameters).items()}
    faults = [f"{path} {wanted[path]} is missing" for path in wanted if path not in mapped]
    for path, array in mapped.items():
        if path not in wanted:
            faults.append(f"{path} {array.shape} has no place in this configuration")
        elif array.shape != wanted[path]:
            faults.append(f"{path} has shape {array.shape} instead of {wanted[path]}")
        elif not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
            faults.append(f"{path} has type {array.dtype}, not a floating one")
        elif not np.isfinite(array).all():
            faults.append(f"{path} holds values that are not finite")
        release(array)
    if faults:
        shown = "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise CheckpointError(f"the tensors do not fit: {shown}")
    return {path: mapped[path] for path in wanted}


def parameters(fitted: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested float32 arrays on the device of what `fit` gave, which is emptied."""
    # One by one: the file's pages are given back as soon as a tensor has been copied.
    return unflatten({path: _owned(fitted.pop(path)) for path in list(fitted)})


def _owned(array: np.ndarray) -> jax.Array:
    """A float32 copy that no longer needs the file."""
    copy = jax.device_put(np.array(array, np.float32, order="C")).block_until_ready()
    release(array)
    return copy
