"""What shapes prove, what a recipe states, and what a given configuration takes over from an export."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from golden_models import Golden
from jaxasr import store
from jaxasr.configuration import to_mapping
from jaxasr.convert import convert_checkpoint
from jaxasr.convert.icefall.checkpoints import read_checkpoint
from jaxasr.convert.icefall.zipformer import complete_config, derive_config
from jaxasr.convert.mapping import Checkpoint
from jaxasr.convert.protocol import Options
from jaxasr.errors import ConfigError
from jaxasr.search import GreedyConfig, JointConfig


def test_a_ctc_export_under_a_configuration_with_both_heads(shared: Path, bundled: Golden, tmp_path: Path) -> None:
    assert bundled.config.transducer is not None and bundled.config.ctc is not None
    joint = dataclasses.replace(bundled.config, search=JointConfig(beam=8))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(to_mapping(joint)))
    source = shared / "golden" / "zipformer-ctc-tiny" / "model.onnx"
    card = convert_checkpoint(source, tmp_path / "model", config=tmp_path / "both.yaml")
    config = store.load_config(tmp_path / "model")
    assert config.transducer is None and config.ctc == bundled.config.ctc and config.search == GreedyConfig()
    assert any("no transducer head" in line for line in card.summary)


def test_neither_head_is_an_error(bundled: Golden) -> None:
    with pytest.raises(ConfigError, match="head"):
        complete_config(bundled.config, Checkpoint({}, {}, [], []), Options())


def test_an_export_keeps_its_chunks(bundled: Golden) -> None:
    causal = dataclasses.replace(bundled.config.encoder, causal=True, chunk_size=16, left_context=64)
    config = dataclasses.replace(bundled.config, encoder=causal)
    tensors = {name: np.zeros((1, 1)) for name in ("joiner.output_linear.weight", "ctc_output.1.weight")}
    exported = Checkpoint(tensors, {"chunk_size": (32,), "left_context_frames": (128,)}, [], [])
    completed = complete_config(config, exported, Options()).encoder
    assert (completed.chunk_size, completed.left_context) == (32, 128)
    trained = Checkpoint(tensors, {"chunk_size": (32, 64), "left_context_frames": (128, 256)}, [], [])
    assert complete_config(config, trained, Options()).encoder == causal


@pytest.mark.parametrize(
    ("chunk_seconds", "left_context_seconds", "frames"),
    [(0.16, None, (8, 128)), (0.16, 0.64, (8, 32)), (None, 0.0, (32, 0)), (math.inf, math.inf, (-1, -1))],
)
def test_chunks_in_seconds(
    bundled: Golden, chunk_seconds: float | None, left_context_seconds: float | None, frames: tuple[int, int]
) -> None:
    causal = dataclasses.replace(bundled.config.encoder, causal=True, chunk_size=16, left_context=64)
    assert math.lcm(*causal.downsampling) == 4
    config = dataclasses.replace(bundled.config, encoder=causal)
    tensors = {name: np.zeros((1, 1)) for name in ("joiner.output_linear.weight", "ctc_output.1.weight")}
    trained = Checkpoint(tensors, {"chunk_size": (32, 64), "left_context_frames": (128, 256)}, [], [])
    options = Options(chunk_seconds=chunk_seconds, left_context_seconds=left_context_seconds)
    encoder = complete_config(config, trained, options).encoder
    assert (encoder.chunk_size, encoder.left_context) == frames


@pytest.mark.parametrize("seconds", [0.12, 0.171, 0.0, -0.16, math.nan, -math.inf])
def test_other_chunks_are_refused_with_those_that_are_possible(bundled: Golden, seconds: float) -> None:
    causal = dataclasses.replace(bundled.config.encoder, causal=True, chunk_size=16, left_context=64)
    config = dataclasses.replace(bundled.config, encoder=causal)
    tensors = {name: np.zeros((1, 1)) for name in ("joiner.output_linear.weight", "ctc_output.1.weight")}
    trained = Checkpoint(tensors, {"chunk_size": (32, 64), "left_context_frames": (128, 256)}, [], [])
    with pytest.raises(ConfigError, match=r"multiples of 0\.08 s; the recipe trains with 0\.64, 1\.28"):
        complete_config(config, trained, Options(chunk_seconds=seconds))


def test_chunks_of_a_model_without_them(bundled: Golden) -> None:
    with pytest.raises(ConfigError, match="chunk_seconds .* not causal"):
        derive_config(read_checkpoint(bundled.folder / "pretrained.pt"), Options(chunk_seconds=0.32), None)


def test_features_have_the_bins_of_the_recipe(bundled: Golden) -> None:
    checkpoint = read_checkpoint(bundled.folder / "pretrained.pt")
    for stated, bins in (({}, 80), ({"feature_dim": 40}, 40)):
        config = derive_config(dataclasses.replace(checkpoint, settings=stated), Options(), None)
        assert config.features.bins == config.encoder.input_dim == bins
