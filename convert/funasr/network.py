"""Paraformers of FunASR: the table of their names, and the options of config.yaml as our configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxasr.convert.funasr import settings as funasr
from jaxasr.convert.mapping import Ignored, Rule, conv1d, linear, same
from jaxasr.encoders.sanm_config import SanmConfig
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.features.kaldi_config import KaldiConfig
from jaxasr.features.lfr_config import LfrConfig
from jaxasr.heads.parallel_config import CIFConfig, ParallelConfig, PeaksConfig
from jaxasr.layers.overlapped import Overlapped
from jaxasr.layers.sliding import Sliding

# --- names -----------------------------------------------------------------------------------------------------------


def _full_conv(x: np.ndarray) -> np.ndarray:
    """(out, in, width) -> (1, width, in, out)."""
    return conv1d(x)[None]


def _upsampling(x: np.ndarray) -> np.ndarray:
    """A transposed convolution whose windows do not overlap, (in, out, width) -> (in, width * out)."""
    return x.transpose(0, 2, 1).reshape(x.shape[0], -1)


def _both(pattern: str, path: str, weight: str = "kernel") -> tuple[Rule, Rule]:
    """The rows of weight and bias of a linear layer, or of a norm where `weight` is "scale"."""
    layout = linear if weight == "kernel" else same
    return Rule(pattern + r"\.weight", f"{path}.{weight}", layout), Rule(pattern + r"\.bias", f"{path}.bias", same)


def _feed_forward(pattern: str, path: str) -> tuple[Rule, ...]:
    """A decoder layer's feed-forward with the norm before it."""
    return (
        *_both(pattern + r"norm1", f"{path}.norm", "scale"),
        *_both(pattern + r"feed_forward\.w_1", f"{path}.in_proj"),
        *_both(pattern + r"feed_forward\.norm", f"{path}.hidden_norm", "scale"),
        Rule(pattern + r"feed_forward\.w_2\.weight", f"{path}.out_proj.kernel", linear),
    )


def _memory(pattern: str, path: str) -> tuple[Rule, ...]:
    return (
        *_feed_forward(pattern, f"{path}.feed_forward"),
        *_both(pattern + r"norm2", f"{path}.norm_memory", "scale"),
        Rule(pattern + r"self_attn\.fsmn_block\.weight", f"{path}.memory.conv.kernel", conv1d),
    )


# `with_one_numbering` counts the first encoder layer with the others.
_ENCODER, _IN_ENCODER = r"encoder\.layers\.(?P<n>\d+)\.", "encoder.layers.{n}."
_DECODER, _IN_DECODER = r"decoder\.decoders\.(?P<n>\d+)\.", "parallel.layers.{n}."
_CIF = "parallel.predictor."

