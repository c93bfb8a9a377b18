"""Quantized models of every architecture: a row of a batch is what it is alone, whatever its companions and padding."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.configuration import from_mapping
from jaxasr.encoders import ENCODERS
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig
from jaxasr.quant.array import QuantizedArray, assembled_array
from jaxasr.quant.packing import pack
from jaxasr.quant.rules import QuantizationConfig, Rule, layer_of
from jaxasr.store import flatten, unflatten
from jaxasr.testing import random_parameters, tiny_config

BINS, FRAMES, OWN = 20, 44, 31  # feature frames of the batch, and of the row that is looked at
CONFORMER: dict[str, Any] = {
    "kind": "conformer", "num_layers": 1, "dim": 12, "num_heads": 3, "feedforward_dim": 20, "conv_kernel": 5,
    "front_end_channels": 6,
}  # fmt: skip
CTC = {"ctc": {"vocabulary_size": 9}}
PARALLEL = {"vocabulary_size": 9, "num_layers": 1, "feedforward_dim": 12, "num_heads": 2, "kernel": 4, "silent_ids": []}
# Every encoder of the table but the one that `tiny_config` has, each with what else it may be made of.
FAMILIES: dict[str, dict[str, Any]] = {
    "conformer": {"encoder": CONFORMER, **CTC},
    "conformer with chunks": {
        "encoder": {
            **CONFORMER, "front_end": "separable", "causal_front_end": True, "conv_context": [4, 0],
            "conv_norm": "layer", "context": [6, 2], "context_style": "chunked", "projected_dim": 7,
        },
        "transducer": {
            "vocabulary_size": 9, "predictor": {"kind": "lstm", "dim": 8}, "joiner_dim": 8,
        },
    },
    "citrinet": {
        "encoder": {
            "kind": "citrinet",
            "blocks": [
                {"filters": 8, "kernel": 5, "residual": []},
                {"filters": 12, "kernel": 3, "repeat": 2, "stride": 2, "stride_last": True, "squeeze": 4},
                {"filters": 10, "kernel": 7, "separable": False, "dilation": 3, "residual": []},
            ],
        },
        **CTC,
    },
    "icefall_conformer": {
        "encoder": {
            "kind": "icefall_conformer", "num_layers": 1, "encoder_dim": 12, "feedforward_dim": 10, "num_heads": 3,
            "conv_kernel": 5, "embed_channels": [2, 3, 4],
        },
        **CTC,
    },
    "sanm": {
        "encoder": {
            "kind": "sanm", "num_layers": 2, "dim": 8, "num_heads": 2, "feedforward_dim": 12, "kernel": 4, "shift": 1,
        },
        "parallel": {**PARALLEL, "memory_layers": 1, "predictor": {"peaks": {}}},
        "search": {"kind": "parallel"},
    },
    "sanm in chunks": {
        "encoder": {
            "kind": "sanm", "num_layers": 1, "dim": 8, "num_heads": 2, "feedforward_dim": 12, "kernel": 4,
            "chunks": {"size": 6, "stride": 4, "gap": 2, "encoder_look_back": 1, "decoder_look_back": 1},
        },
        "parallel": {
            **PARALLEL,
            "chunks": {"size": 6, "stride": 4, "gap": 2, "encoder_look_back": 1, "decoder_look_back": 1},
        },
        "search": {"kind": "parallel"},
    },
    "fsmn": {
        "encoder": {
            "kind": "fsmn", "num_layers": 2, "dim": 10, "memory_dim": 6, "past": 3, "input_hidden": 8, "output_dim": 8,
        },
        **CTC,
    },
}  # fmt: skip
# Of one range for all frames of an utterance; with one for each frame no frame hears another at all.
WAYS = {
    "int8": Rule(path="*", bits=8, activations="int8", ranges="tensor"),
    "uint8": Rule(path="*", bits=8, activations="uint8", ranges="tensor"),
}


def quantized(name: str, rule: Rule) -> tuple[AbstractModel, dict[str, Any]]:
    """A model of this family, all of whose weights are integers."""
    described = {"name": name, "features": {"kind": "kaldi", "bins": BINS}, **FAMILIES[name]}
    described["text"] = {"kind": "sherpa_onnx", "recognizer": "ctc"}
    described["encoder"] = {**described["encoder"], "input_dim": BINS}
    config = from_mapping(ModelConfig, described, name)
    abstract = AbstractModel(dataclasses.replace(config, quantization=QuantizationConfig(rules=(rule,))))
    generator = np.random.default_rng(3)
    leaves = flatten(abstract.parameters)
    floats = {path: leaf for path, leaf in leaves.items() if not isinstance(leaf, QuantizedArray)}
    for path, leaf in leaves.items():
        if isinstance(leaf, QuantizedArray):
            integers = np.clip(np.rint(generator.normal(0, 40, leaf.shape)), -127, 127).astype(np.int8)
            scale = np.full(leaf.scale.shape, np.prod(leaf.shape[:-1]) ** -0.5 / 40, leaf.scale.dtype)
            parts = {"integers": pack(jnp.asarray(integers), leaf.bits, leaf.axis), "scale": scale}
            layer = layer_of(path, leaf.shape)
            assert layer is not None
            leaves[path] = assembled_array(parts, leaf.shape, rule, layer)
    for path, numbers in flatten(random_parameters(unflatten(floats), 3)).items():
        # What differs from frame to frame outweighs biases, so that the tokens do too.
        leaves[path] = np.abs(numbers) + 0.5 if "variance" in path else numbers + 1 if "scale" in path else numbers / 3
    assert len(floats) < len(leaves)
    return abstract, unflatten(leaves)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_does_not_hear_its_companions_nor_its_padding(name: str, way: str) -> None:
    """To the last bit in one program; in the program of the row alone sums may be rounded otherwise."""
    abstract, params = quantized(name, WAYS[way])

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        model = abstract.fill(params)
        encoded, lengths = model.encoder(frames, lengths)
        return encoded, lengths, model.search(encoded, lengths)

    generator = np.random.default_rng(7)
    batch = generator.standard_normal((2, FRAMES, BINS)).astype(np.float32)
    batch[0, OWN:] = 0
    encoded, lengths, said = run(params, batch, np.array([OWN, FRAMES], np.int32))
    count, tokens = lengths[0], said.length[0, 0]
    assert count >= 6 and tokens >= 1 and np.abs(encoded[0, :count]).max() > 0.1
    for companion, padding in ((30 * batch[1], 50.0), (np.zeros_like(batch[1]), -3.0)):
        other = np.stack([batch[0], companion])
        other[0, OWN:] = padding
        again, _, said_again = run(params, other, np.array([OWN, 7 if padding < 0 else FRAMES], np.int32))
        np.testing.assert_array_equal(again[0, :count], encoded[0, :count])
        assert said_again.length[0, 0] == tokens
        np.testing.assert_array_equal(said_again.tokens[0, 0, :tokens], said.tokens[0, 0, :tokens])


def test_every_architecture_is_looked_at() -> None:
    kinds = {family["encoder"]["kind"] for family in FAMILIES.values()}
    assert kinds | {tiny_config().encoder.kind} == set(ENCODERS)
