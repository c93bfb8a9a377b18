"""Makes a NeMo model of full size with random weights, as an archive and as the ONNX file that NeMo exports.

    NEMO_PYTHON benchmarks/nemo_models.py configs/stt_en_conformer_ctc_large.yaml OUT

NEMO_PYTHON has nemo_toolkit[asr] 3.0.0, onnx and PyYAML; jaxasr is not needed there. The sizes are those of the yaml
file, the vocabulary is of made-up characters. OUT/model.nemo is what `jaxasr convert` reads, OUT/encoder.onnx has the
encoder (and the CTC head, if that is the model's), OUT/decoder_joint.onnx a transducer's rest. A CTC model's export is
one that sherpa-onnx takes: with its metadata, and OUT/tokens.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx
import torch
import yaml
from nemo.collections.asr.models import EncDecCTCModel, EncDecRNNTModel
from omegaconf import OmegaConf

MODULES = "nemo.collections.asr.modules"


def preprocessor(features: dict[str, Any]) -> dict[str, Any]:
    return {
        "_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000,
        "normalize": "per_feature",
        "window_size": features.get("window_length", 400) / 16000,
        "window_stride": 0.01,
        "window": "hann",
        "features": features.get("bins", 80),
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 0.0,
    }


def conformer(encoder: dict[str, Any]) -> dict[str, Any]:
    return {
        "_target_": f"{MODULES}.ConformerEncoder",
        "feat_in": encoder.get("input_dim", 80),
        "feat_out": -1,
        "n_layers": encoder["num_layers"],
        "d_model": encoder["dim"],
        "use_bias": encoder.get("use_bias", True),
        "subsampling": {"ordinary": "striding", "separable": "dw_striding"}[encoder.get("front_end", "ordinary")],
        "subsampling_factor": encoder.get("subsampling", 4),
        "subsampling_conv_channels": encoder["front_end_channels"],
        "ff_expansion_factor": encoder["feedforward_dim"] // encoder["dim"],
        "self_attention_model": "rel_pos",
        "n_heads": encoder["num_heads"],
        "xscaling": encoder.get("scale_inputs", True),
        "untie_biases": True,
        "conv_kernel_size": encoder["conv_kernel"],
        "conv_norm_type": "batch_norm",
    }


def citrinet(encoder: dict[str, Any]) -> dict[str, Any]:
    blocks = []
    for block in encoder["blocks"]:
        assert block.get("residual", [0]) in ([], [0]), "dense residuals are in none of these configurations"
        blocks.append(
            {
                "filters": block["filters"],
                "kernel": [block["kernel"]],
                "repeat": block.get("repeat", 1),
                "stride": [block.get("stride", 1)],
                "stride_last": block.get("stride_last", False),
                "dilation": [block.get("dilation", 1)],
                "dropout": 0.0,
                "residual": block.get("residual", [0]) == [0],
                # Of a block with a stride NeMo's Citrinet lets the residual stride too.
                "residual_mode": "stride_add" if block.get("stride_last") else "add",
                "separable": block.get("separable", True),
                "se": bool(block.get("squeeze", 0)),
                "se_reduction_ratio": block.get("squeeze", 0) or 8,
            }
        )
    return {
        "_target_": f"{MODULES}.ConvASREncoder",
        "feat_in": encoder.get("input_dim", 80),
        "activation": "relu",
        "conv_mask": True,
        "jasper": blocks,
    }


def build(config: dict[str, Any]) -> Any:
    """The NeMo model of one of our configurations."""
    encoder = {"conformer": conformer, "citrinet": citrinet}[config["encoder"]["kind"]](config["encoder"])
    width = config["encoder"].get("dim") or config["encoder"]["blocks"][-1]["filters"]
    head = config.get("transducer") or config["ctc"]
    labels = [chr(0x4E00 + token) for token in range(head["blank_id"])]
    settings: dict[str, Any] = {
        "sample_rate": 16000,
        "labels": labels,
        "preprocessor": preprocessor(config["features"]),
        "encoder": encoder,
    }
    torch.manual_seed(0)
    if "transducer" not in config:
        settings["decoder"] = {
            "_target_": f"{MODULES}.ConvASRDecoder",
            "feat_in": width,
            "num_classes": len(labels),
            "vocabulary": labels,
        }
        return EncDecCTCModel(cfg=OmegaConf.create(settings))
    predictor, durations = head["predictor"], head.get("durations", [])
    settings |= {
        "model_defaults": {
            "enc_hidden": width,
            "pred_hidden": predictor.get("dim", 640),
            "joint_hidden": head["joiner_dim"],
        },
        "decoder": {
            "_target_": f"{MODULES}.RNNTDecoder",
            "normalization_mode": None,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": predictor.get("dim", 640), "pred_rnn_layers": predictor.get("layers", 1)},
        },
        "joint": {
            "_target_": f"{MODULES}.RNNTJoint",
            "log_softmax": None,
            "jointnet": {"joint_hidden": head["joiner_dim"], "activation": head["activation"], "dropout": 0.0},
            "num_extra_outputs": len(durations),
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": head.get("max_symbols", 10)}},
        "loss": {"loss_name": "default"},
    }
    if durations:
        settings["model_defaults"] |= {"tdt_durations": durations, "num_tdt_durations": len(durations)}
        settings["decoding"] |= {"model_type": "tdt", "durations": durations}
        settings["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": durations}}
    return EncDecRNNTModel(cfg=OmegaConf.create(settings))


def for_sherpa_onnx(config: dict[str, Any], model: Any, out: Path) -> None:
    """The metadata and the tokens that sherpa-onnx asks for beside NeMo's export of a CTC model."""
    head = config["ctc"]
    tokens = [*model.cfg.labels, "<blk>"]
    (out / "tokens.txt").write_text("".join(f"{token} {number}\n" for number, token in enumerate(tokens)), "utf-8")
    facts = {
        "vocab_size": head["blank_id"],
        "normalize_type": "per_feature",
        "subsampling_factor": config["encoder"].get("subsampling", 8 if config["encoder"]["kind"] == "citrinet" else 4),
        "model_type": "EncDecCTCModelBPE",
        "version": "1",
        "model_author": "NeMo",
        "url": "",
        "comment": "random weights",
    }
    graph = onnx.load(str(out / "encoder.onnx"))
    for key, value in facts.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(graph, str(out / "encoder.onnx"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(options.config.read_text("utf-8"))
    model = build(config).eval()
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    model.save_to(str(options.out / "model.nemo"))
    model.export(str(options.out / "exported.onnx"), check_trace=False)
    for made in options.out.glob("*exported.onnx"):
        made.rename(made.with_name(made.name.replace("-exported", "").replace("exported", "encoder")))
    if "transducer" not in config:
        for_sherpa_onnx(config, model, options.out)


if __name__ == "__main__":
    main()
