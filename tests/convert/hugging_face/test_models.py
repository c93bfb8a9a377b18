"""Whole models from what Transformers saved: defaults, odd settings, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import DATA
from jaxasr import store
from jaxasr.convert import convert_checkpoint, describe
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.errors import CheckpointError, ConfigError, JaxasrError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the CTC model, to be changed."""
    return Path(shutil.copytree(DATA / "transformers-tiny/ctc", tmp_path / "ctc"))


def change(folder: Path, file: str, inside: str | None = None, **changes: Any) -> Path:
    """The folder with values of a JSON file replaced or, if None, left out."""
    whole = json.loads((folder / file).read_text("utf-8"))
    part = whole[inside] if inside else whole
    for key, value in changes.items():
        part.pop(key, None)
        if value is not None:
            part[key] = value
    (folder / file).write_text(json.dumps(whole))
    return folder


def test_info_says_what_is_stored() -> None:
    found = describe(DATA / "transformers-tiny/tdt")
    assert found["kind"] == "Transformers model (.safetensors)" and found["stored"] == "bfloat16"
    assert found["transformers_version"] == "5.24.0" and found["heads"] == ["transducer"]
    assert [entry["file"] for entry in describe(DATA / "transformers-tiny/rnnt")["source"]][1:5] == [
        "model.safetensors.index.json",
        *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    ]


def test_one_file_and_its_shards_are_one_model(folder: Path, tmp_path: Path) -> None:
    convert_checkpoint(folder, tmp_path / "whole")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, folder / file)
        places |= dict.fromkeys(names[number::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    convert_checkpoint(folder / "model-00002-of-00003.safetensors", tmp_path / "shards")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "shards")]
    assert manifests[0]["arrays"] == manifests[1]["arrays"]


def test_what_config_json_leaves_out_is_as_in_transformers(folder: Path) -> None:
    """nvidia/parakeet-ctc-1.1b and its like state what differs from the defaults; their tensors are not here."""
    settings = json.loads((folder / "config.json").read_text())["encoder_config"]
    left_out = settings.keys() - {"subsampling_conv_channels"}
    change(folder, "config.json", "encoder_config", **dict.fromkeys(left_out))
    with pytest.raises(CheckpointError, match=r"layers.2.attention.content_bias \(1024,\) is missing") as said:
        describe(folder)
    assert "conv.depthwise.kernel (9, 1, 1024) is missing" in str(said.value)


@pytest.mark.parametrize("lacking", ["attention_bias", "convolution_bias"])
def test_layers_with_half_of_their_biases(folder: Path, tmp_path: Path, lacking: str) -> None:
    change(folder, "config.json", "encoder_config", **{lacking: False})
    inside = (".self_attn.", ".feed_forward") if lacking == "attention_bias" else (".conv.pointwise", ".conv.depthwise")
    tensors = load_file(folder / "model.safetensors")
    kept = {
        name: x for name, x in tensors.items() if not (name.endswith(".bias") and any(part in name for part in inside))
    }
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors")
    convert_checkpoint(folder, tmp_path / "model")
    config, params, _ = store.load(tmp_path / "model")
    assert isinstance(config.encoder, ConformerConfig) and config.encoder.use_bias
    layer = params["encoder"]["layers"]["0"]  # type: ignore[index, call-overload]
    zero = {
        "attention_bias": not np.any(layer["attention"]["query"]["bias"]),
        "convolution_bias": not np.any(layer["conv"]["depthwise"]["bias"]),
    }
    assert [name for name, is_zero in zero.items() if is_zero] == [lacking]


