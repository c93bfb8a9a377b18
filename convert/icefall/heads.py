"""What every icefall model has around its encoder: features, and a stateless transducer, a CTC output, or both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr.convert.mapping import Checkpoint, Ignored, Rule, conv1d, linear, same
from jaxasr.encoders import EncoderConfig
from jaxasr.errors import CheckpointError
from jaxasr.features.kaldi_config import KaldiConfig
from jaxasr.heads.configs import CTCConfig, StatelessConfig, TransducerConfig
from jaxasr.model_config import AudioConfig, ModelConfig
from jaxasr.search import GreedyConfig
from jaxasr.text.sherpa_onnx import SherpaOnnxConfig
from jaxasr.text.tokens import TokenTable

# Zeros that sherpa-onnx's examples feed after a stream, so that the last words leave the look-ahead (s).
ONLINE_TAIL = 0.66
# The tensor that proves a head, and has a row for each id.
OUTPUTS = {"transducer": "joiner.output_linear.weight", "ctc": "ctc_output.1.weight"}

TABLE = (
    Rule(r"decoder\.embedding\.weight", "transducer.predictor.embedding", same),
    Rule(r"decoder\.conv\.weight", "transducer.predictor.kernel", conv1d),
    Rule(r"joiner\.encoder_proj\.weight", "transducer.encoder_proj.kernel", linear),
    Rule(r"joiner\.encoder_proj\.bias", "transducer.encoder_proj.bias", same),
    Rule(r"joiner\.decoder_proj\.weight", "transducer.predictor_proj.kernel", linear),
    Rule(r"joiner\.decoder_proj\.bias", "transducer.predictor_proj.bias", same),
    Rule(r"joiner\.output_linear\.weight", "transducer.output.kernel", linear),
    Rule(r"joiner\.output_linear\.bias", "transducer.output.bias", same),
    Rule(r"ctc_output\.1\.weight", "ctc.output.kernel", linear),
    Rule(r"ctc_output\.1\.bias", "ctc.output.bias", same),
)

IGNORED = (
    Ignored(r"simple_(am|lm)_proj\.(weight|bias)", "projections of the pruned training loss"),
    Ignored(r"attention_decoder\..*", "the attention decoder rescales during training"),
)


def transducer_config(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any], unknown_id: int | None
) -> TransducerConfig | None:
    """The sizes of the transducer, None where there is none; CheckpointError where only parts of it are there.

    `unknown_id`: that of `<unk>`, which sherpa-onnx takes for blank.
    """
    if OUTPUTS["transducer"] not in tensors:
        return None
    for name in ("decoder.embedding.weight", "joiner.decoder_proj.weight", "joiner.encoder_proj.weight"):
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing: the transducer is not whole")
    vocabulary, joiner = tensors[OUTPUTS["transducer"]].shape
    convolution = tensors.get("decoder.conv.weight")
    return TransducerConfig(
        vocabulary_size=vocabulary,
        predictor=StatelessConfig(
            dim=tensors["decoder.embedding.weight"].shape[1],
            context_size=1 if convolution is None else convolution.shape[2],
            group_size=StatelessConfig.group_size if convolution is None else convolution.shape[1],
        ),
        joiner_dim=joiner,
        blank_id=int(settings.get("blank_id", 0)),
        silent_ids=() if unknown_id is None else (unknown_id,),
    )


def ctc_config(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> CTCConfig | None:
    """The sizes of the CTC output, None where there is none."""
    if OUTPUTS["ctc"] not in tensors:
        return None
    return CTCConfig(vocabulary_size=tensors[OUTPUTS["ctc"]].shape[0], blank_id=int(settings.get("blank_id", 0)))


def without_absent(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """A given configuration with the heads that the file holds; `checkpoint.notes` says which one is left out.

    An export has one head where the recipe trains two.
    """
    absent = [
        head for head, name in OUTPUTS.items() if getattr(config, head) is not None and name not in checkpoint.tensors
    ]
    if not absent:
        return config
    for head in absent:
        checkpoint.notes.append(f"the file holds no {head} head, which {config.name} would have: it is left out")
    return dataclasses.replace(
        config,
        search=GreedyConfig(),  # what was to be done with both heads goes with one of them
        transducer=None if "transducer" in absent else config.transducer,
        ctc=None if "ctc" in absent else config.ctc,
        ctc_text=None if "ctc" in absent else config.ctc_text,
    )


def model_config(
    name: str, encoder: EncoderConfig, checkpoint: Checkpoint, unknown_id: int | None, streams: bool
) -> ModelConfig:
    """The whole model around an encoder; `streams`: decoded as sherpa-onnx's online recogniser does.

    `unknown_id`: as `transducer_config` takes it. ValueError where parts do not agree.
    """
    transducer = transducer_config(checkpoint.tensors, checkpoint.settings, unknown_id)
    ctc = ctc_config(checkpoint.tensors, checkpoint.settings)
    text, ctc_text = spellings(transducer, ctc, streams)
    return ModelConfig(
        name=name,
        encoder=encoder,
        features=KaldiConfig(bins=feature_bins(checkpoint.settings)),
        text=text,
        transducer=transducer,
        ctc=ctc,
        ctc_text=ctc_text,
        audio=AudioConfig(silence_after=ONLINE_TAIL if streams else 0.0),
    )


def feature_bins(settings: Mapping[str, Any]) -> int:
    """Width of the features, 80 where nothing states it."""
    return int(settings.get("feature_dim", 80))


def spellings(
    transducer: TransducerConfig | None, ctc: CTCConfig | None, streams: bool
) -> tuple[SherpaOnnxConfig, SherpaOnnxConfig | None]:
    """How sherpa-onnx spells the model's ids, and those of a CTC head beside a transducer."""
    of_ctc = SherpaOnnxConfig(recognizer="ctc")
    if transducer is None:
        return of_ctc, None
    of_transducer = SherpaOnnxConfig(recognizer="online" if streams else "offline_transducer")
    return of_transducer, of_ctc if ctc is not None else None


def check_blank(config: ModelConfig, tokens: TokenTable, path: Path) -> None:
    """CheckpointError where the table `tokens`, read from `path`, names another blank than the model has."""
    for role, head in config.heads.items():
        if tokens.blank_id not in (None, head.blank_id):
            raise CheckpointError(
                f"{path}: {tokens[tokens.blank_id]} has id {tokens.blank_id}, but the {role}'s blank_id is "
                f"{head.blank_id} by the checkpoint or its config: give the vocabulary of this model as tokens"
            )


def vocabulary_size(checkpoint: Checkpoint) -> int:
    """Ids that the checkpoint's heads emit."""
    for name in OUTPUTS.values():
        if name in checkpoint.tensors and checkpoint.tensors[name].ndim == 2:
            return int(checkpoint.tensors[name].shape[0])
    raise CheckpointError("neither a transducer's joiner nor a CTC output is there: not a whole icefall model")
