"""Voice activity detectors of FunASR (FSMN-VAD): the table of their names, and config.yaml as our configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxasr.convert.funasr import network
from jaxasr.convert.funasr import settings as funasr
from jaxasr.convert.mapping import Checkpoint, Rule, linear, map_tensors, match_parameters, same
from jaxasr.convert.protocol import Converted, Options
from jaxasr.detector_config import DetectorConfig
from jaxasr.encoders.fsmn_config import FsmnConfig
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.features.lfr_config import LfrConfig
from jaxasr.heads.configs import ClassifierConfig
from jaxasr.longform.configs import DYNAMIC_SCHEDULE, EndpointConfig

# Every spelling of the classes in lower case.
MODELS = {"fsmnvadstreaming": "detector", "fsmn_vad_streaming": "detector", "e2evad": "detector", "fsmnvad": "detector"}
ENCODERS = {"fsmn": "fsmn"}
# Where the options of the segments stand: in the first releases under the second name.
_SECTIONS = ("model_conf", "vad_post_conf")
MOST_FRAMES = 100  # of a memory's side, and from one to the next
CALL_SECONDS = 60  # FunASR's offline piece of a recording


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """encoder_conf; the class has no defaults, these are the published detector's."""

    input_dim: int = 400
    input_affine_dim: int = 140
    fsmn_layers: int = 4
    linear_dim: int = 250
    proj_dim: int = 128
    lorder: int = 20
    rorder: int = 0
    lstride: int = 1
    rstride: int = 0
    output_affine_dim: int = 140
    output_dim: int = 248
    use_softmax: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """model_conf, with the defaults of the class."""

    sample_rate: int = 16000
    detect_mode: int = 1
    max_end_silence_time: int = 800
    window_size_ms: int = 200
    sil_to_speech_time_thres: int = 150
    speech_to_sil_time_thres: int = 150
    speech_2_noise_ratio: float = 1.0
    do_extend: int | None = 1
    lookback_time_start_point: int = 200
    lookahead_time_end_point: int = 100
    max_single_segment_time: int = 60000
    snr_thres: float = -100.0
    noise_frame_num_used_for_snr: int = 100
    decibel_thres: float = -100.0
    speech_noise_thres: float = 0.6
    silence_pdf_num: int = 1
    sil_pdf_ids: tuple[int, ...] = (0,)
    frame_in_ms: int = 10
    frame_length_ms: int = 25
    dynamic_silence: bool = False  # of FunASR's calls, not of its class, which takes no notice of it


# Options that FunASR reads and no result depends on, or that only its single-utterance mode has.
_WITHOUT_EFFECT = frozenset(
    "snr_mode max_start_silence_time do_start_point_detection do_end_point_detection nn_eval_block_size "
    "dcd_block_size fe_prior_thres speech_noise_thresh_low speech_noise_thresh_high output_frame_probs".split()
)


def _memory(x: np.ndarray) -> np.ndarray:
    """(channels, width) -> (width, 1, channels)."""
    return x.T[:, None]


def _affine(pattern: str, path: str) -> tuple[Rule, Rule]:
    return (
        Rule(pattern + r"\.linear\.weight", f"{path}.kernel", linear),
        Rule(pattern + r"\.linear\.bias", f"{path}.bias", same),
    )


_BLOCK, _IN_BLOCK = r"encoder\.fsmn\.(?P<n>\d+)\.", "encoder.layers.{n}."
TABLE = (
    Rule("frontend.offset", "features.offset", same),
    Rule("frontend.scale", "features.scale", same),
    *_affine(r"encoder\.in_linear1", "encoder.in_hidden"),
    *_affine(r"encoder\.in_linear2", "encoder.in_proj"),
    Rule(_BLOCK + r"linear\.linear\.weight", _IN_BLOCK + "narrow.kernel", linear),
    Rule(_BLOCK + "memory", _IN_BLOCK + "memory.conv.kernel", _memory),  # as `_with_whole_memories` names it
    *_affine(_BLOCK + "affine", _IN_BLOCK + "widen"),
    *_affine(r"encoder\.out_linear1", "encoder.out_proj"),
    *_affine(r"encoder\.out_linear2", "classifier.layers.0"),
)


