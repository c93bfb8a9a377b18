"""onnxruntime on the encoder of an icefall ONNX trio; features are made beforehand, by kaldi-native-fbank."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trio import part
from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("trio", type=Path)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--clips", type=int, required=True)
parser.add_argument("--seconds", type=float, required=True)
parser.add_argument("--int8", action="store_true")
options = parser.parse_args()
use_cores(options.threads)

import kaldi_native_fbank  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

from jaxasr.speechlike import RATE, speechlike  # noqa: E402


def features(samples: np.ndarray) -> np.ndarray:
    """(T, 80) as sherpa-onnx computes them."""
    settings = kaldi_native_fbank.FbankOptions()
    settings.frame_opts.dither = 0
    settings.frame_opts.snip_edges = False
    settings.mel_opts.num_bins = 80
    settings.mel_opts.high_freq = -400
    fbank = kaldi_native_fbank.OnlineFbank(settings)
    fbank.accept_waveform(RATE, samples)
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = options.threads
settings.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    part(options.trio, "encoder", int8=options.int8), settings, providers=["CPUExecutionProvider"]
)
frames = np.stack([features(speechlike(options.seconds, seed)) for seed in range(options.clips)]).astype(np.float32)
lengths = np.full(options.clips, frames.shape[1], np.int64)


def run() -> Any:
    encoded, _ = session.run(None, {"x": frames, "x_lens": lengths})
    return {"frames": encoded.shape[1]}


take_turns(lambda: run() | {"version": onnxruntime.__version__}, run)
