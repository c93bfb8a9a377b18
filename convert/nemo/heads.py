"""What NeMo's recognisers have on their encoder: CTC, a transducer with or without durations, or both (hybrid)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxasr.convert.mapping import Ignored, Rule, linear, pointwise, same
from jaxasr.convert.nemo.settings import Section
from jaxasr.errors import CheckpointError
from jaxasr.heads.configs import CTCConfig, TransducerConfig
from jaxasr.heads.lstm_config import LSTMConfig

CTC_TARGET, PREDICTOR_TARGET, JOINT_TARGET = "ConvASRDecoder", "RNNTDecoder", "RNNTJoint"
# NeMo's own default where a configuration states none; without any a frame could emit tokens for ever.
MAX_SYMBOLS = 10
ACTIVATIONS = ("relu", "sigmoid", "tanh")

_LSTM = r"decoder\.prediction\.dec_rnn\.lstm\."
_OUTPUT = r"joint\.joint_net\.[12]\."  # 2 after a dropout, 1 without


TABLE = (
    Rule(r"(ctc_)?decoder\.decoder_layers\.0\.weight", "ctc.output.kernel", pointwise),
    Rule(r"(ctc_)?decoder\.decoder_layers\.0\.bias", "ctc.output.bias", same),
    Rule(r"decoder\.prediction\.embed\.weight", "transducer.predictor.embedding", same),
    Rule(_LSTM + r"weight_ih_l(?P<n>\d+)", "transducer.predictor.layers.{n}.input.kernel", linear),
    Rule(_LSTM + r"weight_hh_l(?P<n>\d+)", "transducer.predictor.layers.{n}.recurrent.kernel", linear),
    Rule(_LSTM + r"bias_l(?P<n>\d+)", "transducer.predictor.layers.{n}.input.bias", same),
    Rule(r"joint\.enc\.weight", "transducer.encoder_proj.kernel", linear),
    Rule(r"joint\.enc\.bias", "transducer.encoder_proj.bias", same),
    Rule(r"joint\.pred\.weight", "transducer.predictor_proj.kernel", linear),
    Rule(r"joint\.pred\.bias", "transducer.predictor_proj.bias", same),
    Rule(_OUTPUT + "weight", "transducer.output.kernel", linear),
    Rule(_OUTPUT + "bias", "transducer.output.bias", same),
)

IGNORED = (Ignored(r".*\.num_batches_tracked", "counts training steps, for batch norms without a momentum"),)


def with_summed_biases(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the two biases of each LSTM layer, which are only ever added, as one: bias_lN."""
    added = dict(tensors)
    for name in tensors:
        if name.startswith("decoder.prediction.dec_rnn.lstm.bias_ih_l"):
            other = name.replace("bias_ih", "bias_hh")
            if other in tensors and tensors[other].shape == tensors[name].shape:
                added[name.replace("bias_ih", "bias")] = added.pop(name) + added.pop(other)
    return added


def ctc_config(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> CTCConfig | None:
    """The sizes of the CTC head, of a hybrid model its auxiliary one; None where there is none."""
    hybrid = any(name.startswith("ctc_decoder.") for name in tensors)
    section = Section(settings, "aux_ctc").section("decoder") if hybrid else Section(settings, "decoder")
    if not hybrid and section.target == PREDICTOR_TARGET:
        return None
    if section.target != CTC_TARGET:
        raise section.refuse("_target_", f"no head that jaxasr knows; known are {CTC_TARGET} and {PREDICTOR_TARGET}")
    weight = _tensor(tensors, f"{'ctc_' if hybrid else ''}decoder.decoder_layers.0.weight", 3)
    return CTCConfig(vocabulary_size=weight.shape[0], blank_id=weight.shape[0] - 1)


def transducer_config(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], notes: list[str]
) -> TransducerConfig | None:
    """The sizes of the transducer; None where there is none. CheckpointError for kinds of it that are not known."""
    decoder, joint, decoding = (Section(settings, name) for name in ("decoder", "joint", "decoding"))
    if decoder.target != PREDICTOR_TARGET:
        return None
    if joint.target != JOINT_TARGET:
        raise joint.refuse("_target_", f"no joint network that jaxasr knows; known is {JOINT_TARGET}")
    if decoder.values.get("normalization_mode") is not None:
        raise decoder.refuse("normalization_mode", "the predictor's LSTM has no norms here")
    if not decoder.flag("blank_as_pad", True):
        raise decoder.refuse("blank_as_pad", "the predictor starts from a vector of zeros here")
    activation = joint.section("jointnet").text("activation", "relu").lower()
    if activation not in ACTIVATIONS:
        raise joint.section("jointnet").refuse("activation", f"known are {', '.join(ACTIVATIONS)}")
    if decoding.values.get("big_blank_durations"):
        raise decoding.refuse("big_blank_durations", "blanks of several frames are not known here")
    embedding = _tensor(tensors, "decoder.prediction.embed.weight", 2)
    vocabulary, dim = embedding.shape
    outputs = next((f"joint.joint_net.{n}.weight" for n in (2, 1) if f"joint.joint_net.{n}.weight" in tensors), "")
    rows, joiner_dim = _tensor(tensors, outputs or "joint.joint_net.2.weight", 2).shape
    layers = sum(name.startswith("decoder.prediction.dec_rnn.lstm.weight_hh_l") for name in tensors)
    return TransducerConfig(
        vocabulary_size=vocabulary,
        predictor=LSTMConfig(dim=dim, layers=layers),
        joiner_dim=joiner_dim,
        blank_id=vocabulary - 1,
        durations=_durations(settings, rows - vocabulary),
        activation=activation,  # type: ignore[arg-type]  # one of the names
        max_symbols=_max_symbols(decoding, notes),
    )


def _tensor(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> np.ndarray:
    """A tensor of so many axes, by its name."""
    if name not in tensors or tensors[name].ndim != axes:
        what = f"has {tensors[name].ndim} axes" if name in tensors else "is missing"
        raise CheckpointError(f"tensor {name} {what}: this is not a whole recogniser of NeMo")
    return tensors[name]


def _durations(settings: Mapping[str, Any], extra: int) -> tuple[int, ...]:
    """The durations of the joint's further outputs, of which there are `extra`; () without any."""
    if extra == 0:
        return ()
    places = (
        Section(settings, "decoding").integers("durations"),
        Section(settings, "model_defaults").integers("tdt_durations"),
        Section(settings, "loss").section("tdt_kwargs").integers("durations"),
    )
    durations = next((found for found in places if found), ())
    if len(durations) != extra:
        raise CheckpointError(
            f"the joint network has {extra} outputs beside its tokens, but model_config.yaml states "
            f"{len(durations)} durations: no transducer that jaxasr knows"
        )
    return durations


def _max_symbols(decoding: Section, notes: list[str]) -> int:
    greedy = decoding.section("greedy")
    stated = greedy.integer("max_symbols", 0) or greedy.integer("max_symbols_per_step", 0)
    if stated < 1:
        notes.append(f"max_symbols is not stated: a frame may emit {MAX_SYMBOLS} tokens")
        return MAX_SYMBOLS
    return stated
