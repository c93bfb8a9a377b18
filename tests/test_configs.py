"""configs/: every file is a whole configuration, and its sizes are those of the published checkpoint."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import REPOSITORY
from jaxasr.configs import named_configs
from jaxasr.configuration import Table, to_mapping
from jaxasr.errors import ConfigError
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig
from jaxasr.store import flatten, is_parameter, parameter_count, read_config
from jaxasr.training.recipe import Recipe

# Parameters of icefall's own modules (icefall, RESULTS.md of each recipe, and counted from the checkpoints).
CHECKPOINTS = {
    "reazonspeech_k2_v2": 159_337_842,
    "librispeech_zipformer_small": 23_285_615,
    "librispeech_zipformer_medium": 65_549_011,
    "librispeech_zipformer_medium_streaming": 66_110_931,
    "librispeech_zipformer_large": 148_439_574,
    "librispeech_zipformer_small_ctc": 23_285_615 + 128_500,
}


# Those of icefall's Conformers without the projections of the pruned loss, and with them (icefall-conformer, counted).
CONFORMERS = {
    "librispeech_icefall_conformer": (78_135_036, 78_648_040),
    "librispeech_icefall_conformer_streaming": (78_135_036, 78_648_040),
    "librispeech_icefall_conformer_large": (116_040_576, 116_553_580),
    "librispeech_icefall_conformer_large_streaming": (116_040_576, 116_553_580),
    "librispeech_icefall_conformer_medium": (30_116_992, 30_501_996),
    "librispeech_icefall_conformer_base": (87_352_196, 87_801_200),
    "wenetspeech_icefall_conformer": (83_297_961, 88_978_927),
    "wenetspeech_icefall_conformer_base": (92_515_121, 97_487_351),
}

# Parameters of NeMo's own modules, counted: those of the encoder, and those of all where NVIDIA states its tokens.
NEMO_CONFORMERS = {
    "stt_en_conformer_ctc_large": (121_435_136, None),
    "stt_en_conformer_transducer_large": (115_111_424, None),
    "stt_en_fastconformer_ctc_large": (115_074_560, None),
    "stt_en_fastconformer_transducer_large": (108_762_112, None),
    "stt_en_fastconformer_hybrid_large_streaming_multi": (108_893_184, None),
    "stt_en_fastconformer_transducer_xlarge": (607_749_120, None),
    "parakeet_tdt_0_6b_v2": (608_879_616, 617_825_926),
    "parakeet_tdt_0_6b_v3": (608_879_616, 627_008_134),
    "parakeet_ctc_0_6b": (607_749_120, 608_799_745),
    "parakeet_rnnt_0_6b": (607_749_120, 616_692_225),
    "parakeet_tdt_ctc_110m": (108_762_112, 114_624_647),
}


def parameters(config: ModelConfig) -> int:
    return parameter_count(AbstractModel(config).parameters)


def left_out(config: ModelConfig) -> int:
    """What a checkpoint holds beside ours: projections of the pruned loss, and a bypass scale of every layer."""
    encoder, head = config.encoder, config.transducer
    assert head is not None
    projections = (encoder.output_dim + 1 + head.predictor.dim + 1) * head.vocabulary_size
    scales = sum(layers * width for layers, width in zip(encoder.num_layers, encoder.encoder_dim, strict=True))
    return projections + scales


@pytest.mark.parametrize("name", sorted(named_configs()))
def test_each_is_whole_and_named_as_its_file(name: str) -> None:
    config = read_config(named_configs()[name])
    assert config.name == name
    if config.encoder.kind == "zipformer":
        assert config.encoder.causal == config.encoder.whole_chunks == ("streaming" in name or "kws" in name)
        assert (config.ctc is not None) == name.endswith("ctc")


def written_defaults(kind: type[Any], given: Mapping[str, Any], path: str = "") -> list[str]:
    """The keys of a yaml file's mapping that say what would hold without them, but for `kind`."""
    found = []
    notes = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.name not in given or field.name == "kind":
            continue
        value, inner, where = given[field.name], part_kind(notes[field.name], given[field.name]), path + field.name
        if inner is not None:
            found += written_defaults(inner, value, where + ".")
        elif field.default is not dataclasses.MISSING and json.dumps(to_mapping(field.default)) == json.dumps(value):
            found.append(where)
    return found


def part_kind(note: Any, value: Any) -> type[Any] | None:
    """The dataclass that a mapping is read as; None for any other value."""
    if not isinstance(value, dict):
        return None
    for each in (*getattr(note, "__metadata__", ()), note, *typing.get_args(note)):
        if isinstance(each, Table):
            return each[value["kind"]][0]
        if dataclasses.is_dataclass(each) and isinstance(each, type):
            return each
        if typing.get_origin(each) is not None and each is not note and (found := part_kind(each, value)):
            return found
    return None


@pytest.mark.parametrize("name", sorted(named_configs()))
def test_each_holds_only_what_differs_from_the_defaults(name: str) -> None:
    assert written_defaults(ModelConfig, yaml.safe_load(named_configs()[name].read_text("utf-8"))) == []