def is_detector(found: Mapping[str, Any]) -> bool:
    """Whether config.yaml is a detector's, by the name of its model or, where it has none, by its encoder's."""
    name = found.get("model", found.get("encoder"))
    return isinstance(name, str) and name.lower() in {**MODELS, **ENCODERS}


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    """The detector that a directory describes; what was assumed is added to the checkpoint's notes."""
    for name in ("tokens", "config", "recipe", "chunk_seconds", "left_context_seconds"):
        if getattr(options, name) is not None:
            name = "config" if name == "recipe" else name
            raise ConfigError(f"{name} is for recognisers, and this is a voice activity detector")
    found = checkpoint.settings
    funasr.meaning(found, "encoder", ENCODERS)
    given = funasr.options(EncoderOptions, found, "encoder_conf")
    blocks = sum(name.endswith(".fsmn_block.conv_left.weight") for name in checkpoint.tensors)
    if given.fsmn_layers != blocks:
        raise funasr.refuse("encoder_conf", "fsmn_layers", given.fsmn_layers, f"the weights are of {blocks}")
    try:
        features = network.features_config(found)
        rules = segments_config(found, features)
        config = DetectorConfig(
            name=options.name,
            encoder=encoder_config(given),
            features=features,
            classifier=_classifier(found, given),
            segments=rules,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tensors = _with_whole_memories(checkpoint.tensors, given)
    if not rules.schedule:
        checkpoint.notes.append(
            f"segments end after {rules.silence_ms} ms of silence, as config.yaml says; FunASR 1.4 follows a schedule "
            "instead where a call does not say: dynamic_silence: true below model_conf"
        )
    return Converted(config, match_parameters(map_tensors(tensors, TABLE), config), None)


def encoder_config(given: EncoderOptions) -> FsmnConfig:
    """encoder_conf as our configuration; ValueError for what it cannot be."""
    if not given.use_softmax:
        raise funasr.refuse("encoder_conf", "use_softmax", False, "scores are probabilities here")
    for name in ("lorder", "rorder", "lstride", "rstride"):
        if not 0 <= getattr(given, name) <= MOST_FRAMES:
            raise funasr.refuse("encoder_conf", name, getattr(given, name), f"memories hear up to {MOST_FRAMES} frames")
    return FsmnConfig(
        num_layers=given.fsmn_layers,
        dim=given.linear_dim,
        memory_dim=given.proj_dim,
        past=(given.lorder - 1) * given.lstride,
        future=given.rorder * given.rstride,
        input_hidden=given.input_affine_dim,
        output_dim=given.output_affine_dim,
        input_dim=given.input_dim,
    )


def segments_config(found: Mapping[str, Any], features: LfrConfig) -> EndpointConfig:
    """model_conf as our rules; CheckpointError for what cannot be followed, ValueError for what cannot be."""
    given = _segment_options(found)
    section = _section(found)
    if given.detect_mode != 1:
        raise funasr.refuse(section, "detect_mode", given.detect_mode, "known is 1, many segments a recording")
    frame_ms = 1000 * features.frame_seconds
    if given.frame_in_ms != round(frame_ms) or abs(frame_ms - round(frame_ms)) > 1e-6:
        raise funasr.refuse(section, "frame_in_ms", given.frame_in_ms, f"the features have a frame every {frame_ms:g}")
    if given.frame_length_ms != features.fbank.frame_length_ms:
        raise funasr.refuse(section, "frame_length_ms", given.frame_length_ms, "the features' is another")
    call = CALL_SECONDS * features.sample_rate
    return EndpointConfig(
        threshold=given.speech_noise_thres,
        noise_power=given.speech_2_noise_ratio,
        least_level=given.decibel_thres,
        least_ratio=given.snr_thres,
        noise_frames=given.noise_frame_num_used_for_snr,
        window_ms=given.window_size_ms,
        to_speech_ms=given.sil_to_speech_time_thres,
        to_silence_ms=given.speech_to_sil_time_thres,
        before_ms=given.lookback_time_start_point,
        after_ms=given.lookahead_time_end_point,
        extends=bool(given.do_extend),
        silence_ms=given.max_end_silence_time,
        longest_ms=given.max_single_segment_time,
        schedule=DYNAMIC_SCHEDULE if given.dynamic_silence else (),
        call_ms=1000 * CALL_SECONDS,
        held_frames=call // (given.frame_in_ms * features.sample_rate // 1000)
        - features.frame_count(call)
        + (features.stacked - 1) // 2,
    )


def _classifier(found: Mapping[str, Any], given: EncoderOptions) -> ClassifierConfig:
    options = _segment_options(found)
    if options.silence_pdf_num != len(options.sil_pdf_ids):
        raise funasr.refuse(_section(found), "silence_pdf_num", options.silence_pdf_num, "sil_pdf_ids has others")
    return ClassifierConfig(classes=given.output_dim, nonspeech=options.sil_pdf_ids)


def _section(found: Mapping[str, Any]) -> str:
    return next((name for name in _SECTIONS if name in found), _SECTIONS[0])


def _segment_options(found: Mapping[str, Any]) -> SegmentOptions:
    section = _section(found)
    given = found.get(section)
    if isinstance(given, Mapping):
        given = {name: value for name, value in given.items() if name not in _WITHOUT_EFFECT}
        if isinstance(switch := given.get("do_extend"), bool):
            given["do_extend"] = int(switch)
    return funasr.options(SegmentOptions, {section: given}, section)


def _with_whole_memories(tensors: Mapping[str, np.ndarray], given: EncoderOptions) -> dict[str, np.ndarray]:
    """The kernels of the past and of the future as one over all frames that a memory hears, (channels, width).

    With strides above 1 the frames between have zeros. CheckpointError for kernels of another size than encoder_conf's.
    """
    result: dict[str, np.ndarray] = {}
    past = (given.lorder - 1) * given.lstride
    for name, tensor in tensors.items():
        block, found, side = name.partition(".fsmn_block.conv_")
        if not found:
            result[name] = tensor
            continue
        key = f"{block}.memory"
        order, places = {
            "left.weight": (given.lorder, slice(0, past + 1, max(given.lstride, 1))),
            "right.weight": (given.rorder, slice(past + given.rstride, None, max(given.rstride, 1))),
        }.get(side, (0, slice(0)))
        if tensor.ndim != 4 or not order or tensor.shape[1:] != (1, order, 1):
            raise CheckpointError(f"{name} {tensor.shape} does not fit encoder_conf of config.yaml")
        width = past + 1 + given.rorder * given.rstride
        whole = result.setdefault(key, np.zeros((tensor.shape[0], width), np.float32))
        if len(whole) != len(tensor):
            raise CheckpointError(f"{name} {tensor.shape} does not fit the other kernel of its memory")
        whole[:, places] = tensor[:, 0, :, 0]
    return result
