"""Makes a Paraformer with random weights by FunASR's own classes, as FunASR publishes one, and its encoder as ONNX.

    FUNASR_PYTHON benchmarks/funasr_models.py configs/paraformer_large.yaml OUT [--online]

FUNASR_PYTHON has funasr 1.4.16, torch, torchaudio and onnx; jaxasr is not needed there. The sizes are those of the yaml
file, which holds what differs from Paraformer-large's; tokens are made-up characters. OUT is what `jaxasr convert`
reads, and OUT/encoder.onnx what onnxruntime does; --online makes the streaming class, which has no such file.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from funasr.register import tables

# Modules of FunASR that enter their classes into its tables when they are imported.
CLASSES = (
    "sanm.encoder",
    "scama.encoder",
    "paraformer.cif_predictor",
    "paraformer.decoder",
    "paraformer.model",
    "paraformer_streaming.model",
)
BINS, STACKED = 80, 7
LONGEST = 1024  # frames of 60 ms that the exported encoder takes


def settings(config: dict[str, Any], *, online: bool) -> dict[str, Any]:
    """FunASR's config.yaml for one of our configurations."""
    encoder, decoder = config["encoder"], config["parallel"]
    sizes = {"attention_heads": encoder.get("num_heads", 4), "output_size": encoder.get("dim", 512)}
    sizes |= {"linear_units": encoder.get("feedforward_dim", 2048), "num_blocks": encoder.get("num_layers", 50)}
    sizes |= {"kernel_size": encoder.get("kernel", 11), "sanm_shfit": 0, "selfattention_layer_type": "sanm"}
    chunks = {"chunk_size": [12, 15], "stride": [8, 10], "pad_left": [0, 0]}
    chunks |= {"encoder_att_look_back_factor": [4, 4], "decoder_att_look_back_factor": [1, 1]}
    layers = decoder.get("num_layers", 16)
    return {
        "model": "ParaformerStreaming" if online else "Paraformer",
        "model_conf": {"ctc_weight": 0.0, "lsm_weight": 0.1, "predictor_bias": 1, "sampling_ratio": 0.75},
        "encoder": "SANMEncoderChunkOpt" if online else "SANMEncoder",
        "encoder_conf": sizes | {"input_layer": "pe_online" if online else "pe"} | (chunks if online else {}),
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {
            "attention_heads": decoder.get("num_heads", 4),
            "linear_units": decoder.get("feedforward_dim", 2048),
            "num_blocks": layers + decoder.get("memory_layers", 0),
            "att_layer_num": layers,
            "kernel_size": decoder.get("kernel", 11),
            "sanm_shfit": (decoder.get("kernel", 11) - 1) // 2 if online else 0,
        },
        "predictor": "CifPredictorV2",
        "predictor_conf": {
            "idim": sizes["output_size"],
            "threshold": 1.0,
            "l_order": 1,
            "r_order": 1,
            "tail_threshold": 0.45,
        },
        "frontend": "WavFrontendOnline" if online else "WavFrontend",
        "frontend_conf": {
            "fs": 16000,
            "window": "hamming",
            "n_mels": BINS,
            "lfr_m": STACKED,
            "lfr_n": 6,
            "dither": 0.0,
        },
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
    }


def build(found: dict[str, Any], vocabulary: int) -> Any:
    """FunASR's model of its config.yaml, for inference."""
    for name in CLASSES:
        importlib.import_module(f"funasr.models.{name}")
    parts = {name: found[name] for name in found if name.partition("_")[0] in ("encoder", "decoder", "predictor")}
    model = tables.model_classes[found["model"]](
        **parts, **found["model_conf"], input_size=BINS * STACKED, vocab_size=vocabulary
    )
    return model.eval()


def read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model that this script has made, and its config.yaml."""
    found = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    model = build(found, len(json.loads((folder / "tokens.json").read_text("utf-8"))))
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model, found


def write_statistics(path: Path) -> None:
    """The shifts and scales of the features, as Kaldi's networks hold them: those of speech, roughly."""
    size = BINS * STACKED
    lines = ["<Nnet>", f"<Splice> {size} {size}", "[ 0 ]"]
    for name, value in (("AddShift", "-12.0"), ("Rescale", "0.25")):
        lines += [f"<{name}> {size} {size}", f"<LearnRateCoef> 0 [ {' '.join([value] * size)} ]"]
    path.write_text("\n".join([*lines, "</Nnet>"]) + "\n")


def export_encoder(model: Any, path: Path) -> None:
    """The encoder as FunASR exports it. `model` is of no use afterwards."""
    encoder = tables.encoder_classes["SANMEncoderExport"](model.encoder, max_seq_len=LONGEST, feats_dim=BINS * STACKED)
    torch.onnx.export(
        encoder.eval(),
        (torch.randn(2, 30, BINS * STACKED), torch.tensor([20, 30], dtype=torch.int32)),
        str(path),
        input_names=["speech", "speech_lengths"],
        output_names=["encoded", "encoded_lengths"],
        dynamic_axes={
            "speech": {0: "batch", 1: "frames"},
            "speech_lengths": {0: "batch"},
            "encoded": {0: "batch", 1: "frames"},
        },
        opset_version=14,
        dynamo=False,  # FunASR's own choice: the other exporter fails on its code
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--online", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(options.config.read_text("utf-8"))
    found = settings(config, online=options.online)
    (options.out / "config.yaml").write_text(yaml.safe_dump(found, sort_keys=False), "utf-8")
    vocabulary = config["parallel"]["vocabulary_size"]
    tokens = ["<blank>", "<s>", "</s>", *(chr(0x4E00 + token) for token in range(vocabulary - 4)), "<unk>"]
    (options.out / "tokens.json").write_text(json.dumps(tokens, ensure_ascii=False), "utf-8")
    write_statistics(options.out / "am.mvn")
    torch.manual_seed(0)
    model = build(found, vocabulary)
    # Four or five tokens a second, as in Mandarin: what a sigmoid of about -1 weighs.
    torch.nn.init.constant_(model.predictor.cif_output.bias, -1.0)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    torch.save(model.state_dict(), options.out / "model.pt")
    if not options.online:
        export_encoder(model, options.out / "encoder.onnx")


if __name__ == "__main__":
    main()