def test_recipes_hold_only_what_differs_from_the_defaults() -> None:
    recipes = {path.stem: path for path in (REPOSITORY / "configs/training").glob("*.yaml")}
    found = {name: written_defaults(Recipe, yaml.safe_load(path.read_text("utf-8"))) for name, path in recipes.items()}
    assert set(found) == {"embedded", "conformer", "finetune"} and not any(found.values())


def test_a_written_default_is_found() -> None:
    predictor = {"kind": "lstm", "dim": 640, "layers": 2}
    given = {"name": "a", "transducer": {"vocabulary_size": 5, "predictor": predictor}, "audio": {"longest": 7.0}}
    assert written_defaults(ModelConfig, given) == ["transducer.predictor.dim"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameter_counts(name: str) -> None:
    config = read_config(named_configs()[name])
    assert parameters(config) + left_out(config) == CHECKPOINTS[name]


@pytest.mark.parametrize("name", CONFORMERS)
def test_parameter_counts_of_conformers(name: str) -> None:
    """icefall keeps a scale for each weight, bias and embedding, and counts the front end's epsilon as no parameter."""
    config = read_config(named_configs()[name])
    encoder, head = config.encoder, config.transducer
    assert head is not None
    linears, biases = 7, 6  # of an attention (its positions have no bias) and two feed-forwards
    scales = encoder.num_layers * (linears + biases + 3 * 2 + 2) + 4 * 2 + 2 + 3 * 2
    inference, total = CONFORMERS[name]
    assert parameters(config) + scales - 1 == inference
    projections = (encoder.output_dim + 1 + head.predictor.dim + 1) * head.vocabulary_size + 2 * 2
    assert inference + projections == total
    if name == "librispeech_icefall_conformer":  # stateless3's heads for GigaSpeech beside its own
        joiner = 2 * (512 + 1) * 512 + (512 + 1) * 500 + 6
        assert total + joiner + 500 * 512 + 2 * 512 + 2 + projections == 80_199_888


@pytest.mark.parametrize("name", NEMO_CONFORMERS)
def test_parameter_counts_of_nemos_conformers(name: str) -> None:
    """NeMo counts neither the statistics of batch norms nor the arrays of the front end, but both biases of an LSTM."""
    config = read_config(named_configs()[name])
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in flatten(AbstractModel(config).parameters).items()}
    trained = {path: size for path, size in sizes.items() if is_parameter(path)}
    encoder, total = NEMO_CONFORMERS[name]
    assert sum(size for path, size in trained.items() if path.startswith("encoder.")) == encoder
    if total is not None:
        predictor = config.transducer.predictor if config.transducer is not None else None
        second_biases = 0 if predictor is None else 4 * predictor.output_dim * predictor.layers
        assert sum(trained.values()) + second_biases == total


def test_parameter_count_of_paraformer_large() -> None:
    """FunASR's own modules, counted, part by part; the statistics of the features are no parameters there."""
    config = read_config(named_configs()["paraformer_large"])
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in flatten(AbstractModel(config).parameters).items()}
    parts = [
        sum(size for path, size in sizes.items() if path.startswith(part))
        for part in ("encoder.", "parallel.", "parallel.predictor.", "parallel.embedding")
    ]
    assert parts == [157_975_648, 61_321_428 + 787_457, 787_457, 4_302_848]
    assert parts[0] + parts[1] == 220_084_533


def test_reazonspeech_without_the_training_parts() -> None:
    config = read_config(named_configs()["reazonspeech_k2_v2"])
    assert parameters(config) == 152_631_330
    assert (config.audio.silence_before, config.audio.silence_after) == (0.9, 0.9)


def test_silence_is_reazonspeechs_alone_and_the_streams_tail() -> None:
    for name, path in named_configs().items():
        config = read_config(path)
        if name != "reazonspeech_k2_v2":
            silence = (config.audio.silence_before, config.audio.silence_after)
            chunks = getattr(config.encoder, "whole_chunks", False)
            assert silence == (0.0, 0.66 if chunks else 0.0)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("num_layers:", "num_layrs:", "num_layrs"),
        ("encoder:", "encoder:\n  pos_dim: '48'", "pos_dim"),
        ("conv_kernel: [31", "conv_kernel: [30", "odd"),
        ("encoder:", "encoder:\n  padding: none", "padding"),
        ("kind: zipformer", "kind: zipformr", "'zipformr' is none of .*zipformer"),
        ("  kind: zipformer\n", "", "missing key kind; known are .*zipformer"),
        ("{kind: kaldi}", "{kind: kaldi, bins: 40}", "40 bins.*input_dim is 80"),
        ("{kind: kaldi}", "{kind: kaldi, sample_rate: 8000}", "8000.*16000 Hz"),
        ("vocabulary_size: 5224", "vocabulary_size: 5224\n  blank_id: 5224", "blank_id"),
        ("text:", "ctc: {vocabulary_size: 5}\ntext:", "vocabularies differ"),
        ("text:", "search: {kind: joint}\ntext:", "two heads"),
        ("name: ", "name: [", "yaml"),
    ],
)
def test_a_slip_is_named_with_its_file(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = named_configs()["reazonspeech_k2_v2"].read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=named) as caught:
        read_config(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
