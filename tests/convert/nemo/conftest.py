"""Archives of NeMo's kind for tests, written by tarfile; the numbers in them are any."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

BINS, WIDTH, LABELS = 8, 6, ("a", "b", " ")


def citrinet_settings() -> dict[str, Any]:
    """model_config.yaml of a Citrinet with one block and labels."""
    block = {"filters": WIDTH, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "residual": False}
    return {
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "features": BINS,
            "window_size": 0.025,
            "dither": 1e-05,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": BINS,
            "activation": "relu",
            "jasper": [block],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": WIDTH,
            "num_classes": -1,
            "vocabulary": list(LABELS),
        },
        "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "nemo_version": "1.0.0",
    }


def citrinet_tensors() -> dict[str, np.ndarray]:
    """The weights of that Citrinet."""
    rng = np.random.default_rng(1)
    shapes = {
        "preprocessor.featurizer.window": (400,),
        "preprocessor.featurizer.fb": (1, BINS, 257),
        "encoder.encoder.0.mconv.0.conv.weight": (WIDTH, BINS, 3),
        "encoder.encoder.0.mconv.1.weight": (WIDTH,),
        "encoder.encoder.0.mconv.1.bias": (WIDTH,),
        "encoder.encoder.0.mconv.1.running_mean": (WIDTH,),
        "encoder.encoder.0.mconv.1.running_var": (WIDTH,),
        "decoder.decoder_layers.0.weight": (len(LABELS) + 1, WIDTH, 1),
        "decoder.decoder_layers.0.bias": (len(LABELS) + 1,),
    }
    tensors = {name: rng.uniform(0.1, 1.0, shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"encoder.encoder.0.mconv.1.num_batches_tracked": np.array([1234])}


def member(name: str, data: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of an archive; `changes` are attributes of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


@pytest.fixture
def write_nemo(tmp_path: Path, write_torch: Callable[..., Path]) -> Callable[..., Path]:
    """write_nemo(settings, tensors, members=[], name="model.nemo", mode="w", prefix="./") -> the archive's path.

    `settings`: a mapping, or the bytes of model_config.yaml. `members`: more of them, after the others.
    """

    def write(
        settings: Mapping[str, Any] | bytes | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
        members: list[tuple[tarfile.TarInfo, bytes]] | None = None,
        name: str = "model.nemo",
        mode: str = "w",
        prefix: str = "./",
    ) -> Path:
        settings = citrinet_settings() if settings is None else settings
        text = settings if isinstance(settings, bytes) else yaml.safe_dump(settings, sort_keys=False).encode()
        weights = write_torch(dict(citrinet_tensors() if tensors is None else tensors)).read_bytes()
        with tarfile.open(tmp_path / name, mode) as archive:
            for info, data in (
                *([member(".", type=tarfile.DIRTYPE)] if prefix else []),
                member(f"{prefix}model_config.yaml", text),
                member(f"{prefix}model_weights.ckpt", weights),
                *(members or []),
            ):
                archive.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return write
