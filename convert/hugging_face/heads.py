"""What Transformers' Parakeet classes have on their encoder: CTC, or a transducer with or without durations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxasr.convert.hugging_face.settings import CTCSettings, DurationSettings, TransducerSettings
from jaxasr.convert.mapping import Rule, linear, pointwise, same
from jaxasr.errors import CheckpointError, printable
from jaxasr.heads.configs import CTCConfig, TransducerConfig
from jaxasr.heads.lstm_config import LSTMConfig

ACTIVATIONS = ("relu", "sigmoid", "tanh")
LIMITS = {"num_decoder_layers": 100, "max_symbols_per_step": 1000}  # beyond any recogniser

_LSTM = r"decoder\.lstm\."
_BIASES = ("bias_ih_l", "bias_hh_l")

TABLE = (
    Rule(r"ctc_head\.weight", "ctc.output.kernel", pointwise),
    Rule(r"ctc_head\.bias", "ctc.output.bias", same),
    Rule(r"decoder\.embedding\.weight", "transducer.predictor.embedding", same),
    Rule(_LSTM + r"weight_ih_l(?P<n>\d+)", "transducer.predictor.layers.{n}.input.kernel", linear),
    Rule(_LSTM + r"weight_hh_l(?P<n>\d+)", "transducer.predictor.layers.{n}.recurrent.kernel", linear),
    Rule(_LSTM + r"bias_l(?P<n>\d+)", "transducer.predictor.layers.{n}.input.bias", same),
    Rule(r"encoder_projector\.weight", "transducer.encoder_proj.kernel", linear),
    Rule(r"encoder_projector\.bias", "transducer.encoder_proj.bias", same),
    Rule(r"decoder\.decoder_projector\.weight", "transducer.predictor_proj.kernel", linear),
    Rule(r"decoder\.decoder_projector\.bias", "transducer.predictor_proj.bias", same),
    Rule(r"joint\.head\.weight", "transducer.output.kernel", linear),
    Rule(r"joint\.head\.bias", "transducer.output.bias", same),
)


def with_summed_biases(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` with the two biases of each LSTM layer, which are only ever added, as one float32 array: bias_lN."""
    added = dict(tensors)
    for name in tensors:
        other = name.replace(*_BIASES)
        if other != name and other in tensors and tensors[other].shape == tensors[name].shape:
            # In the type of the file the sum would be rounded.
            one, two = (added.pop(each).astype(np.float32) for each in (name, other))
            added[name.replace(_BIASES[0], "bias_l")] = one + two
    return added


def ctc_config(settings: CTCSettings) -> CTCConfig:
    """The sizes of a CTC head. ValueError where the blank lies outside the vocabulary."""
    return CTCConfig(vocabulary_size=settings.vocab_size, blank_id=settings.pad_token_id)


def transducer_config(settings: TransducerSettings) -> TransducerConfig:
    """The sizes of a transducer, which begins with the blank's own embedding. ValueError, CheckpointError."""
    if settings.hidden_act not in ACTIVATIONS:
        shown = printable(repr(settings.hidden_act), 80)
        raise CheckpointError(f"config.json: hidden_act is {shown}: known are {', '.join(ACTIVATIONS)}")
    for name, limit in LIMITS.items():
        if getattr(settings, name) > limit:
            raise CheckpointError(
                f"config.json: {name} is {getattr(settings, name):,}: known are numbers up to {limit:,}"
            )
    return TransducerConfig(
        vocabulary_size=settings.vocab_size,
        predictor=LSTMConfig(dim=settings.decoder_hidden_size, layers=settings.num_decoder_layers, begin="blank"),
        joiner_dim=settings.decoder_hidden_size,
        blank_id=settings.blank_token_id,
        durations=settings.durations if isinstance(settings, DurationSettings) else (),
        activation=settings.hidden_act,  # type: ignore[arg-type]  # one of the names
        max_symbols=settings.max_symbols_per_step,
    )
