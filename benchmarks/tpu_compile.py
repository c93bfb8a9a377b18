"""Compiles a recogniser for TPUs on a machine without one, and says what the program needs on each chip.

    python benchmarks/tpu_compile.py stt_en_conformer_ctc_large --rows 64 --seconds 10
    python benchmarks/tpu_compile.py parakeet_tdt_0_6b_v2 --topology v5e:2x2 --bits 8 --json

Needs libtpu, which has wheels for Linux alone. A configuration of configs/ is enough: no weights are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from typing import Any

# Before JAX settles on its platforms: libtpu compiles, the CPU is the default, and no server is asked for a TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax.numpy as jnp
from jax.experimental import topologies

from jaxasr.compression.post_training import fitting_rules
from jaxasr.configs import named_configs
from jaxasr.devices import Policy
from jaxasr.model_config import ModelConfig
from jaxasr.quant.rules import QuantizationConfig, default_rules
from jaxasr.recognizer import Recognizer
from jaxasr.store import parameter_count, read_config
from jaxasr.text.tokens import TokenTable

EXCHANGES = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")


def with_stacks(config: ModelConfig, stacks: int) -> ModelConfig:
    """The first `stacks` stacks of a Zipformer with one layer each: tuples with a number for each stack are cut."""
    encoder: Any = config.encoder
    values = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    by_stack = {
        name: value[:stacks]
        for name, value in values.items()
        if isinstance(value, tuple) and len(value) == len(encoder.num_layers)
    }
    return dataclasses.replace(config, encoder=dataclasses.replace(encoder, **by_stack | {"num_layers": (1,) * stacks}))


def quantized(config: ModelConfig, bits: Any, block: int | None) -> ModelConfig:
    """The configuration with the rules of `jaxasr quantize --bits`."""
    defaults = default_rules(bits, block=block)
    rules = fitting_rules(config, QuantizationConfig(rules=defaults), defaults=len(defaults))
    return dataclasses.replace(config, quantization=rules)


def compiled(config: ModelConfig, topology: str, rows: int, samples: int, beam: int) -> dict[str, Any]:
    """What the compiler says of the whole program, features to search, for `rows` clips spread over the chips."""
    chips = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    tokens = TokenTable(tuple(f"<{token}>" for token in range(config.vocabulary_size)))
    recognizer = Recognizer(config, {}, tokens, dtype="bfloat16", devices=chips, beam=beam)
    recognizer.programs.policy = Policy(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))  # what a process on a TPU chooses
    abstract = recognizer.programs.abstract_model
    start = time.perf_counter()
    program = recognizer.programs.compile(rows, samples)
    seconds = time.perf_counter() - start
    memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    return {
        "chips": len(chips),
        "parameters": parameter_count(abstract.floats),
        "arguments": memory.argument_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "operations": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "exchanges": sum(text.count(name) for name in EXCHANGES),
        "compile_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=sorted(named_configs()), metavar="CONFIG", help="a name of configs/")
    parser.add_argument("--topology", default="v5e:1x1", help="chips (default %(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="clips for each chip (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="of each clip (default %(default)s)")
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--bits", type=int, choices=(8, 4, 3, 2), help="as `jaxasr quantize` makes weights")
    parser.add_argument("--block", type=int, help="weights that share a scale")
    parser.add_argument("--stacks", type=int, help="of a Zipformer only so many stacks of one layer")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a row of a table")
    options = parser.parse_args()
    config = read_config(named_configs()[options.config])
    if options.stacks:
        config = with_stacks(config, options.stacks)
    if options.bits:
        config = quantized(config, options.bits, options.block)
    chips = len(topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices)
    rows, samples = options.rows * chips, options.seconds * config.features.sample_rate
    figures = compiled(config, options.topology, rows, samples, options.beam)
    if options.json:
        print(json.dumps(figures))
        return
    weights = f"{options.bits} bits" if options.bits else "bfloat16"
    mebibytes = [f"{figures[key] / 2**20:.0f} MiB" for key in ("arguments", "temporary", "code")]
    print(
        f"| {options.config} | {weights} | {options.topology} | {rows} x {options.seconds} s | {' | '.join(mebibytes)} "
        f"| {figures['operations'] / 1e12:.2f} TFLOP | {figures['bytes_accessed'] / 2**30:.1f} GiB "
        f"| {figures['compile_seconds']:.0f} s |"
    )


if __name__ == "__main__":
    main()
