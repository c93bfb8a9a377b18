"""A person's job with sherpa-onnx: the recordings of a folder to text, by greedy search, one after the other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import soundfile
from trio import recognizer as make_recognizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("trio", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--threads", type=int, required=True)
options = parser.parse_args()

recognizer = make_recognizer(options.trio, options.threads)
for path in sorted(options.folder.glob("*.wav")):
    samples, rate = soundfile.read(path, dtype="float32")
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, samples)
    recognizer.decode_stream(stream)
    print(json.dumps({"audio": path.name, "text": stream.result.text}, ensure_ascii=False))
