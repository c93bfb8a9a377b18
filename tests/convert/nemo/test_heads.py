"""Sizes of NeMo's heads from tensors and settings, and heads that are refused by name."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from jaxasr.convert.mapping import map_tensors
from jaxasr.convert.nemo.heads import IGNORED, TABLE, ctc_config, transducer_config, with_summed_biases
from jaxasr.errors import CheckpointError
from jaxasr.heads.lstm_config import LSTMConfig

VOCABULARY, DIM, JOINT, WIDTH = 5, 4, 3, 6  # the blank is the last of 5

SETTINGS: dict[str, Any] = {
    "decoder": {"_target_": "a.RNNTDecoder", "normalization_mode": None, "blank_as_pad": True},
    "joint": {"_target_": "a.RNNTJoint", "jointnet": {"activation": "relu"}},
    "decoding": {"greedy": {"max_symbols": 7}, "durations": [0, 2]},
    "aux_ctc": {"decoder": {"_target_": "a.ConvASRDecoder"}},
}


def tensors(durations: int = 2, output: int = 2, hybrid: bool = True) -> dict[str, np.ndarray]:
    lstm = "decoder.prediction.dec_rnn.lstm."
    shapes: dict[str, tuple[int, ...]] = {
        "decoder.prediction.embed.weight": (VOCABULARY, DIM),
        "joint.enc.weight": (JOINT, WIDTH),
        "joint.enc.bias": (JOINT,),
        "joint.pred.weight": (JOINT, DIM),
        "joint.pred.bias": (JOINT,),
        f"joint.joint_net.{output}.weight": (VOCABULARY + durations, JOINT),
        f"joint.joint_net.{output}.bias": (VOCABULARY + durations,),
    }
    for layer in range(2):
        shapes |= {f"{lstm}weight_{part}_l{layer}": (4 * DIM, DIM) for part in ("ih", "hh")}
        shapes |= {f"{lstm}bias_{part}_l{layer}": (4 * DIM,) for part in ("ih", "hh")}
    if hybrid:
        shapes |= {
            "ctc_decoder.decoder_layers.0.weight": (VOCABULARY, WIDTH, 1),
            "ctc_decoder.decoder_layers.0.bias": (VOCABULARY,),
        }
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def changed(**changes: Any) -> dict[str, Any]:
    settings = copy.deepcopy(SETTINGS)
    for place, value in changes.items():
        *sections, key = place.split("__")
        inner = settings
        for section in sections:
            inner = inner[section]
        inner[key] = value
    return settings


def test_a_hybrid_with_durations() -> None:
    notes: list[str] = []
    config = transducer_config(SETTINGS, tensors(), notes)
    assert config is not None
    assert config.predictor == LSTMConfig(dim=DIM, layers=2)
    assert (config.vocabulary_size, config.blank_id, config.joiner_dim) == (VOCABULARY, VOCABULARY - 1, JOINT)
    assert (config.durations, config.activation, config.max_symbols) == ((0, 2), "relu", 7)
    ctc = ctc_config(SETTINGS, tensors())
    assert ctc is not None and (ctc.vocabulary_size, ctc.blank_id) == (VOCABULARY, VOCABULARY - 1)
    assert not notes


def test_one_head_alone() -> None:
    assert ctc_config(SETTINGS, tensors(hybrid=False)) is None
    alone = {"decoder": {"_target_": "a.ConvASRDecoder"}}
    assert transducer_config(alone, {}, []) is None
    weight = {"decoder.decoder_layers.0.weight": np.ones((9, WIDTH, 1), np.float32)}
    ctc = ctc_config(alone, weight)
    assert ctc is not None and ctc.blank_id == 8


@pytest.mark.parametrize("output", [1, 2])
def test_names_become_paths_and_the_two_biases_of_a_layer_one(output: int) -> None:
    stored = tensors(output=output)
    mapped = map_tensors(with_summed_biases(stored) | {"x.num_batches_tracked": np.array(1)}, TABLE, IGNORED)
    lstm = "decoder.prediction.dec_rnn.lstm."
    for layer in range(2):
        ours = f"transducer.predictor.layers.{layer}."
        biases = stored[f"{lstm}bias_ih_l{layer}"] + stored[f"{lstm}bias_hh_l{layer}"]
        np.testing.assert_array_equal(mapped[f"{ours}input.bias"], biases)
        np.testing.assert_array_equal(mapped[f"{ours}recurrent.kernel"], stored[f"{lstm}weight_hh_l{layer}"].T)
    assert mapped["transducer.output.kernel"].shape == (JOINT, VOCABULARY + 2)
    assert mapped["ctc.output.kernel"].shape == (WIDTH, VOCABULARY)
    assert len(mapped) == len(stored) - 2


def test_tokens_of_a_frame_are_bounded_where_nothing_states_how_many() -> None:
    notes: list[str] = []
    config = transducer_config(changed(decoding__greedy={}), tensors(), notes)
    assert config is not None and config.max_symbols == 10
    assert notes == ["max_symbols is not stated: a frame may emit 10 tokens"]
    older = transducer_config(changed(decoding__greedy={"max_symbols_per_step": 30}), tensors(), [])
    assert older is not None and older.max_symbols == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"joint___target_": "a.HATJoint"}, "joint._target_ is 'a.HATJoint': no joint network"),
        ({"decoder__normalization_mode": "layer"}, "decoder.normalization_mode is 'layer'"),
        ({"decoder__blank_as_pad": False}, "decoder.blank_as_pad is False"),
        ({"joint__jointnet": {"activation": "gelu"}}, "joint.jointnet.activation is 'gelu': known are relu"),
        ({"decoding__big_blank_durations": [2, 4]}, "decoding.big_blank_durations"),
        ({"decoding__durations": [0, 1, 2]}, "2 outputs beside its tokens, but model_config.yaml states 3 durations"),
        ({"decoding__durations": None}, "states 0 durations"),
    ],
)
def test_other_transducers_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        transducer_config(changed(**changes), tensors(), [])


def test_other_decoders_and_missing_tensors_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="decoder._target_ is 'a.LSTMDecoder': no head that jaxasr knows"):
        ctc_config({"decoder": {"_target_": "a.LSTMDecoder"}}, {})
    for name in ("decoder.prediction.embed.weight", "joint.joint_net.2.weight"):
        with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
            transducer_config(SETTINGS, {key: value for key, value in tensors().items() if key != name}, [])
    with pytest.raises(CheckpointError, match="has 1 axes"):
        transducer_config(SETTINGS, tensors() | {"decoder.prediction.embed.weight": np.ones(3)}, [])
