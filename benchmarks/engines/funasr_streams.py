"""FunASR itself in PyTorch: streams chunk by chunk, one after another, since it takes one at a time; on random frames.

Runs in an environment with funasr; jaxasr is not needed there. The features are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what funasr_models.py made with --online")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--streams", type=int, required=True)
parser.add_argument("--chunks", type=int, required=True)
options = parser.parse_args()
use_cores(options.threads)

answers, sys.stdout = sys.stdout, sys.stderr  # FunASR prints while it is imported

import torch  # noqa: E402
from funasr_models import BINS, STACKED, read  # noqa: E402

WINDOW = {"chunk_size": [0, 10, 5], "encoder_chunk_look_back": 4, "decoder_chunk_look_back": 1}  # of the model card

torch.set_num_threads(options.threads)
torch.manual_seed(0)
model, found = read(options.folder)
frames = torch.randn(options.chunks, 1, WINDOW["chunk_size"][1], BINS * STACKED)


class Ids:
    """In the place of a tokenizer: ids stay ids."""

    @staticmethod
    def ids2tokens(ids: list[int]) -> list[int]:
        return ids


def run() -> dict[str, Any]:
    caches: list[dict[str, Any]] = [{} for _ in range(options.streams)]
    for cache in caches:
        model.init_cache(cache, **WINDOW, **found)
    latencies, tokens = [], 0
    with torch.inference_mode():
        for chunk in frames:
            begun = time.perf_counter()
            for cache in caches:
                length = torch.tensor([chunk.shape[1]])
                said = model.generate_chunk(
                    chunk.clone(), length, key=["a"], tokenizer=Ids, cache=cache, device="cpu", is_final=False
                )
                tokens += len(said)
            latencies.append(time.perf_counter() - begun)
    return {"latencies": latencies, "tokens": tokens, "chunk_s": 0.06 * WINDOW["chunk_size"][1]}


sys.stdout = answers
take_turns(lambda: run() | {"version": torch.__version__}, run)
