"""jaxasr: streams in the slots of one program, fed chunk by chunk from sound, with the text so far after each chunk."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="a model directory of a model that streams")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--streams", type=int, required=True)
parser.add_argument("--chunks", type=int, required=True)
parser.add_argument("--dtype", default="float32")
options = parser.parse_args()
use_cores(options.threads)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

from jaxasr import configure_process, load_model  # noqa: E402
from jaxasr.speechlike import RATE, speechlike  # noqa: E402

configure_process()
slots = load_model(options.model, dtype=options.dtype).streams(options.streams)
size = round(slots.seconds_per_step * RATE)
# One chunk more than is counted: after it, which is not enough for a step, every chunk is a step.
sounds = [speechlike((options.chunks + 1) * slots.seconds_per_step, seed) for seed in range(options.streams)]


def run() -> dict[str, Any]:
    latencies = []
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(slots.open()) for _ in sounds]
        for chunk in range(options.chunks + 1):
            begun = time.perf_counter()
            slots.feed((stream, sound[chunk * size :][:size]) for stream, sound in zip(opened, sounds, strict=True))
            heard = [stream.partial for stream in opened]
            latencies.append(time.perf_counter() - begun)
        latencies = latencies[1:]
        tokens = sum(len(each.tokens) for each in heard)
    return {"latencies": latencies, "tokens": tokens, "chunk_s": slots.seconds_per_step}


take_turns(lambda: run() | {"version": jax.__version__}, run)
