"""onnxruntime on an encoder that NeMo or FunASR exports; on random frames, since its speed hangs on none."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what nemo_models.py or funasr_models.py made")
parser.add_argument("--frame-seconds", type=float, required=True, help="from one frame of its input to the next")
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
signal, length = session.get_inputs()
frames = round(options.seconds / options.frame_seconds)
# (clips, bins, frames) by NeMo, (clips, frames, bins) by FunASR: a graph states the bins alone.
shape = [options.clips, *(axis if isinstance(axis, int) else frames for axis in signal.shape[1:])]
inputs = {
    signal.name: np.random.default_rng(0).standard_normal(shape, np.float32),
    length.name: np.full(options.clips, frames, {"tensor(int64)": np.int64, "tensor(int32)": np.int32}[length.type]),
}


def run() -> dict[str, Any]:
    session.run(None, inputs)
    return {"version": onnxruntime.__version__}


take_turns(run, run)
