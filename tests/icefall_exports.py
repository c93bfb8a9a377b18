"""Where the reference exports of icefall's Zipformers lie, and how tensors of two readings are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxasr.convert.formats.torch.pickles import read_torch

GOLDENS = {
    "zipformer-tiny": "*-epoch-2-avg-1",
    "zipformer-ja-tiny": "*-epoch-1-avg-1",
    "zipformer-streaming-tiny": "*-epoch-1-avg-1-chunk-16-left-64",
    "zipformer-ctc-tiny": "model",
}
PUBLISHED = "sherpa-onnx-kws-zipformer-gigaspeech-3.3M-2024-01-01-mobile"


def golden(shared: Path, name: str, suffix: str = "") -> list[Path]:
    return sorted((shared / "golden" / name).glob(f"{GOLDENS[name]}{suffix}.onnx"))


def trained(shared: Path, name: str) -> dict[str, np.ndarray]:
    tensors = read_torch(shared / "golden" / name / "pretrained.pt")["model"]
    return {key: np.asarray(value) for key, value in tensors.items()}


def normalised(name: str, tensor: np.ndarray) -> np.ndarray:
    """A downsampling bias counts up to a shift only, and the export holds its softmax."""
    if "downsample" in name:
        return (tensor - np.log(np.exp(tensor.astype(np.float64)).sum())).astype(np.float32)
    return tensor


def assert_same(made: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        assert tensor.dtype == np.float32 and tensor.shape == expected[name].shape, name
        # Logarithms of a softmax or an exponential that the exporter took in float32 are right to its last places.
        atol = max(tolerance, 1e-6 if "downsample" in name else 0.0)
        np.testing.assert_allclose(normalised(name, tensor), normalised(name, expected[name]), 0, atol, err_msg=name)


def published_files(shared: Path) -> list[Path]:
    name = "epoch-12-avg-2-chunk-16-left-64"
    folder = shared / "published" / PUBLISHED
    return [folder / f"encoder-{name}.int8.onnx", folder / f"decoder-{name}.onnx", folder / f"joiner-{name}.onnx"]
