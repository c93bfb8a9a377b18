"""A named configuration meets an export: heads and chunks are the export's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from golden_models import Golden
from jaxasr import store
from jaxasr.configuration import to_mapping
from jaxasr.convert import convert_checkpoint
from jaxasr.convert.icefall.zipformer import IcefallCheckpoint, adapt
from jaxasr.errors import ConfigError
from jaxasr.model import SearchConfig


def test_a_ctc_export_under_a_configuration_with_both_heads(shared: Path, bundled: Golden, tmp_path: Path) -> None:
    assert bundled.config.transducer is not None and bundled.config.ctc is not None
    joint = dataclasses.replace(bundled.config, search=SearchConfig("joint", 8))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(to_mapping(joint)))
    source = shared / "golden" / "zipformer-ctc-tiny" / "model.onnx"
    card = convert_checkpoint(source, tmp_path / "model", config=tmp_path / "both.yaml")
    config = store.load_config(tmp_path / "model")
    assert config.transducer is None and config.ctc == bundled.config.ctc and config.search == SearchConfig()
    assert any("no transducer head" in line for line in card.summary)


def test_neither_head_is_an_error(bundled: Golden) -> None:
    with pytest.raises(ConfigError, match="head"):
        adapt(bundled.config, IcefallCheckpoint({}, {}, [], []), None, None)


def test_an_export_keeps_its_chunks(bundled: Golden) -> None:
    causal = dataclasses.replace(bundled.config.encoder, causal=True, chunk_size=16, left_context=64)
    config = dataclasses.replace(bundled.config, encoder=causal)
    tensors = {name: np.zeros((1, 1)) for name in ("joiner.output_linear.weight", "ctc_output.1.weight")}
    exported = IcefallCheckpoint(tensors, {"chunk_size": (32,), "left_context_frames": (128,)}, [], [])
    adapted = adapt(config, exported, None, None).encoder
    assert (adapted.chunk_size, adapted.left_context) == (32, 128)
    trained = IcefallCheckpoint(tensors, {"chunk_size": (32, 64), "left_context_frames": (128, 256)}, [], [])
    assert adapt(config, trained, None, None).encoder == causal
    assert adapt(config, trained, 8, 32).encoder.chunk_size == 8
    with pytest.raises(ConfigError, match="divisible"):
        adapt(config, trained, 6, 32)
