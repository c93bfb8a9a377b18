"""FunASR itself in PyTorch: the encoder, or encoder, predictor and decoder down to ids; on random frames.

Runs in an environment with funasr; jaxasr is not needed there. Features are left out: FunASR makes them clip by clip.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what funasr_models.py made")
parser.add_argument("--part", choices=("encoder", "whole"), required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--clips", type=int, required=True)
parser.add_argument("--seconds", type=float, required=True)
options = parser.parse_args()
use_cores(options.threads)

answers, sys.stdout = sys.stdout, sys.stderr  # FunASR prints while it is imported

import torch  # noqa: E402
from funasr_models import BINS, STACKED, read  # noqa: E402

torch.set_num_threads(options.threads)
torch.manual_seed(0)
model, _ = read(options.folder)
frames = torch.randn(options.clips, round(options.seconds / 0.06), BINS * STACKED)
lengths = torch.full((options.clips,), frames.shape[1])
names = [str(number) for number in range(options.clips)]


def run() -> Any:
    with torch.inference_mode():
        if options.part == "encoder":
            return {"frames": model.encode(frames.clone(), lengths)[0].shape[1]}
        found, _ = model.inference(frames.clone(), lengths[:, None], key=names, data_type="fbank", device="cpu")
        return {"tokens": sum(len(each["token_int"]) for each in found)}


sys.stdout = answers
take_turns(lambda: run() | {"version": torch.__version__}, run)
