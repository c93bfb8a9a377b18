"""Model directories to models: the spellings of both layouts, every part filled, and what is refused by one line."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import jaxasr
from funasr_directory import TOKENS, WIDTH, settings, statistics, tensors, write
from jaxasr import store
from jaxasr.convert import describe
from jaxasr.errors import JaxasrError
from jaxasr.heads.parallel_config import PeaksConfig
from jaxasr.layers.overlapped import Overlapped
from jaxasr.layers.sliding import Sliding
from jaxasr.store import flatten

Make = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path, write_torch: Callable[..., Path]) -> Make:
    return lambda *arguments, **options: write(tmp_path, write_torch, *arguments, **options)


def converted(folder: Path, **options: Any) -> tuple[Any, dict[str, Any], Any]:
    config, params, tokens = store.load(
        Path(jaxasr.convert_checkpoint(folder, folder / "out", **options) and folder / "out")
    )
    return config, flatten(params), tokens


def test_a_directory_is_a_whole_model(directory: Make) -> None:
    weights = tensors()
    config, params, tokens = converted(directory(weights=weights))
    assert (config.features.output_dim, config.features.frame_seconds) == (WIDTH, 0.02)
    assert (config.encoder.num_layers, config.encoder.kernel) == (2, 3)
    head = config.parallel
    assert (head.num_layers, head.memory_layers, head.final_layers, head.shift) == (1, 1, 1, 1)
    assert tokens.pieces == TOKENS and config.search.kind == "parallel"
    same = np.testing.assert_array_equal
    same(params["features.offset"], [-8.5] * WIDTH)
    same(params["encoder.layers.1.attention.query_key_value.kernel"],
         weights["encoder.encoders.0.self_attn.linear_q_k_v.weight"].T)  # fmt: skip
    same(params["parallel.predictor.conv.kernel"][0, 2], weights["predictor.cif_conv1d.weight"][:, :, 2].T)
    same(params["parallel.memory_layers.0.memory.conv.kernel"][:, 0].T,
         weights["decoder.decoders2.0.self_attn.fsmn_block.weight"][:, 0])  # fmt: skip
    notes = describe(directory())["notes"]
    assert isinstance(notes, list) and not any("dither" in note for note in notes)


def test_the_spellings_of_the_first_releases(directory: Make) -> None:
    """model.pb, names in lower case with underscores, the tokens in config.yaml, and no word on dither."""
    older = settings() | {
        "model": "paraformer",
        "encoder": "sanm",
        "decoder": "paraformer_decoder_sanm",
        "predictor": "cif_predictor_v2",
        "frontend": "wav_frontend",
        "token_list": list(TOKENS),
    }
    del older["frontend_conf"]["dither"]
    folder = directory(older, name="model.pb", files={"tokens.json": None})
    facts = describe(folder)
    assert facts["kind"] == "FunASR model directory" and "dither 1" in str(facts["notes"])
    ours, theirs = converted(folder)[1], tensors()
    np.testing.assert_array_equal(ours["parallel.embedding"], theirs["decoder.embed.0.weight"])


OLDER = {
    "model": "paraformer",
    "encoder": "sanm_chunk_opt",
    "decoder": "paraformer_decoder_sanm",
    "predictor": "cif_predictor_v2",
    "frontend": "wav_frontend_online",
}


@pytest.mark.parametrize("tokens", ["tokens.txt", "token_list"])
def test_a_streaming_model_in_the_layout_of_the_first_releases(shared: Path, tmp_path: Path, tokens: str) -> None:
    """The reference's -online folder as it would have been then: the same model, whatever its files are called."""
    source, folder = shared / "golden/paraformer-online-tiny", tmp_path / "older"
    folder.mkdir()
    shutil.copyfile(source / "model.pt", folder / "model.pb")
    shutil.copyfile(source / "am.mvn", folder / "am.mvn")
    pieces = json.loads((source / "tokens.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8")) | OLDER
    if tokens == "token_list":
        config["token_list"] = pieces
    else:
        (folder / tokens).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    jaxasr.convert_checkpoint(source, tmp_path / "usual")
    usual = store.load(tmp_path / "usual")
    found, params, table = converted(folder)
    assert dataclasses.replace(found, name=usual[0].name) == usual[0]
    assert table.pieces == usual[2].pieces == tuple(pieces)
    arrays = flatten(usual[1])
    assert params.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)


@pytest.mark.parametrize(
    "text", ["\n".join(TOKENS) + "\n", "".join(f"{piece} {i}\n" for i, piece in enumerate(TOKENS))]
)
def test_a_tokens_txt_has_a_piece_a_line(directory: Make, text: str) -> None:
    assert converted(directory(files={"tokens.json": None, "tokens.txt": text}))[2].pieces == TOKENS


