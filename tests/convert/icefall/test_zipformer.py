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
from jaxasr.configs import named_configs
from jaxasr.configuration import to_mapping
from jaxasr.convert import convert_checkpoint
from jaxasr.convert.icefall import zipformer
from jaxasr.convert.icefall.checkpoints import read_checkpoint
from jaxasr.convert.icefall.zipformer import complete_config, derive_config
from jaxasr.convert.mapping import Checkpoint
from jaxasr.convert.protocol import Options
from jaxasr.encoders.zipformer_config import ZipformerConfig
from jaxasr.errors import ConfigError
from jaxasr.model_config import ModelConfig
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


def stating(bundled: Golden, **settings: object) -> Checkpoint:
    """The bundled checkpoint, which states its heads as well."""
    checkpoint = read_checkpoint(bundled.folder / "pretrained.pt")
    return dataclasses.replace(checkpoint, settings={"num_heads": bundled.config.encoder.num_heads, **settings})


def test_chunks_of_a_model_without_them(bundled: Golden) -> None:
    with pytest.raises(ConfigError, match="chunk_seconds .* not causal"):
        derive_config(stating(bundled), Options(chunk_seconds=0.32), None)


# Attention heads, of which shapes tell nothing


def known(monkeypatch: pytest.MonkeyPatch, folder: Path, **configs: ModelConfig) -> None:
    """Let these be the known configurations."""
    paths = {}
    for name, config in configs.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(to_mapping(config)))
    monkeypatch.setattr(zipformer, "named_configs", lambda: paths)


def other_heads(config: ModelConfig) -> ModelConfig:
    """One head a stack, as wide as all of them were."""
    encoder = config.encoder
    widths = {
        name: tuple(size * number for size, number in zip(getattr(encoder, name), encoder.num_heads, strict=True))
        for name in ("query_head_dim", "value_head_dim", "pos_head_dim")
    }
    ones = (1,) * len(encoder.num_heads)
    return dataclasses.replace(config, encoder=dataclasses.replace(encoder, num_heads=ones, **widths))


def test_heads_of_the_one_known_model_of_these_sizes(
    bundled: Golden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    larger = dataclasses.replace(bundled.config.encoder, pos_head_dim=(9,) * len(bundled.config.encoder.num_heads))
    known(monkeypatch, tmp_path, its=bundled.config, another=dataclasses.replace(bundled.config, encoder=larger))
    checkpoint = stating(bundled, num_heads=None)
    assert derive_config(checkpoint, Options(), None).encoder == bundled.config.encoder
    assert len(checkpoint.notes) == 1 and "as in its, which has exactly these sizes" in checkpoint.notes[0]


def test_heads_that_nobody_knows(bundled: Golden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"heads open, and no known model has its sizes: .* as config"):
        derive_config(stating(bundled, num_heads=None), Options(), None)
    known(monkeypatch, tmp_path, one=bundled.config, two=other_heads(bundled.config), alike=bundled.config)
    with pytest.raises(ConfigError, match="these configurations have its sizes: alike, one, two: .* as config"):
        derive_config(stating(bundled, num_heads=None), Options(), None)
    known(monkeypatch, tmp_path, one=bundled.config, alike=bundled.config)
    assert derive_config(stating(bundled, num_heads=None), Options(), None).encoder == bundled.config.encoder


@pytest.mark.parametrize("stated", [(4, 4), (5, 5, 5, 5, 5, 5, 5), (0,), (1000,)])
def test_stated_heads_that_do_not_fit(bundled: Golden, stated: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="num_heads .* does not fit the tensors"):
        derive_config(stating(bundled, num_heads=stated), Options(), None)


def tensors_of(encoder: ZipformerConfig) -> dict[str, np.ndarray]:
    """The tensors that tell sizes, as shapes without content."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stack, factor in enumerate(encoder.downsampling):
        inner = ".encoder" if factor > 1 else ""
        heads = encoder.num_heads[stack]
        query, value, position = (
            heads * each[stack] for each in (encoder.query_head_dim, encoder.value_head_dim, encoder.pos_head_dim)
        )
        for layer in range(encoder.num_layers[stack]):
            prefix = f"encoder.encoders.{stack}{inner}.layers.{layer}."
            convolution = "conv_module1.depthwise_conv."
            shapes[f"{prefix}norm.bias"] = (encoder.encoder_dim[stack],)
            shapes[f"{prefix}self_attn_weights.linear_pos.weight"] = (position, encoder.pos_dim)
            shapes[f"{prefix}self_attn_weights.in_proj.weight"] = (2 * query + position, 1)
            shapes[f"{prefix}self_attn1.in_proj.weight"] = (value, 1)
            shapes[f"{prefix}feed_forward2.in_proj.weight"] = (encoder.feedforward_dim[stack], 1)
            if encoder.causal:
                shapes[f"{prefix}{convolution}causal_conv.weight"] = (1, 1, (encoder.conv_kernel[stack] + 1) // 2)
            chunkwise = "chunkwise_conv." if encoder.causal else ""
            shapes[f"{prefix}{convolution}{chunkwise}weight"] = (1, 1, encoder.conv_kernel[stack])
        if factor > 1:
            shapes[f"encoder.encoders.{stack}.downsample.bias"] = (factor,)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", sorted(name for name in named_configs() if "zipformer" in name or "k2" in name))
def test_every_published_model_is_known_by_its_sizes(name: str) -> None:
    encoder = store.read_config(named_configs()[name]).encoder
    assert isinstance(encoder, ZipformerConfig)
    checkpoint = Checkpoint(tensors_of(encoder), {}, [], [])
    sizes = zipformer._derive_sizes(checkpoint)
    assert (sizes["num_heads"], sizes["query_head_dim"]) == (encoder.num_heads, encoder.query_head_dim)
    assert name in checkpoint.notes[0]


def test_features_have_the_bins_of_the_recipe(bundled: Golden) -> None:
    for stated, bins in (({}, 80), ({"feature_dim": 40}, 40)):
        config = derive_config(stating(bundled, **stated), Options(), None)
        assert config.features.bins == config.encoder.input_dim == bins