TABLE = (
    Rule("frontend.offset", "features.offset", same),
    Rule("frontend.scale", "features.scale", same),
    *_both(_ENCODER + "norm1", _IN_ENCODER + "norm_attention", "scale"),
    *_both(_ENCODER + "norm2", _IN_ENCODER + "norm_feed_forward", "scale"),
    *_both(_ENCODER + r"self_attn\.linear_q_k_v", _IN_ENCODER + "attention.query_key_value"),
    *_both(_ENCODER + r"self_attn\.linear_out", _IN_ENCODER + "attention.out"),
    Rule(_ENCODER + r"self_attn\.fsmn_block\.weight", _IN_ENCODER + "attention.memory.conv.kernel", conv1d),
    *_both(_ENCODER + r"feed_forward\.w_1", _IN_ENCODER + "feed_forward.in_proj"),
    *_both(_ENCODER + r"feed_forward\.w_2", _IN_ENCODER + "feed_forward.out_proj"),
    *_both(r"encoder\.after_norm", "encoder.norm", "scale"),
    *_memory(_DECODER, _IN_DECODER + "neighbours"),
    *_both(_DECODER + "norm3", _IN_DECODER + "norm_attention", "scale"),
    *_both(_DECODER + r"src_attn\.linear_q", _IN_DECODER + "attention.query"),
    *_both(_DECODER + r"src_attn\.linear_k_v", _IN_DECODER + "attention.key_value"),
    *_both(_DECODER + r"src_attn\.linear_out", _IN_DECODER + "attention.out"),
    *_memory(r"decoder\.decoders2\.(?P<n>\d+)\.", "parallel.memory_layers.{n}"),
    *_feed_forward(r"decoder\.decoders3\.(?P<n>\d+)\.", "parallel.final_layers.{n}"),
    *_both(r"decoder\.after_norm", "parallel.norm", "scale"),
    *_both(r"decoder\.output_layer", "parallel.output"),
    Rule(r"decoder\.embed\.0\.weight", "parallel.embedding", same),
    Rule(r"predictor\.cif_conv1d\.bias", _CIF + "conv.bias", same),
    *_both(r"predictor\.cif_output", _CIF + "output"),
    Rule(r"predictor\.upsample_cnn\.weight", _CIF + "second.upsample.kernel", _upsampling),
    Rule(r"predictor\.upsample_cnn\.bias", _CIF + "second.upsample_bias", same),
    Rule(r"predictor\.blstm\.weight_ih_l0", _CIF + "second.forward.input.kernel", linear),
    Rule(r"predictor\.blstm\.weight_hh_l0", _CIF + "second.forward.recurrent.kernel", linear),
    Rule(r"predictor\.blstm\.bias_l0", _CIF + "second.forward.input.bias", same),
    Rule(r"predictor\.blstm\.weight_ih_l0_reverse", _CIF + "second.backward.input.kernel", linear),
    Rule(r"predictor\.blstm\.weight_hh_l0_reverse", _CIF + "second.backward.recurrent.kernel", linear),
    Rule(r"predictor\.blstm\.bias_l0_reverse", _CIF + "second.backward.input.bias", same),
    *_both(r"predictor\.cif_output2", _CIF + "second.output"),
)

# The predictor's convolution has one name, and a kernel of another layout in the first class.
CONVOLUTIONS = {
    "full": Rule(r"predictor\.cif_conv1d\.weight", _CIF + "conv.kernel", _full_conv),
    "depthwise": Rule(r"predictor\.cif_conv1d\.weight", _CIF + "conv.kernel", conv1d),
}

IGNORED = (
    Ignored(r"(encoder|decoder)\.embed\.pe", "the table of positions, which is computed"),
    Ignored(r"ctc\..*", "the training's CTC output, which Paraformers do not use"),
    Ignored(r"criterion_.*|.*\.num_batches_tracked", "the training's losses and counters"),
)


