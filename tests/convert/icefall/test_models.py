"""The recipe's own arguments, and a checkpoint and options to a whole model."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from golden_models import Golden
from jaxasr.convert.icefall.models import convert, read, recipe_arguments
from jaxasr.convert.protocol import Candidate, Options
from jaxasr.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("mapping", "arguments"),
    [
        ({"num_encoder_layers": "2,2,3", "causal": True}, {"num_encoder_layers": (2, 2, 3), "causal": True}),
        ({"arguments": {"encoder-dim": "6, 8"}, "recipe": "x", "blank_id": 0}, {"encoder_dim": (6, 8), "blank_id": 0}),
        ({"chunk_size": "16,-1", "max_duration": 600}, {"chunk_size": (16, -1), "max_duration": 600}),
        ({"use_cr_ctc": True, "use_ctc": False}, {"use_cr_ctc": True, "use_ctc": False}),
    ],
)  # fmt: skip
def test_recipe_arguments(mapping: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert recipe_arguments(mapping) == arguments


@pytest.mark.parametrize(
    ("mapping", "saying"),
    [
        ({"num_encoder_layrs": "1"}, "unknown key num_encoder_layrs; did you mean num_encoder_layers"),
        ({"arguments": [1]}, "must be a mapping"),
        ({"max_duration": 600}, "neither a configuration of jaxasr nor arguments"),
        ({}, "neither a configuration of jaxasr nor arguments"),
    ],
)
def test_recipe_arguments_that_are_none(mapping: dict[str, Any], saying: str) -> None:
    with pytest.raises(ConfigError, match=saying):
        recipe_arguments(mapping)


def test_a_checkpoint_under_options(bundled: Golden) -> None:
    candidate = Candidate("", (PurePosixPath("pretrained.pt"),), folder=bundled.folder)
    options = Options(name="mine", tokens=bundled.folder / "tokens.txt", recipe={"unk_id": 7})
    converted = convert(read(candidate, options), options)
    transducer = converted.config.transducer
    assert transducer is not None and (converted.config.name, transducer.silent_ids) == ("mine", (7,))
    assert converted.tokens == bundled.tokens
    given = dataclasses.replace(options, config=bundled.config, recipe=None)
    assert convert(read(candidate, given), given).config == bundled.config


def test_what_options_cannot_ask_for(bundled: Golden) -> None:
    candidate = Candidate("", (PurePosixPath("pretrained.pt"),), folder=bundled.folder)
    with pytest.raises(CheckpointError, match="no tokens.txt lies beside pretrained.pt"):
        convert(read(candidate, Options()), Options())
    options = Options(tokens=bundled.folder / "tokens.txt", recipe={"causl": 1}, config_file=Path("my.yaml"))
    with pytest.raises(ConfigError, match="my.yaml: unknown key causl"):
        convert(read(candidate, options), options)
    export = Candidate("", (PurePosixPath("model.onnx"),), folder=bundled.folder)
    with pytest.raises(ConfigError, match="average is for training checkpoints"):
        read(export, Options(average=(Path("epoch-1.pt"),)))
