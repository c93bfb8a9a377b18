"""What Transformers publishes and NeMo's archive of the same weights become the same model."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import jaxasr
from jaxasr import store
from jaxasr.convert.formats.torch.pickles import read_torch

# What Transformers' conversion (models/parakeet/convert_nemo_to_hf.py) calls NeMo's tensors.
RENAMED = {
    r"encoder\.pre_encode\.conv\.": "encoder.subsampling.layers.",
    r"encoder\.pre_encode\.out\.": "encoder.subsampling.linear.",
    r"\.conv\.batch_norm\.": ".conv.norm.",
    r"\.linear_([qkv])\.": r".\1_proj.",
    r"\.linear_out\.": ".o_proj.",
    r"\.linear_pos\.": ".relative_k_proj.",
    r"\.pos_bias_([uv])$": r".bias_\1",
    r"^ctc_decoder\.decoder_layers\.0\.": "ctc_head.",
    r"^decoder\.prediction\.embed\.": "decoder.embedding.",
    r"^decoder\.prediction\.dec_rnn\.lstm\.": "decoder.lstm.",
    r"^joint\.enc\.": "encoder_projector.",
    r"^joint\.pred\.": "decoder.decoder_projector.",
    r"^joint\.joint_net\.2\.": "joint.head.",
}
# The tensors of each class, by NeMo's names.
PARTS = {"ctc": ("encoder.", "ctc_decoder."), "tdt": ("encoder.", "decoder.", "joint.")}


def narrowed(name: str, tensor: np.ndarray, width: int) -> np.ndarray:
    """A tensor of an archive whose joiner has its first `width` channels alone."""
    if name.startswith(("joint.enc.", "joint.pred.")):
        return tensor[:width]
    return tensor[:, :width] if name == "joint.joint_net.2.weight" else tensor


@pytest.fixture(params=PARTS)
def renamed(
    request: pytest.FixtureRequest, shared: Path, tmp_path: Path, write_torch: Callable[..., Path]
) -> tuple[Path, Path]:
    """A hybrid archive, and its encoder and one of its heads as Transformers would publish them.

    There the joiner is as wide as the predictor: for `tdt` it is cut, in the archive too.
    """
    folder, made = shared / "golden/fastconformer-tdt-tiny", tmp_path / "made"
    made.mkdir()
    settings = yaml.safe_load((folder / "model_config.yaml").read_text("utf-8"))
    width = settings["decoder"]["prednet"]["pred_hidden"]
    with tarfile.open(folder / "model.nemo") as archive, tarfile.open(tmp_path / "model.nemo", "w") as written:
        members = {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}  # type: ignore[union-attr]
        (made / "weights.ckpt").write_bytes(members["./model_weights.ckpt"])
        state: Any = read_torch(made / "weights.ckpt")
        if request.param == "tdt":
            state = {name: narrowed(name, tensor, width) for name, tensor in state.items()}
        members["./model_weights.ckpt"] = write_torch(state).read_bytes()
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            written.addfile(info, io.BytesIO(data))
    tensors = {
        functools.reduce(lambda key, pair: re.sub(*pair, key), RENAMED.items(), name): np.ascontiguousarray(tensor)
        for name, tensor in state.items()
        if name.startswith(PARTS[request.param])
    }
    save_file(tensors, made / "model.safetensors")
    encoder, pieces = settings["encoder"], settings["joint"]["vocabulary"]
    config = {
        "model_type": f"parakeet_{request.param}",
        "vocab_size": len(pieces) + 1,
        "pad_token_id": len(pieces),
        "blank_token_id": len(pieces),
        "decoder_hidden_size": width,
        "num_decoder_layers": settings["decoder"]["prednet"]["pred_rnn_layers"],
        "durations": settings["decoding"]["durations"],
        "max_symbols_per_step": 10,
        "encoder_config": {
            "hidden_size": encoder["d_model"],
            "num_hidden_layers": encoder["n_layers"],
            "num_attention_heads": encoder["n_heads"],
            "intermediate_size": encoder["d_model"] * encoder["ff_expansion_factor"],
            "conv_kernel_size": encoder["conv_kernel_size"],
            "subsampling_conv_channels": encoder["subsampling_conv_channels"],
            "num_mel_bins": encoder["feat_in"],
            "scale_input": encoder["xscaling"],
            "attention_bias": encoder["use_bias"],
            "convolution_bias": encoder["use_bias"],
        },
    }
    tokenizer = {
        "model": {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}},
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    }
    (made / "config.json").write_text(json.dumps(config))
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    (made / "preprocessor_config.json").write_text(json.dumps({"feature_size": encoder["feat_in"]}))
    return tmp_path / "model.nemo", made


def test_the_archive_of_the_same_weights_gives_the_same_model(renamed: tuple[Path, Path], tmp_path: Path) -> None:
    archive, folder = renamed
    jaxasr.convert_checkpoint(archive, tmp_path / "nemo")
    jaxasr.convert_checkpoint(folder, tmp_path / "transformers")
    (config, params, tokens), (ours_config, ours, ours_tokens) = map(
        store.load, (tmp_path / "nemo", tmp_path / "transformers")
    )
    (role,) = ours_config.heads
    head: Any = config.heads[role]
    if role == "transducer":  # NeMo begins with zeros, Transformers with the blank's embedding, which is zeros
        assert not np.any(store.flatten(ours)["transducer.predictor.embedding"][head.blank_id])
        head = dataclasses.replace(head, predictor=dataclasses.replace(head.predictor, begin="blank"))
    assert (config.encoder, head, tokens) == (ours_config.encoder, ours_config.heads[role], ours_tokens)
    theirs = {path: x for path, x in store.flatten(params).items() if path.startswith(("encoder.", "features.", role))}
    assert store.flatten(ours).keys() == theirs.keys() and len(theirs) > 90
    for path, array in store.flatten(ours).items():
        if path == "features.window":  # designed here, stored there: torch's and numpy's cosine
            np.testing.assert_allclose(array, theirs[path], atol=2e-7)
        else:
            np.testing.assert_array_equal(array, theirs[path], err_msg=path)
