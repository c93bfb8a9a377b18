"""A person's job with sherpa-onnx: the recordings of a folder to text, by greedy search, one after the other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sherpa_onnx
import soundfile

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("trio", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--threads", type=int, required=True)
options = parser.parse_args()


def part(name: str) -> str:
    for path in sorted(options.trio.glob(f"{name}*.onnx")):
        if not path.name.endswith(".int8.onnx"):
            return str(path)
    raise SystemExit(f"{options.trio}: no {name}*.onnx")


recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
    encoder=part("encoder"),
    decoder=part("decoder"),
    joiner=part("joiner"),
    tokens=str(options.trio / "tokens.txt"),
    num_threads=options.threads,
    decoding_method="greedy_search",
)
for path in sorted(options.folder.glob("*.wav")):
    samples, rate = soundfile.read(path, dtype="float32")
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, samples)
    recognizer.decode_stream(stream)
    print(json.dumps({"audio": path.name, "text": stream.result.text}, ensure_ascii=False))