def test_the_first_predictor_is_depthwise_with_a_tail_of_its_own(directory: Make) -> None:
    config = settings() | {"predictor": "CifPredictor"}
    del config["predictor_conf"]["tail_threshold"]
    weights = tensors("depthwise")
    found, params, _ = converted(directory(config, weights))
    assert found.parallel.predictor.convolution == "depthwise" and found.parallel.predictor.tail == 0.45
    kernel = params["parallel.predictor.conv.kernel"]
    np.testing.assert_array_equal(kernel[:, 0].T, weights["predictor.cif_conv1d.weight"][:, 0])


def test_a_second_head(directory: Make) -> None:
    config = settings() | {"model": "BiCifParaformer", "predictor": "CifPredictorV3"}
    config["predictor_conf"] |= {"upsample_times": 3, "upsample_type": "cnn_blstm", "use_cif1_cnn": False,
                                 "smooth_factor2": 0.25, "noise_threshold2": 0.01}  # fmt: skip
    weights = tensors("peaks")
    found, params, _ = converted(directory(config, weights))
    assert found.parallel.predictor.peaks == PeaksConfig()
    biases = [weights[f"predictor.blstm.bias_{which}_l0_reverse"] for which in ("ih", "hh")]
    np.testing.assert_array_equal(params["parallel.predictor.second.backward.input.bias"], sum(biases))
    upsampled = params["parallel.predictor.second.upsample.kernel"].reshape(4, 3, 4)
    np.testing.assert_array_equal(upsampled, weights["predictor.upsample_cnn.weight"].transpose(0, 2, 1))


def streaming() -> dict[str, Any]:
    config = settings() | {
        "model": "ParaformerStreaming",
        "encoder": "SANMEncoderChunkOpt",
        "frontend": "WavFrontendOnline",
    }
    config["encoder_conf"] |= {
        "input_layer": "pe_online",
        "chunk_size": [12, 15],
        "stride": [8, 10],
        "pad_left": [0, 0],
        "encoder_att_look_back_factor": [4, 2],
        "decoder_att_look_back_factor": [1],
    }
    return config


