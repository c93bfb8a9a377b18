"""jaxasr: one part of a model (features, encoder, search) or the whole way from waveforms to text."""

from __future__ import annotations

import argparse
import os
from typing import Any

from turns import take_turns, use_cores

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="a model directory, or a name of configs/ for random weights")
parser.add_argument("--part", choices=("features", "encoder", "search", "whole"), required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--clips", type=int, required=True)
parser.add_argument("--seconds", type=float, required=True)
parser.add_argument("--dtype", default="float32")
options = parser.parse_args()
use_cores(options.threads)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from work import encoder_operations  # noqa: E402

from jaxasr import configure_process, load_model  # noqa: E402
from jaxasr.benchmark import random_recognizer  # noqa: E402
from jaxasr.configs import named_configs  # noqa: E402
from jaxasr.encoders.zipformer_config import ZipformerConfig  # noqa: E402
from jaxasr.recognizer import Recognizer  # noqa: E402
from jaxasr.speechlike import speechlike  # noqa: E402

audio = [speechlike(options.seconds, seed) for seed in range(options.clips)]


def load() -> Recognizer:
    if options.model in named_configs():
        return random_recognizer(options.model, dtype=options.dtype)
    # Without the model's own silence: every engine gets the same sound.
    return load_model(options.model, dtype=options.dtype, pad_before=0.0, pad_after=0.0)


configure_process()
started = time.perf_counter()
recognizer = load()
programs = recognizer.programs
jax.block_until_ready(programs.params)
loaded = time.perf_counter() - started
config = recognizer.config


def whole() -> Any:
    return {"tokens": sum(len(each.tokens) for each in recognizer.transcribe(audio))}


def prepare_whole() -> dict[str, Any]:
    return whole() | {"programs": [list(shape) for shape in programs.compiled]}


def part(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The function of one part, and its arguments."""
    waveforms, lengths = jnp.asarray(np.stack(audio)), jnp.full((len(audio),), len(audio[0]), jnp.int32)

    def features(params: Any, waveforms: jax.Array, lengths: jax.Array) -> Any:
        return programs.abstract_model.fill(params).features(waveforms, lengths)

    def encoder(params: Any, frames: jax.Array, lengths: jax.Array) -> Any:
        model = programs.abstract_model.fill(params)
        encoded, lengths = model.encoder(frames, lengths)
        # The peers' graphs of a CTC model have its head in them; a search runs it again.
        return (encoded, lengths, model.ctc(encoded)) if model.ctc and not model.transducer else (encoded, lengths)

    def search(params: Any, encoded: jax.Array, lengths: jax.Array) -> Any:
        return programs.abstract_model.fill(params).search(encoded, lengths, programs.search)

    if name == "features":
        return features, (programs.params, waveforms, lengths)
    frames, frame_lengths = jax.jit(features)(programs.params, waveforms, lengths)
    frames = frames.astype(programs.policy.activations)
    if name == "encoder":
        return encoder, (programs.params, frames, frame_lengths)
    return search, (programs.params, *jax.jit(encoder)(programs.params, frames, frame_lengths)[:2])


def operations(program: jax.stages.Compiled, frames: int) -> float:
    """Floating-point operations of the encoder: counted by hand for a Zipformer, else by XLA."""
    if isinstance(config.encoder, ZipformerConfig):
        return encoder_operations(config.encoder, len(audio), frames)
    return float(program.cost_analysis()["flops"])


if options.part == "whole":
    take_turns(lambda: prepare_whole() | {"loaded_s": loaded, "version": jax.__version__}, whole)
else:
    function, arguments = part(options.part)
    compiled: dict[str, Any] = {}

    def prepare() -> dict[str, Any]:
        begun = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments)
        traced = time.perf_counter()
        compiled["program"] = lowered.compile()
        done = time.perf_counter()
        facts: dict[str, Any] = {"trace_s": traced - begun, "compile_s": done - traced, "loaded_s": loaded}
        if options.part == "encoder":
            facts["operations"] = operations(compiled["program"], arguments[1].shape[1])
        run()
        return facts | {"version": jax.__version__}

    def run() -> None:
        jax.block_until_ready(compiled["program"](*arguments))

    take_turns(prepare, run)