def with_one_numbering(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the encoder's layers as one list, and an LSTM's two biases, which are only ever added, as one."""
    named: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name.startswith("encoder.encoders0.0."):
            name = name.replace("encoders0.0.", "layers.0.", 1)
        elif name.startswith("encoder.encoders."):
            number, _, rest = name.removeprefix("encoder.encoders.").partition(".")
            name = f"encoder.layers.{int(number) + 1}.{rest}" if number.isdecimal() else name
        named[name] = tensor
    for end in ("", "_reverse"):
        parts = [f"predictor.blstm.bias_{which}_l0{end}" for which in ("ih", "hh")]
        if all(part in named for part in parts) and named[parts[0]].shape == named[parts[1]].shape:
            named[f"predictor.blstm.bias_l0{end}"] = named.pop(parts[0]) + named.pop(parts[1])
    return named


# --- settings --------------------------------------------------------------------------------------------------------


def features_config(settings: Mapping[str, Any]) -> LfrConfig:
    """frontend_conf as our configuration. CheckpointError for what it cannot be; ValueError from the configuration."""
    funasr.meaning(settings, "frontend", funasr.FRONT_ENDS)
    given = funasr.options(funasr.FrontEndOptions, settings, "frontend_conf")
    if given.window not in ("hamming", "povey"):
        raise funasr.refuse("frontend_conf", "window", given.window, "known are hamming and povey")
    return LfrConfig(
        fbank=KaldiConfig(
            sample_rate=given.fs,
            frame_length_ms=float(given.frame_length),
            frame_shift_ms=float(given.frame_shift),
            bins=given.n_mels,
            high_freq=0.0,
            window=given.window,  # type: ignore[arg-type]  # one of the names
            snip_edges=given.snip_edges,
            sample_scale=32768.0 if given.upsacle_samples else 1.0,
        ),
        stacked=given.lfr_m,
        shift=given.lfr_n,
    )


def encoder_config(
    settings: Mapping[str, Any], input_dim: int, chunks: Overlapped | None, window: Sliding | None
) -> SanmConfig:
    """encoder_conf as our configuration, for features of `input_dim` values.

    `chunks` and `window` as `choose_chunks` and `choose_window` give them.
    """
    given = _encoder_options(settings)
    _refuse_variants("encoder_conf", given)
    layer = "pe_online" if isinstance(given, funasr.ChunkedEncoderOptions) else "pe"
    for name, only in (("input_layer", layer), ("selfattention_layer_type", "sanm")):
        if getattr(given, name) != only:
            raise funasr.refuse("encoder_conf", name, getattr(given, name), f"known is {only}")
    if given.positionwise_layer_type != "linear":
        raise funasr.refuse("encoder_conf", "positionwise_layer_type", given.positionwise_layer_type, "known is linear")
    return SanmConfig(
        num_layers=given.num_blocks,
        dim=given.output_size,
        num_heads=given.attention_heads,
        feedforward_dim=given.linear_units,
        kernel=given.kernel_size,
        shift=given.sanm_shfit,
        input_dim=input_dim,
        chunks=chunks,
        window=window,
    )


def choose_chunks(settings: Mapping[str, Any], frame_seconds: float, seconds: float | None) -> Overlapped | None:
    """The chunks in which a streaming model takes whole utterances; None for a model that takes them at once.

    `seconds`: new sound of a chunk, one of those that the model was trained with, by default the first; infinity for
    no chunks. ConfigError for another.
    """
    given = _encoder_options(settings)
    if not isinstance(given, funasr.ChunkedEncoderOptions):
        if seconds is not None:
            raise ConfigError("chunk_seconds is for models that stream: leave it out")
        return None
    if seconds == math.inf:
        return None
    kind = 0 if seconds is None else _kind(given, frame_seconds, seconds)
    if _of_kind(given, "pad_left", kind):
        raise funasr.refuse("encoder_conf", "pad_left", given.pad_left, "chunks begin with new frames here")
    return Overlapped(
        size=_of_kind(given, "chunk_size", kind),
        stride=_of_kind(given, "stride", kind),
        gap=(given.kernel_size - 1) // 2,
        encoder_look_back=_of_kind(given, "encoder_att_look_back_factor", kind),
        decoder_look_back=_of_kind(given, "decoder_att_look_back_factor", kind),
    )


def choose_window(settings: Mapping[str, Any], frame_seconds: float, seconds: float | None) -> Sliding | None:
    """The window in which a streaming model takes streams; None for a model that takes none.

    `seconds`: as `choose_chunks` takes them. By default it is the longest kind, which is that of the model cards.
    """
    given = _encoder_options(settings)
    if not isinstance(given, funasr.ChunkedEncoderOptions):
        return None
    longest = max(range(len(given.stride)), key=lambda kind: given.stride[kind])
    kind = longest if seconds in (None, math.inf) else _kind(given, frame_seconds, seconds)
    current = _of_kind(given, "stride", kind)
    return Sliding(
        current=current,
        ahead=_of_kind(given, "chunk_size", kind) - current,
        encoder_look_back=_of_kind(given, "encoder_att_look_back_factor", kind),
        decoder_look_back=_of_kind(given, "decoder_att_look_back_factor", kind),
    )


def _kind(given: funasr.ChunkedEncoderOptions, frame_seconds: float, seconds: float) -> int:
    """Which of the kinds of chunks has so much new sound. ConfigError where none has."""
    kinds = [round(stride * frame_seconds, 4) for stride in given.stride]
    if seconds not in kinds:
        raise ConfigError(f"chunk_seconds {seconds:g} is none of {', '.join(f'{kind:g}' for kind in kinds)} and inf")
    return kinds.index(seconds)


def _of_kind(given: funasr.ChunkedEncoderOptions, name: str, kind: int) -> int:
    """A value of this kind of chunks: the first one's where the option has none for it."""
    values: tuple[int, ...] = getattr(given, name)
    if not values:
        raise funasr.refuse("encoder_conf", name, values, "a value for each kind of chunk is needed")
    return values[kind] if kind < len(values) else values[0]


def _encoder_options(settings: Mapping[str, Any]) -> funasr.EncoderOptions:
    kind = funasr.meaning(settings, "encoder", funasr.ENCODERS)
    cls = funasr.ChunkedEncoderOptions if kind == "chunks" else funasr.EncoderOptions
    return funasr.options(cls, settings, "encoder_conf")


def head_config(
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    chunks: Overlapped | None,
    window: Sliding | None,
) -> ParallelConfig:
    """decoder_conf and predictor_conf as our configuration; the vocabulary has a row of the output layer a token."""
    funasr.meaning(settings, "decoder", funasr.DECODERS)
    given = funasr.options(funasr.DecoderOptions, settings, "decoder_conf")
    _refuse_variants("decoder_conf", given)
    if not given.use_output_layer:
        raise funasr.refuse("decoder_conf", "use_output_layer", False, "the tokens' output layer is needed")
    output = tensors.get("decoder.output_layer.weight")
    if output is None or output.ndim != 2:
        raise CheckpointError("tensor decoder.output_layer.weight is missing: this is not a whole Paraformer")
    return ParallelConfig(
        vocabulary_size=output.shape[0],
        predictor=_predictor_config(settings),
        num_layers=given.att_layer_num,
        memory_layers=given.num_blocks - given.att_layer_num,
        final_layers=1,
        feedforward_dim=given.linear_units,
        num_heads=given.attention_heads,
        kernel=given.kernel_size,
        shift=given.sanm_shfit,
        chunks=chunks,
        window=window,
    )


def _predictor_config(settings: Mapping[str, Any]) -> CIFConfig:
    kind = funasr.meaning(settings, "predictor", funasr.PREDICTORS)
    given = funasr.options(funasr.PredictorOptions, settings, "predictor_conf")
    if given.threshold != 1.0:
        raise funasr.refuse("predictor_conf", "threshold", given.threshold, "FunASR's own search assumes 1")
    peaks = None
    if kind == "peaks":
        if given.upsample_type not in ("cnn", "cnn_blstm"):
            raise funasr.refuse("predictor_conf", "upsample_type", given.upsample_type, "known are cnn and cnn_blstm")
        peaks = PeaksConfig(
            upsampling=given.upsample_times,
            recurrent=given.upsample_type == "cnn_blstm",
            smooth_factor=given.smooth_factor2,
            noise_threshold=given.noise_threshold2,
            shares_convolution=given.use_cif1_cnn,
        )
    tail = given.tail_threshold
    return CIFConfig(
        context=(given.l_order, given.r_order),
        convolution="depthwise" if kind == "depthwise" else "full",
        smooth_factor=given.smooth_factor,
        noise_threshold=given.noise_threshold,
        tail=(0.45 if kind == "depthwise" else 0.0) if tail is None else tail,
        peaks=peaks,
    )


def _refuse_variants(section: str, given: funasr.EncoderOptions | funasr.DecoderOptions) -> None:
    if not given.normalize_before:
        raise funasr.refuse(section, "normalize_before", False, "norms stand before the modules here")
    if given.concat_after:
        raise funasr.refuse(section, "concat_after", True, "outputs are not concatenated here")
