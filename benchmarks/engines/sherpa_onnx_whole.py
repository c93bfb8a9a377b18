"""sherpa-onnx end to end on an icefall ONNX trio: waveforms to text, greedy search, all clips in one batch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trio import recognizer as make_recognizer
from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("trio", type=Path)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--clips", type=int, required=True)
parser.add_argument("--seconds", type=float, required=True)
parser.add_argument("--int8", action="store_true")
options = parser.parse_args()
use_cores(options.threads)

import sherpa_onnx  # noqa: E402

from jaxasr.speechlike import RATE, speechlike  # noqa: E402

recognizer = make_recognizer(options.trio, options.threads, int8=options.int8)
audio = [speechlike(options.seconds, seed) for seed in range(options.clips)]


def run() -> Any:
    streams = []
    for samples in audio:
        stream = recognizer.create_stream()
        stream.accept_waveform(RATE, samples)
        streams.append(stream)
    recognizer.decode_streams(streams)
    return {"tokens": sum(len(stream.result.tokens) for stream in streams)}


take_turns(lambda: run() | {"version": sherpa_onnx.__version__}, run)