REFUSED: dict[str, tuple[str, str | None, dict[str, Any], str]] = {
    "another model": ("config.json", None, {"model_type": "whisper"}, "'whisper': no recogniser .* parakeet_ctc"),
    "no model": ("config.json", None, {"model_type": None}, "model_type is None: no recogniser"),
    "few bits": ("config.json", None, {"quantization_config": {"bits": 4}}, "its weights are quantized"),
    "another activation": ("config.json", "encoder_config", {"hidden_act": "relu"}, "is 'relu': known are silu and"),
    "another window": ("config.json", "encoder_config", {"subsampling_conv_kernel_size": 5}, "is 5: known are 3 alone"),
    "another stride": ("config.json", "encoder_config", {"subsampling_conv_stride": 3}, "is 3: known are 2 alone"),
    "no power of two": ("config.json", "encoder_config", {"subsampling_factor": 6}, "subsampling 6 must be 2, 4, 8"),
    "a huge factor": ("config.json", "encoder_config", {"subsampling_factor": 2**80}, "powers of two up to 64"),
    "many layers": ("config.json", "encoder_config", {"num_hidden_layers": 10**9}, "numbers up to 1000"),
    "no heads": ("config.json", "encoder_config", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "wide heads": ("config.json", "encoder_config", {"head_dim": 8}, "hidden_size / num_attention_heads alone"),
    "an even kernel": ("config.json", "encoder_config", {"conv_kernel_size": 8}, "conv_kernel must be odd"),
    "a text for a number": ("config.json", "encoder_config", {"hidden_size": "16"}, "expected int, got '16'"),
    "a long text": ("config.json", "encoder_config", {"hidden_size": "1" * 10000}, "hidden_size: expected int, got"),
    "another encoder": ("config.json", None, {"encoder_config": [1]}, "encoder_config is no mapping"),
    "a blank outside": ("config.json", None, {"pad_token_id": 49}, "blank_id 49 does not lie in the vocabulary of 49"),
    "another front end": (
        "preprocessor_config.json",
        None,
        {"feature_extractor_type": "WhisperFeatureExtractor"},
        "no front end that jaxasr knows; known is ParakeetFeatureExtractor",
    ),
    "other bins": ("preprocessor_config.json", None, {"feature_size": 128}, "128 bins, but .* input_dim is 80"),
    "an odd transform": ("preprocessor_config.json", None, {"n_fft": 511}, "n_fft and feature_size are 511 and 80"),
    "a huge transform": ("preprocessor_config.json", None, {"n_fft": 2**40}, "known are even numbers to 16,384"),
    "another rate": ("preprocessor_config.json", None, {"sampling_rate": 8000}, "sample_rate is 8000"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_done_here_is_refused_by_name(folder: Path, case: str) -> None:
    file, inside, changes, said = REFUSED[case]
    with pytest.raises(JaxasrError, match=said) as refused:
        describe(change(folder, file, inside, **changes))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': known are relu, sigmoid, tanh"),
        ({"max_symbols_per_step": 10**9}, "max_symbols_per_step is 1,000,000,000: known are numbers up to 1,000"),
        ({"num_decoder_layers": 101}, "num_decoder_layers is 101"),
        ({"durations": [0, 1]}, "transducer.output.kernel has shape .16, 66. instead of .16, 63."),
        ({"durations": [0, 0, 0, 0, 0]}, "durations must be"),
        ({"num_decoder_layers": 1}, "transducer.predictor.layers.1.* has no place in this configuration"),
    ],
)
def test_a_transducers_settings_are_checked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = Path(shutil.copytree(DATA / "transformers-tiny/tdt", tmp_path / "tdt"))
    with pytest.raises(JaxasrError, match=said):
        describe(change(folder, "config.json", **changes))


def test_what_does_not_lie_there_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").rename(tmp_path / "tokens.json")
    with pytest.raises(CheckpointError, match="no tokenizer.json lies beside config.json: give its path as tokens"):
        describe(folder)
    convert_checkpoint(folder, tmp_path / "model", tokens=tmp_path / "tokens.json")
    for file in ("preprocessor_config.json", "processor_config.json"):
        (folder / file).unlink()
    with pytest.raises(CheckpointError, match="no preprocessor_config.json lies beside config.json: fetch it too"):
        convert_checkpoint(folder, tmp_path / "other", tokens=tmp_path / "tokens.json")
    with pytest.raises(ConfigError, match="average is for training checkpoints"):
        convert_checkpoint(folder, tmp_path / "other", average=[folder / "config.json"])
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no config.json lies beside it"):
        describe(folder / "model.safetensors")


def test_tensors_that_have_no_place_are_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"decoder.lstm.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder.lstm.weight \(2,\) is unknown"):
        describe(folder)
    del tensors["ctc_head.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ctc.output.bias \(49,\) is missing"):
        describe(folder)
