"""Whole models from archives: what is chosen by name, what is refused by name, vocabularies, info."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import yaml

from jaxasr import store
from jaxasr.convert import convert_checkpoint, describe
from jaxasr.errors import CheckpointError, ConfigError, JaxasrError, ModelError
from jaxasr.features.nemo_config import NemoMelConfig
from jaxasr.text.nemo import NemoConfig

from .conftest import LABELS, WIDTH, citrinet_settings, citrinet_tensors, member

Writer = Callable[..., Path]


def changed(**changes: Any) -> dict[str, Any]:
    """The settings of the Citrinet with values changed or, if None, left out; `a__b` is b inside of a."""
    settings = citrinet_settings()
    for place, value in changes.items():
        *sections, key = place.split("__")
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner.pop(key, None)
        if value is not None:
            inner[key] = value
    return settings


def test_it_converts_and_says_which_version_wrote_it(write_nemo: Writer, tmp_path: Path) -> None:
    path = write_nemo()
    described = describe(path)
    assert described["kind"] == "NeMo archive (.nemo)" and described["nemo_version"] == "1.0.0"
    assert described["architecture"] == "citrinet" and described["heads"] == ["ctc"]
    convert_checkpoint(path, tmp_path / "model")
    config, params, tokens = store.load(tmp_path / "model")
    assert tokens.pieces == (*LABELS, "<blk>")
    assert config.ctc is not None and config.ctc.blank_id == len(LABELS)
    assert config.text.kind == "nemo"
    theirs = citrinet_tensors()
    np.testing.assert_array_equal(params["features"]["filterbank"], theirs["preprocessor.featurizer.fb"][0].T)
    head = theirs["decoder.decoder_layers.0.weight"]
    np.testing.assert_array_equal(params["ctc"]["output"]["kernel"], head[:, :, 0].T)


def test_switches_are_set_in_a_copy_of_the_configuration(write_nemo: Writer, tmp_path: Path) -> None:
    """What docs/models/nemo.md says: an edited config.yaml is refused where it stands, and taken with `config`."""
    convert_checkpoint(write_nemo(), tmp_path / "model")
    edited = tmp_path / "model/config.yaml"
    mapping = yaml.safe_load(edited.read_text("utf-8"))
    mapping["features"] |= {"framing": "reflected", "shortest": 16000}
    mapping["text"] |= {"punctuation": "'", "punctuation_times": "short"}
    mapping["ctc"] |= {"token_frames": "previous"}
    edited.write_text(yaml.safe_dump(mapping), "utf-8")
    with pytest.raises(ModelError, match="config.yaml is not what was converted .* with --config and your copy"):
        store.load(tmp_path / "model")
    convert_checkpoint(write_nemo(), tmp_path / "other", config=edited)
    config, params, _ = store.load(tmp_path / "other")
    assert isinstance(config.features, NemoMelConfig) and isinstance(config.text, NemoConfig) and config.ctc is not None
    assert (config.features.framing, config.features.shortest) == ("reflected", 16000)
    assert (config.text.punctuation_times, config.ctc.token_frames) == ("short", "previous")
    np.testing.assert_array_equal(
        params["features"]["filterbank"], citrinet_tensors()["preprocessor.featurizer.fb"][0].T
    )


def test_the_old_spelling_gives_the_same_model(write_nemo: Writer, tmp_path: Path) -> None:
    old = citrinet_settings()
    for name in ("preprocessor", "encoder", "decoder"):
        section = old.pop(name)
        old[name] = {"cls": section.pop("_target_"), "params": section}
    del old["target"], old["nemo_version"]
    convert_checkpoint(write_nemo(mode="w:gz"), tmp_path / "new")
    convert_checkpoint(write_nemo(old), tmp_path / "old")
    assert (tmp_path / "new/config.yaml").read_text() == (tmp_path / "old/config.yaml").read_text()
    assert "nemo_version" not in describe(write_nemo(old))


def test_arrays_of_the_front_end_are_designed_where_there_are_none(write_nemo: Writer, tmp_path: Path) -> None:
    tensors = {name: value for name, value in citrinet_tensors().items() if "featurizer" not in name}
    tensors["preprocessor.featurizer.stft.forward_basis"] = np.zeros((2, 1, 3), np.float32)
    card = convert_checkpoint(write_nemo(tensors=tensors), tmp_path / "model")
    assert any("features.filterbank and no features.window: designed" in line for line in card.summary)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model": (
        {"target": "nemo.collections.asr.models.EncDecSpeakerLabelModel"},
        "a EncDecSpeakerLabelModel is no recogniser or detector that jaxasr knows; known are EncDecCTCModel, EncDec",
    ),
    "another encoder": (
        {"encoder___target_": "nemo.collections.asr.modules.SqueezeformerEncoder"},
        "no encoder that jaxasr knows; known are ConformerEncoder, ConformerEncoderAdapter, ConvASREncoder",
    ),
    "no encoder": ({"encoder": None}, r"encoder._target_ is None: no encoder"),
    "vggnet": (
        {"encoder": {"_target_": "a.ConformerEncoder", "feat_in": 8, "d_model": 8, "subsampling": "vggnet"}},
        "vggnet",
    ),
    "another front end": (
        {"preprocessor___target_": "nemo.collections.asr.modules.AudioToSpectrogramPreprocessor"},
        "preprocessor._target_ is '.*AudioToSpectrogramPreprocessor': no front end that jaxasr knows",
    ),
    "an unknown option": ({"preprocessor__spectral": True}, "preprocessor.spectral is True: an option that"),
    "spliced frames": ({"preprocessor__frame_splicing": 3}, "preprocessor.frame_splicing is 3"),
    "uncentred frames": ({"preprocessor__exact_pad": True}, "preprocessor.exact_pad is True"),
    "stored statistics": ({"preprocessor__normalize": {"fixed_mean": [0], "fixed_std": [1]}}, "preprocessor.normalize"),
    "an open value": ({"preprocessor__features": "${a.b}"}, r"preprocessor.features is '\$\{a.b\}'"),
    "another rate": ({"preprocessor__sample_rate": 8000}, "sample_rate is 8000, but recordings come at 16000 Hz"),
    "another head": ({"decoder___target_": "a.LSTMDecoder"}, "decoder._target_ is 'a.LSTMDecoder': no head that"),
    "no labels": ({"decoder__vocabulary": None}, "neither a tokenizer nor labels"),
    "labels of another model": ({"decoder__vocabulary": ["a"]}, "1 tokens, but the model emits 3 beside its blank"),
    "labels that are none": ({"decoder__vocabulary": ["a", 1, "b"]}, "decoder.vocabulary is"),
    "a label without text": ({"decoder__vocabulary": ["a", "", "b"]}, "the token '' of the vocabulary cannot be"),
    "word pieces": ({"tokenizer": {"type": "wpe", "dir": "x"}}, "tokenizer.type is 'wpe': known are bpe"),
    "a tokenizer that is not there": (
        {"tokenizer": {"type": "bpe", "model_path": "nemo:absent.model"}},
        "tokenizer.model_path is 'nemo:absent.model': no such file lies in the archive",
    ),
    "an aggregate of its own": (
        {"tokenizer": {"type": "agg", "custom_tokenizer": {"_target_": "a.CanaryTokenizer"}}},
        "tokenizer.custom_tokenizer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(write_nemo: Writer, tmp_path: Path, name: str) -> None:
    changes, said = REFUSED[name]
    path = write_nemo(changed(**changes))
    with pytest.raises(JaxasrError, match=said) as refusal:
        convert_checkpoint(path, tmp_path / "model")
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(str(path))
    assert not (tmp_path / "model").exists()


def test_tensors_without_a_place_and_places_without_a_tensor_are_named(write_nemo: Writer, tmp_path: Path) -> None:
    tensors = citrinet_tensors()
    with pytest.raises(CheckpointError, match=r"encoder.stranger \(3,\) is unknown"):
        stranger = {"encoder.stranger": np.ones(3, np.float32)}
        convert_checkpoint(write_nemo(tensors=tensors | stranger), tmp_path / "model")
    del tensors["decoder.decoder_layers.0.bias"]
    with pytest.raises(CheckpointError, match=r"ctc.output.bias \(4,\) is missing"):
        convert_checkpoint(write_nemo(tensors=tensors), tmp_path / "model")
    tensors["preprocessor.featurizer.fb"] = np.ones((2, 8, 257), np.float32)
    with pytest.raises(CheckpointError, match="impossible shape"):
        convert_checkpoint(write_nemo(tensors=tensors), tmp_path / "model")


def test_options_that_no_archive_can_follow_are_refused(write_nemo: Writer, tmp_path: Path) -> None:
    path = write_nemo()
    with pytest.raises(ConfigError, match="average is for training checkpoints"):
        convert_checkpoint(path, tmp_path / "model", average=[path])
    (tmp_path / "recipe.yaml").write_text("num_heads: 4")
    with pytest.raises(ConfigError, match="an archive holds its own recipe"):
        convert_checkpoint(path, tmp_path / "model", config=tmp_path / "recipe.yaml")


# --- vocabularies ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat, the rat ran."] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=24,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def heads_of(vocabulary: int) -> dict[str, np.ndarray]:
    return citrinet_tensors() | {
        "decoder.decoder_layers.0.weight": np.ones((vocabulary + 1, WIDTH, 1), np.float32),
        "decoder.decoder_layers.0.bias": np.ones((vocabulary + 1,), np.float32),
    }


@pytest.mark.parametrize("path", ["nemo:abc_tokenizer.model", "/data/trainer/tokenizer.model", None])
def test_a_sentencepiece_model_is_found_by_its_name(
    write_nemo: Writer, tmp_path: Path, model_bytes: bytes, path: str | None
) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model_bytes).get_piece_size()
    settings = changed(tokenizer={"type": "bpe", "dir": "/stale", **({"model_path": path} if path else {})})
    archive = write_nemo(settings, heads_of(pieces), [member("./abc_tokenizer.model", model_bytes)])
    convert_checkpoint(archive, tmp_path / "model")
    config, _, tokens = store.load(tmp_path / "model")
    assert len(tokens) == pieces + 1 and tokens[0] == "<unk>" and tokens.blank_id == pieces
    assert config.text.tokenizer == "sentencepiece"  # type: ignore[attr-defined]
    assert config.text.punctuation == ",."  # type: ignore[attr-defined]


def test_a_given_model_is_taken_instead(write_nemo: Writer, tmp_path: Path, model_bytes: bytes) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model_bytes).get_piece_size()
    (tmp_path / "mine.model").write_bytes(model_bytes)
    settings = changed(tokenizer={"type": "bpe", "dir": "/stale"})
    archive = write_nemo(settings, heads_of(pieces))
    with pytest.raises(CheckpointError, match="give a tokenizer.model as tokens"):
        convert_checkpoint(archive, tmp_path / "model")
    convert_checkpoint(archive, tmp_path / "model", tokens=tmp_path / "mine.model")
    assert len(store.load(tmp_path / "model")[2]) == pieces + 1


def test_an_aggregate_has_one_vocabulary_after_the_other(
    write_nemo: Writer, tmp_path: Path, model_bytes: bytes
) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model_bytes).get_piece_size()
    languages = {lang: {"type": "bpe", "dir": "x", "model_path": f"nemo:{lang}.model"} for lang in ("en", "es")}
    settings = changed(tokenizer={"type": "agg", "langs": languages})
    members = [member(f"./{lang}.model", model_bytes) for lang in languages]
    convert_checkpoint(write_nemo(settings, heads_of(2 * pieces), members), tmp_path / "model")
    config, _, tokens = store.load(tmp_path / "model")
    assert tokens.pieces[:pieces] == tokens.pieces[pieces : 2 * pieces]
    assert config.text.tokenizer == "aggregate"  # type: ignore[attr-defined]
