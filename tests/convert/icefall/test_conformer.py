"""icefall Conformers' scales, the parts that inference ignores, and what a configuration is derived from."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from icefall_exports import trained
from jaxasr.convert.icefall import conformer
from jaxasr.convert.icefall.models import convert, read
from jaxasr.convert.mapping import Checkpoint
from jaxasr.convert.protocol import Candidate, Options
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.model_config import ModelConfig

OFFLINE, STREAMING = "icefall-conformer-tiny", "icefall-conformer-streaming-tiny"
LAYER = "encoder.encoder.layers.0"


def checkpoint(shared: Path, name: str, **settings: Any) -> Checkpoint:
    return Checkpoint(trained(shared, name), {"blank_id": 0, **settings}, [], [])


def derive(shared: Path, name: str, options: Options | None = None, **settings: Any) -> tuple[ModelConfig, list[str]]:
    made = checkpoint(shared, name, **settings)
    return conformer.derive_config(made, options or Options(), 2), made.notes


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [OFFLINE, STREAMING])
def test_scales_are_folded_as_icefall_folds_them(shared: Path, name: str) -> None:
    tensors = trained(shared, name)
    folded = conformer.fold_scales(tensors)
    assert not [key for key in folded if key.endswith("_scale") or key.endswith("embedding.scale")]
    with np.load(shared / "golden" / name / "folded.npz") as stored:
        compared = 0
        for key in stored.files:
            # What icefall's own conversion leaves scaled has its product stored apart.
            ours = key.removeprefix("effective/")
            if f"effective/{key}" in stored.files or ours not in folded or ours.endswith(".eps"):
                continue
            np.testing.assert_allclose(folded[ours], stored[key], rtol=2e-7, atol=1e-7, err_msg=key)
            compared += 1
    assert compared > 25
    assert not np.allclose(folded[f"{LAYER}.self_attn.in_proj.weight"], tensors[f"{LAYER}.self_attn.in_proj.weight"])


def test_a_scale_that_is_no_number_is_refused(shared: Path) -> None:
    tensors = trained(shared, OFFLINE)
    tensors["joiner.encoder_proj.weight_scale"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"joiner.encoder_proj.weight_scale has shape \(3,\)"):
        conformer.fold_scales(tensors)


def test_what_only_training_used_is_ignored(shared: Path) -> None:
    """Of stateless5 before July 2022, and of stateless3's second predictor and joiner."""
    made = checkpoint(shared, OFFLINE)
    before = conformer.map_checkpoint(made)
    more = {name: np.ones((18, 18), np.float32) for name in ("encoder.encoder.combiner.linear.5.weight",)}
    for name in ("decoder_giga.embedding.weight", "joiner_giga.output_linear.weight", "simple_am_proj_giga.weight"):
        more |= {name: np.ones((2, 2), np.float32), f"{name}_scale": np.float32(0).reshape(())}
    more["decoder_giga.embedding.scale"] = np.float32(0).reshape(())
    after = conformer.map_checkpoint(dataclasses.replace(made, tensors=made.tensors | more))
    assert after.keys() == before.keys() and len(before) == 3 * (8 + 1 + 2 + 8 + 6 + 1) + 9 + 8
    unknown = {"encoder.encoder.layers.0.self_attn.extra": np.ones(2, np.float32)}
    with pytest.raises(CheckpointError, match=r"self_attn.extra \(2,\) is unknown"):
        conformer.map_checkpoint(dataclasses.replace(made, tensors=made.tensors | unknown))


# --- configuration ----------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_tensors(shared: Path) -> None:
    config, notes = derive(shared, OFFLINE, causal_convolution=False)
    encoder, transducer = config.encoder, config.transducer
    assert (encoder.num_layers, encoder.encoder_dim, encoder.feedforward_dim) == (3, 18, 44)
    assert (encoder.num_heads, encoder.conv_kernel, encoder.causal) == (3, 31, False)
    assert transducer is not None and (transducer.predictor.dim, transducer.predictor.group_size) == (40, 1)
    assert (config.text.recognizer, config.audio.silence_after, notes) == ("offline_transducer", 0.0, [])


