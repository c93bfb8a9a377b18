"""onnxruntime on the encoder that FunASR exports; on random frames, since its speed hangs on none."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what funasr_models.py made")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--clips", type=int, required=True)
parser.add_argument("--seconds", type=float, required=True)
options = parser.parse_args()
use_cores(options.threads)

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = options.threads
settings.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    str(options.folder / "encoder.onnx"), settings, providers=["CPUExecutionProvider"]
)
speech, lengths = session.get_inputs()
frames = round(options.seconds / 0.06)
inputs = {
    speech.name: np.random.default_rng(0).standard_normal((options.clips, frames, speech.shape[2]), np.float32),
    lengths.name: np.full(options.clips, frames, np.int32),
}


def run() -> Any:
    return {"frames": session.run(None, inputs)[0].shape[1]}


take_turns(lambda: run() | {"version": onnxruntime.__version__}, run)
