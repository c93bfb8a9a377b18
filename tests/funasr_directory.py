"""Model directories of FunASR's kind, as small as they can be; the numbers in them are any."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

WIDTH, DIM, HIDDEN, TOKENS = 12, 4, 6, ("<blank>", "<s>", "</s>", "好", "th@@", "e", "<unk>")


def settings() -> dict[str, Any]:
    """config.yaml of a Paraformer with two encoder layers and three in the decoder, one of them without attention."""
    return {
        "model": "Paraformer",
        "encoder": "SANMEncoder",
        "encoder_conf": {
            "output_size": DIM,
            "attention_heads": 2,
            "linear_units": HIDDEN,
            "num_blocks": 2,
            "kernel_size": 3,
            "input_layer": "pe",
            "dropout_rate": 0.1,
        },
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {
            "attention_heads": 2,
            "linear_units": HIDDEN,
            "num_blocks": 2,
            "att_layer_num": 1,
            "kernel_size": 3,
            "sanm_shfit": 1,
        },
        "predictor": "CifPredictorV2",
        "predictor_conf": {"idim": DIM, "threshold": 1.0, "l_order": 1, "r_order": 1, "tail_threshold": 0.45},
        "frontend": "WavFrontend",
        "frontend_conf": {"fs": 16000, "window": "hamming", "n_mels": 4, "lfr_m": 3, "lfr_n": 2, "dither": 0.0},
    }


def tensors(predictor: str = "full") -> dict[str, np.ndarray]:
    """The weights of that Paraformer, with a predictor of the kind "full", "depthwise" or "peaks"."""
    shapes: dict[str, tuple[int, ...]] = {"decoder.embed.0.weight": (len(TOKENS), DIM)}

    def both(name: str, out: int, inside: int | None = None) -> None:
        shapes[f"{name}.weight"] = (out,) if inside is None else (out, inside)
        shapes[f"{name}.bias"] = (out,)

    for layer, width in (("encoders0.0", WIDTH), ("encoders.0", DIM)):
        name = f"encoder.{layer}"
        both(f"{name}.norm1", width)
        both(f"{name}.norm2", DIM)
        both(f"{name}.self_attn.linear_q_k_v", 3 * DIM, width)
        both(f"{name}.self_attn.linear_out", DIM, DIM)
        shapes[f"{name}.self_attn.fsmn_block.weight"] = (DIM, 1, 3)
        both(f"{name}.feed_forward.w_1", HIDDEN, DIM)
        both(f"{name}.feed_forward.w_2", DIM, HIDDEN)
    for layer in ("decoders", "decoders2", "decoders3"):
        name = f"decoder.{layer}.0"
        both(f"{name}.norm1", DIM)
        both(f"{name}.feed_forward.w_1", HIDDEN, DIM)
        both(f"{name}.feed_forward.norm", HIDDEN)
        shapes[f"{name}.feed_forward.w_2.weight"] = (DIM, HIDDEN)
        if layer != "decoders3":
            both(f"{name}.norm2", DIM)
            shapes[f"{name}.self_attn.fsmn_block.weight"] = (DIM, 1, 3)
    both("decoder.decoders.0.norm3", DIM)
    both("decoder.decoders.0.src_attn.linear_q", DIM, DIM)
    both("decoder.decoders.0.src_attn.linear_k_v", 2 * DIM, DIM)
    both("decoder.decoders.0.src_attn.linear_out", DIM, DIM)
    both("encoder.after_norm", DIM)
    both("decoder.after_norm", DIM)
    both("decoder.output_layer", len(TOKENS), DIM)
    shapes["predictor.cif_conv1d.weight"] = (DIM, 1 if predictor == "depthwise" else DIM, 3)
    shapes["predictor.cif_conv1d.bias"] = (DIM,)
    both("predictor.cif_output", 1, DIM)
    if predictor == "peaks":
        shapes["predictor.upsample_cnn.weight"] = (DIM, DIM, 3)
        shapes["predictor.upsample_cnn.bias"] = (DIM,)
        for end in ("", "_reverse"):
            for which in ("ih", "hh"):
                shapes[f"predictor.blstm.weight_{which}_l0{end}"] = (4 * DIM, DIM)
                shapes[f"predictor.blstm.bias_{which}_l0{end}"] = (4 * DIM,)
        both("predictor.cif_output2", 1, 2 * DIM)
    rng = np.random.default_rng(1)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def statistics(width: int = WIDTH) -> str:
    """am.mvn: Kaldi's text of shifts and scales."""
    return (
        f"<Nnet> \n<Splice> {width} {width}\n[ 0 ]\n"
        f"<AddShift> {width} {width} \n<LearnRateCoef> 0 [ {' '.join(['-8.5'] * width)} ]\n"
        f"<Rescale> {width} {width} \n<LearnRateCoef> 0 [ {' '.join(['0.125'] * width)} ]\n</Nnet> \n"
    )


def write(
    folder: Path,
    write_torch: Callable[..., Path],
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    name: str = "model.pt",
    files: Mapping[str, str | None] | None = None,
) -> Path:
    """Write a model directory into `folder`; `files` replace its texts, or leave one out where they say None."""
    texts: dict[str, str | None] = {
        "config.yaml": yaml.safe_dump(dict(settings() if config is None else config), allow_unicode=True),
        "am.mvn": statistics(),
        "tokens.json": json.dumps(list(TOKENS)),
        **(files or {}),
    }
    for file, text in texts.items():
        if text is not None:
            (folder / file).write_text(text, encoding="utf-8")
    write_torch({"state_dict": dict(tensors() if weights is None else weights)}, name=name)
    return folder