def test_a_streaming_model_takes_whole_utterances_in_chunks(directory: Make, tmp_path: Path) -> None:
    """Those that it was trained with, the first by default; or none, as if it were the other model.

    Streams are taken in windows of the longest kind by default, which is that of the model cards.
    """
    folder = directory(streaming())
    longest = Sliding(current=10, ahead=5, encoder_look_back=2)
    for seconds, chunks, window in (
        (None, Overlapped(size=12, stride=8, gap=1, encoder_look_back=4, decoder_look_back=1), longest),
        (0.2, Overlapped(size=15, stride=10, gap=1, encoder_look_back=2, decoder_look_back=1), longest),
        (
            0.16,
            Overlapped(size=12, stride=8, gap=1, encoder_look_back=4, decoder_look_back=1),
            Sliding(current=8, ahead=4),
        ),
        (math.inf, None, longest),
    ):
        jaxasr.convert_checkpoint(folder, tmp_path / "out", chunk_seconds=seconds, overwrite=True)
        config = store.load_config(tmp_path / "out")
        assert config.encoder.chunks == config.parallel.chunks == chunks
        assert config.encoder.window == config.parallel.window == window
        assert config.encoder.facts()["causal"]
    with pytest.raises(JaxasrError, match="chunk_seconds 0.5 is none of 0.16, 0.2 and inf"):
        jaxasr.convert_checkpoint(folder, tmp_path / "other", chunk_seconds=0.5)
    with pytest.raises(JaxasrError, match="look back as it was trained"):
        jaxasr.convert_checkpoint(folder, tmp_path / "other", left_context_seconds=1.0)
    with pytest.raises(JaxasrError, match="models that stream"):
        jaxasr.convert_checkpoint(directory(), tmp_path / "other", chunk_seconds=0.2)
    wrong = streaming()
    wrong["encoder_conf"]["pad_left"] = [4, 4]
    with pytest.raises(JaxasrError, match="chunks begin with new frames"):
        jaxasr.convert_checkpoint(directory(wrong), tmp_path / "other")
    wrong = streaming()
    wrong["encoder_conf"]["encoder_att_look_back_factor"] = [-1]
    with pytest.raises(JaxasrError, match="look-backs must not be negative"):
        jaxasr.convert_checkpoint(directory(wrong), tmp_path / "other")
    text = (tmp_path / "out" / "config.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("encoder_look_back: 2", "encoder_look_back: -1"))
    with pytest.raises(JaxasrError, match=r"mine.yaml: encoder: window: encoder_look_back -1, unlimited") as refused:
        store.read_config(tmp_path / "mine.yaml")
    assert "\n" not in str(refused.value)
    assert text.count("chunks: null") == 2
    part = "chunks: {size: 5, stride: 3, gap: 2, encoder_look_back: 1, decoder_look_back: 1}"
    (tmp_path / "mine.yaml").write_text(text.replace("chunks: null", part, 1))
    with pytest.raises(JaxasrError, match="chunks: the encoder's and the parallel head's differ"):
        store.read_config(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(text.replace("current: 10", "current: 9", 1))
    with pytest.raises(JaxasrError, match="window: the encoder's and the parallel head's differ"):
        store.read_config(tmp_path / "mine.yaml")


def changed(section: str, **values: Any) -> dict[str, Any]:
    whole = settings()
    if section:
        whole[section] |= values
        return whole
    return whole | values


@pytest.mark.parametrize(
    ("config", "files", "fault"),
    [
        (changed("", model="SenseVoiceSmall"), {}, "model is 'SenseVoiceSmall', which jaxasr does not know; known are"),
        (changed("", encoder=None), {}, "encoder is None"),
        (changed("", encoder_conf=[]), {}, "encoder_conf is not a mapping"),
        (changed("encoder_conf", num_blocks="2"), {}, "encoder_conf: num_blocks: expected int, got '2'"),
        (changed("encoder_conf", nonsense=1), {}, "encoder_conf: unknown key nonsense"),
        (changed("encoder_conf", input_layer="conv2d"), {}, "input_layer is 'conv2d': known is pe"),
        (changed("encoder_conf", normalize_before=False), {}, "normalize_before is False"),
        (changed("encoder_conf", num_blocks=3), {}, "encoder.layers.2.norm_attention.scale .* is missing"),
        (changed("encoder_conf", attention_heads=3), {}, "divisible by 3 heads"),
        (changed("decoder_conf", use_output_layer=False), {}, "output layer is needed"),
        (changed("decoder_conf", concat_after=True), {}, "concat_after is True"),
        (changed("predictor_conf", threshold=0.9), {}, "threshold is 0.9"),
        (changed("predictor_conf", smooth_factor=2.0), {}, "smooth_factor must lie in 0..1"),
        (changed("frontend_conf", window="blackman"), {}, "window is 'blackman': known are hamming and povey"),
        (None, {"config.yaml": "- 1\n"}, "config.yaml is not a mapping"),
        (None, {"config.yaml": "a: ["}, "config.yaml is not valid yaml"),
        (None, {"am.mvn": "<Nnet> </Nnet>"}, "am.mvn: has no numbers of <AddShift>"),
        (None, {"am.mvn": statistics().replace("-8.5", "x", 1)}, "<AddShift> holds are not numbers"),
        (None, {"am.mvn": statistics().replace("0.125", "inf", 1)}, "<Rescale> holds numbers that are not finite"),
        (None, {"am.mvn": statistics().replace("-8.5 ", "", 1)}, "has 11 shifts and 12 scales"),
        (None, {"am.mvn": statistics(8)}, r"features.offset has shape \(8,\) instead of \(12,\)"),
        (None, {"tokens.json": "["}, "tokens.json is not valid JSON"),
        (None, {"tokens.json": '{"a": 1}'}, "tokens.json is not a list of texts"),
        (None, {"tokens.json": '["a"]'}, "tokens.json has 1 tokens where 7 are needed"),
        (None, {"tokens.json": json.dumps([*TOKENS[:-1], "a\n"])}, "cannot be written to a tokens.txt"),
        (None, {"tokens.json": None}, "no tokens.json lies beside it: give its path as tokens"),
    ],
)
def test_a_fault_is_one_line(
    directory: Make, tmp_path: Path, config: dict[str, Any] | None, files: dict[str, str | None], fault: str
) -> None:
    folder = directory(config, files=files)
    with pytest.raises(JaxasrError, match=fault) as caught:
        jaxasr.convert_checkpoint(folder, tmp_path / "out")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_that_it_cannot_follow(directory: Make, tmp_path: Path) -> None:
    folder = directory()
    with pytest.raises(JaxasrError, match="average is for"):
        jaxasr.convert_checkpoint(folder, tmp_path / "out", average=[folder / "model.pt"])
    (tmp_path / "recipe.yaml").write_text("num_encoder_layers: 2\n")
    with pytest.raises(JaxasrError, match="config takes one of ours"):
        jaxasr.convert_checkpoint(folder, tmp_path / "out", config=tmp_path / "recipe.yaml")
    absent = {name: array for name, array in tensors().items() if not name.startswith("decoder.output_layer")}
    with pytest.raises(JaxasrError, match="not a whole Paraformer"):
        jaxasr.convert_checkpoint(directory(weights=absent), tmp_path / "out")
