"""Writes the tiny detectors of this folder and what NeMo computes with them: nemo_toolkit[asr] 3.0.0, torch 2.13.0.

Run as `python make.py` in this folder. Nothing in the project imports this file.
"""

import gzip
from pathlib import Path

import numpy as np
import soundfile
import torch
from nemo.collections.asr.models import EncDecClassificationModel, EncDecFrameClassificationModel
from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
CLIP = HERE.parent / "espeak_sentence.wav"
SAMPLES = 48000  # of the clip
WINDOW, STEP = 10080, 1600  # samples of windows, and from one to the next


def block(filters: int, kernel: int, **settings: object) -> dict:
    """A block as NeMo's yaml files write it: one convolution, no residual, unless `settings` say otherwise."""
    usual = {"repeat": 1, "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False, "separable": True}
    return {"filters": filters, "kernel": [kernel], **usual, **settings}


def mel(bins: int, **settings: object) -> dict:
    """NeMo's mel front end, without padding to a multiple."""
    usual = {"window_size": 0.025, "window_stride": 0.01, "window": "hann", "n_fft": 512, "dither": 1e-5, "pad_to": 0}
    target = "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"
    return {"_target_": target, "features": bins, **usual, **settings}


MFCC = {
    "_target_": "nemo.collections.asr.modules.AudioToMFCCPreprocessor",
    "window_size": 0.025,
    "window": "hann",
    "n_mels": 40,
    "n_mfcc": 20,
    "n_fft": 512,
}
WINDOWS = {"_target_": "nemo.collections.asr.modules.ConvASRDecoderClassification", "return_logits": True}
FRAMES = {"_target_": "nemo.collections.common.parts.MultiLayerPerceptron", "activation": "relu", "log_softmax": False}
RESIDUAL = {"residual": True, "repeat": 2}
MODELS = {
    # MarbleNet in small, with fewer coefficients than mel bins.
    "windows_mfcc": {
        "labels": ["background", "speech"],
        "preprocessor": MFCC,
        "jasper": [
            block(24, 11),
            block(16, 13, **RESIDUAL),
            block(16, 15, dilation=[2]),
            block(24, 1, separable=False),
        ],
        "decoder": {**WINDOWS, "pooling_type": "avg"},
    },
    # Ordinary convolutions on normalized mel energies; speech is the first of three classes.
    "windows_mel": {
        "labels": ["speech", "music", "noise"],
        "preprocessor": mel(68, normalize="per_feature"),
        "jasper": [block(16, 5, separable=False), block(16, 7, separable=False, **RESIDUAL)],
        "decoder": {**WINDOWS, "pooling_type": "avg"},
    },
    # Convolutions that hear the frame of zeros after a window; the largest value of each channel.
    "windows_unmasked": {
        "labels": ["background", "speech"],
        "preprocessor": mel(40, normalize="all_features"),
        "conv_mask": False,
        "jasper": [block(16, 5), block(16, 7, separable=False, **RESIDUAL)],
        "decoder": {**WINDOWS, "pooling_type": "max"},
    },
    # The frame classifier in small, with a second linear layer.
    "frames": {
        "labels": ["0", "1"],
        "preprocessor": mel(40, normalize="None"),
        "jasper": [
            block(24, 11, stride=[2]),
            block(16, 13, **RESIDUAL),
            block(16, 15, dilation=[2]),
            block(24, 1, separable=False),
        ],
        "decoder": {**FRAMES, "num_layers": 2},
    },
}


def build(parts: dict, seed: int) -> torch.nn.Module:
    """A model with random numbers everywhere, running statistics included."""
    torch.manual_seed(seed)
    width = parts["jasper"][-1]["filters"]
    frames = parts["decoder"]["_target_"] == FRAMES["_target_"]
    size = {"hidden_size": width} if frames else {"feat_in": width}
    config = {
        "sample_rate": 16000,
        "labels": parts["labels"],
        "preprocessor": parts["preprocessor"],
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": parts["preprocessor"].get("features", MFCC["n_mfcc"]),
            "activation": "relu",
            "conv_mask": parts.get("conv_mask", True),
            "jasper": parts["jasper"],
        },
        "decoder": {**parts["decoder"], **size, "num_classes": len(parts["labels"])},
    }
    kind = EncDecFrameClassificationModel if frames else EncDecClassificationModel
    model = kind(cfg=OmegaConf.create(config))
    samples, _ = soundfile.read(CLIP, dtype="float32")
    model.train()
    if hasattr(model.preprocessor.featurizer, "dither"):
        model.preprocessor.featurizer.dither = 0.0
    with torch.no_grad():
        for _ in range(60):  # running statistics that fit the activations
            run(model, samples)
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean += 0.2 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
                module.running_var *= 0.6 + torch.rand_like(module.running_var)
                module.weight.uniform_(0.6, 1.4)
                module.bias.normal_(0.0, 0.3)
        for module in model.decoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0.0, 1.5 * width**-0.5)
                module.bias.normal_(0.0, 0.5)
        # So that the classes take turns.
        last = list(model.decoder.modules())[-1]
        last.bias -= run(model, samples).reshape(-1, len(parts["labels"])).mean(0)
    model.eval()
    return model


def run(model: torch.nn.Module, samples: np.ndarray) -> torch.Tensor:
    """The logits of one clip."""
    signal, length = torch.tensor(samples)[None], torch.tensor([len(samples)])
    return model(input_signal=signal, input_signal_length=length)


def main() -> None:
    samples, _ = soundfile.read(CLIP, frames=SAMPLES, dtype="float32")
    for seed, (name, parts) in enumerate(MODELS.items()):
        model = build(parts, seed)
        speech = parts["labels"].index("1" if name == "frames" else "speech")
        with torch.no_grad():
            if name == "frames":
                logits = run(model, samples)[0]
                features, length = model.preprocessor(
                    input_signal=torch.tensor(samples)[None], length=torch.tensor([SAMPLES])
                )
                _, frames = model.encoder(audio_signal=features, length=length)
                logits = logits[: int(frames)]  # NeMo computes one more, and does not count it
            else:
                padded = np.pad(samples, WINDOW // 2)
                starts = range(0, SAMPLES + 1, STEP)
                logits = torch.cat([run(model, padded[start : start + WINDOW]) for start in starts])
        probabilities = torch.softmax(logits, -1)[:, speech].numpy()
        print(name, probabilities.shape, probabilities.min(), probabilities.mean(), probabilities.max())
        np.savez_compressed(HERE / f"{name}.npz", probabilities=probabilities)
        archive = HERE / f"{name}.nemo"
        model.save_to(str(archive))
        # As NeMo wrote archives until 1.6: the padding between tensors goes away.
        archive.write_bytes(gzip.compress(archive.read_bytes(), 9, mtime=0))


main()
