"""Writes the tiny models of this folder and what NeMo computes with them: nemo_toolkit[asr] 3.0.0, torch 2.13.0.

Run as `python make.py` in this folder. Nothing in the project imports this file.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
CLIP = HERE.parent / "espeak_sentence.wav"
PIECES = {"first": (0, 19200), "second": (19200, 30000)}  # samples of the clip
LABELS = [" ", *"abcdefghijklmnopqrstuvwxyz'"]


def block(filters: int, kernel: int, **settings: object) -> dict:
    """A block as NeMo's yaml files write it: one convolution, no residual, unless `settings` say otherwise."""
    usual = {"repeat": 1, "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False, "separable": True}
    return {"filters": filters, "kernel": [kernel], **usual, **settings}


RESIDUAL = {"residual": True, "repeat": 2}
ENCODERS = {
    # QuartzNet in small: stride before the blocks, an even kernel, a dilation, ordinary 1 x 1 convolution at the end.
    "quartznet": {
        "activation": "relu",
        "jasper": [
            block(24, 11, stride=[2]),
            block(24, 12, **RESIDUAL),
            block(32, 13, **RESIDUAL),
            block(32, 15, dilation=[2]),
            block(32, 1, separable=False),
        ],
    },
    # All that blocks can be, with residual modes that pass from block to block, the first one from the encoder.
    "mixed": {
        "activation": "swish",
        "residual_mode": "max",
        "jasper": [
            block(20, 11, separable=False),
            block(24, 5, residual_dense=True, separable=False, **RESIDUAL),
            block(28, 7, residual_dense=True, **RESIDUAL),
            block(20, 4, residual_dense=True, separable=False, residual_mode="add", residual=True),
            block(20, 3, separable=False, residual=True),
            block(16, 5, stride=[2], repeat=2, heads=4),
            block(16, 5, groups=4, **RESIDUAL),
            block(16, 3, groups=2, separable=False, dilation=[2], residual=True, residual_mode="stride_add"),
            block(24, 5, stride=[2], stride_last=True, se=True, se_reduction_ratio=4, **RESIDUAL),
            block(24, 14, kernel_size_factor=0.5, future_context=1, residual=True),
            block(16, 5, future_context=2, dilation=[2]),
            block(16, 3, future_context=3, separable=False),
        ],
    },
    # Statistics of the utterance, which count the frame of zeros after the last one.
    "group_norm": {
        "activation": "gelu",
        "normalization_mode": "group",
        "norm_groups": 4,
        "jasper": [
            block(16, 5, stride=[2], se=True),
            block(24, 3, separable=False, **RESIDUAL),
            block(24, 5, stride=[2], stride_last=True, residual_mode="stride_add", **RESIDUAL),
        ],
    },
    "instance_norm": {
        "activation": "selu",
        "normalization_mode": "instance",
        "jasper": [block(16, 5, stride=[2]), block(16, 3, separable=False, **RESIDUAL)],
    },
    "layer_norm": {
        "activation": "hardtanh",
        "normalization_mode": "layer",
        "jasper": [block(16, 5, stride=[2]), block(16, 3, separable=False, **RESIDUAL)],
    },
    # Convolutions that hear the frame of zeros.
    "unmasked": {
        "activation": "relu",
        "conv_mask": False,
        "jasper": [
            block(16, 5, stride=[2]),
            block(16, 6, separable=False, **RESIDUAL),
            block(24, 7, stride=[2], stride_last=True, residual_mode="stride_add", **RESIDUAL),
        ],
    },
}


def build(encoder: dict, seed: int) -> EncDecCTCModel:
    """A model with random numbers everywhere, running statistics included."""
    torch.manual_seed(seed)
    width = encoder["jasper"][-1]["filters"]
    config = {
        "sample_rate": 16000,
        "labels": LABELS,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "normalize": "per_feature",
            "window_size": 0.02,
            "window_stride": 0.01,
            "sample_rate": 16000,
            "window": "hann",
            "features": 64,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": 64,
            "conv_mask": True,
            **encoder,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": width,
            "num_classes": len(LABELS),
            "vocabulary": LABELS,
        },
    }
    model = EncDecCTCModel(cfg=OmegaConf.create(config))
    samples, _ = soundfile.read(CLIP, dtype="float32")
    model.train()
    with torch.no_grad():
        for _ in range(60):  # running statistics that fit the activations
            run(model, samples)
        for module in model.encoder.modules():
            if hasattr(module, "running_var") and module.running_var is not None:
                module.running_mean += 0.2 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
                module.running_var *= 0.6 + torch.rand_like(module.running_var)
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.GroupNorm)):
                module.weight.uniform_(0.6, 1.4)
                module.bias.normal_(0.0, 0.3)
        layer = model.decoder.decoder_layers[0]
        layer.weight.normal_(0.0, 3.0 * width**-0.5)
        layer.bias.normal_(0.0, 0.5)
        layer.bias[-1] += 3.0
    model.eval()
    return model


def run(model: EncDecCTCModel, samples: np.ndarray) -> tuple[torch.Tensor, ...]:
    """(features, their length, encoded, its length) without dither and padding to a multiple."""
    featurizer = model.preprocessor.featurizer
    featurizer.dither, featurizer.pad_to = 0.0, 0
    features, length = model.preprocessor(input_signal=torch.tensor(samples)[None], length=torch.tensor([len(samples)]))
    encoded, encoded_length = model.encoder(audio_signal=features, length=length)
    return features, length, encoded, encoded_length


def main() -> None:
    samples, _ = soundfile.read(CLIP, dtype="float32")
    features, texts = {}, {}
    for seed, (name, encoder) in enumerate(ENCODERS.items()):
        model = build(encoder, seed)
        outputs: list[np.ndarray] = []

        def keep(module: object, inputs: object, result: tuple, outputs: list = outputs) -> None:
            outputs.append(result[0][-1][0].T.numpy())

        for module in model.encoder.encoder:
            module.register_forward_hook(keep)
        arrays = {}
        with torch.no_grad():
            for piece, (start, end) in PIECES.items():
                outputs.clear()
                mel, length, encoded, encoded_length = run(model, samples[start:end])
                features[piece] = mel[0].T.numpy()[: int(length)]
                if piece == "first":
                    arrays.update({f"block{number}": output.copy() for number, output in enumerate(outputs)})
                # Without conv_mask NeMo does not count lengths: all frames are decoded.
                frames = int(encoded_length) if model.encoder.encoder[0].conv_mask else encoded.shape[2]
                arrays[f"{piece}/encoded"] = encoded[0].T.numpy()[:frames]
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        archive = HERE / f"{name}.nemo"
        model.save_to(str(archive))
        # As NeMo wrote archives until 1.6: the padding between tensors goes away.
        archive.write_bytes(gzip.compress(archive.read_bytes(), 9, mtime=0))
        hypotheses = model.transcribe([str(CLIP)], batch_size=1)
        texts[name] = hypotheses[0].text
    np.savez_compressed(HERE / "features.npz", **features)
    (HERE / "texts.json").write_text(json.dumps(texts, indent=1) + "\n")


main()