def test_a_causal_model_streams_with_the_exporters_chunks(shared: Path) -> None:
    config, notes = derive(shared, STREAMING, causal_convolution=True)
    assert (config.encoder.chunk_size, config.encoder.left_context, config.encoder.whole_chunks) == (16, 64, True)
    assert (config.text.recognizer, config.audio.silence_after) == ("online", 0.66)
    assert [note.split()[:2] for note in notes] == [["chunk_seconds", "0.64"], ["left_context_seconds", "2.56"]]
    asked = Options(chunk_seconds=0.32, left_context_seconds=1.28)
    config, notes = derive(shared, STREAMING, asked, causal_convolution=True)
    assert (config.encoder.chunk_size, config.encoder.left_context, notes) == (8, 32, [])


def test_a_causal_model_of_whole_utterances(shared: Path) -> None:
    for settings, options in (
        ({"dynamic_chunk_training": False}, Options()),
        ({}, Options(chunk_seconds=float("inf"), left_context_seconds=float("inf"))),
    ):
        config, _ = derive(shared, STREAMING, options, causal_convolution=True, **settings)
        assert (config.encoder.causal, config.encoder.chunk_size, config.encoder.whole_chunks) == (True, -1, False)
        assert (config.text.recognizer, config.audio.silence_after) == ("offline_transducer", 0.0)


def test_whether_it_is_causal_must_be_known(shared: Path) -> None:
    """A training checkpoint that has its arguments and does not mention it is of a recipe that knew no other."""
    with pytest.raises(ConfigError, match=r"leave open whether the convolutions are causal: give .* as config"):
        derive(shared, OFFLINE)
    config, notes = derive(shared, OFFLINE, nhead=3)
    assert not config.encoder.causal and "causal_convolution: false is taken" in notes[0]


@pytest.mark.parametrize(
    ("settings", "options", "saying"),
    [
        ({"nhead": 2}, Options(), "nhead is 2 in the configuration, but the tensors say 3"),
        ({"num_encoder_layers": (12,)}, Options(), r"num_encoder_layers is \(12,\)"),
        ({"causal_convolution": False}, Options(chunk_seconds=0.64), "this one is not causal"),
        ({"causal_convolution": True}, Options(chunk_seconds=0.65), "takes multiples of 0.04 s"),
        ({"causal_convolution": True}, Options(left_context_seconds=1.0), "whole number of chunks of 16"),
        ({"causal_convolution": True}, Options(left_context_seconds=float("inf")), "must be limited"),
    ],
)
def test_what_contradicts_is_refused(shared: Path, settings: dict[str, Any], options: Options, saying: str) -> None:
    with pytest.raises(ConfigError, match=saying):
        derive(shared, OFFLINE, options, **settings)


def test_other_conformers_are_refused(shared: Path) -> None:
    def altered(change: dict[str, np.ndarray], drop: str = "") -> Checkpoint:
        made = checkpoint(shared, OFFLINE, causal_convolution=False)
        kept = {name: tensor for name, tensor in made.tensors.items() if not drop or drop not in name}
        return dataclasses.replace(made, tensors=kept | change)

    older = {f"{LAYER}.norm_mha.weight": np.ones(18, np.float32)}
    for made, saying in (
        (altered(older), "norm_mha.weight belongs to icefall's older Conformer"),
        (altered({}, "layers.1."), "layers have holes"),
        (altered({}, "layers.0.feed_forward.0.weight"), "feed_forward.0.weight is missing"),
    ):
        with pytest.raises(CheckpointError, match=saying):
            conformer.derive_config(made, Options(), 2)


def test_a_given_configuration(shared: Path) -> None:
    folder = shared / "golden" / STREAMING
    export = Candidate("", tuple(PurePosixPath(path.name) for path in sorted(folder.glob("*-1.onnx"))), folder=folder)
    options = Options(name="mine", tokens=folder / "tokens.txt", left_context_seconds=1.28)
    derived = convert(read(export, options), options).config
    assert (derived.encoder.chunk_size, derived.encoder.left_context) == (16, 32)
    other = dataclasses.replace(derived.encoder, chunk_size=8, left_context=8, right_context=2)
    given = Options(tokens=folder / "tokens.txt", config=dataclasses.replace(derived, encoder=other))
    completed = convert(read(export, given), given).config  # the export's own numbers count
    assert (completed.encoder.chunk_size, completed.encoder.left_context, completed.encoder.right_context) == (
        16,
        64,
        0,
    )
    offline = dataclasses.replace(other, causal=False, chunk_size=-1, left_context=-1, whole_chunks=False)
    wrong = dataclasses.replace(given, config=dataclasses.replace(derived, encoder=dataclasses.replace(offline)))
    with pytest.raises(ConfigError, match="has causal False, but the checkpoint's causal_convolution is True"):
        convert(read(export, wrong), wrong)
