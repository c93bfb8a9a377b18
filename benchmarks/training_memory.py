"""Compile a training step ahead of time for a TPU that need not be there, and print what it takes of the chip's memory.

    python benchmarks/training_memory.py [--model reazonspeech_k2_v2] [--rows 8] [--seconds 20] [--labels 100]

bfloat16, AdamW, as `jaxasr train` runs it. Needs libtpu (`pip install '.[test]'` on Linux).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jaxasr.audio import SAMPLE_RATE
from jaxasr.convert import named_configs
from jaxasr.devices import Policy
from jaxasr.manifests import read_manifest
from jaxasr.store import read_config
from jaxasr.text.encoding import Encoder
from jaxasr.text.tokens import TokenTable
from jaxasr.training.data import Corpus, check
from jaxasr.training.loop import Trainer, new_parameters
from jaxasr.training.recipe import Recipe

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reazonspeech_k2_v2", help="a name of configs/")
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--labels", type=int, default=100)
    options = parser.parse_args()
    config = read_config(named_configs()[options.model])
    pieces = ("<blk>", "▁A", *(f"<{i}>" for i in range(2, config.vocabulary_size)))
    tokens = TokenTable(pieces)
    recipe = Recipe(steps=1000, model=config, compute="bfloat16", dropout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        # One second of silence: the step's shapes are given below, and a run wants a corpus.
        soundfile.write(Path(folder) / "a.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
        (Path(folder) / "manifest.tsv").write_text("path\ttext\na.wav\tA\n")
        good, _ = check(read_manifest(Path(folder) / "manifest.tsv"), Encoder(tokens), recipe.data)
        parameters = new_parameters(config, recipe.seed)
        trainer = Trainer(recipe, config, parameters, tokens, Corpus(good, recipe.data), Path(folder))
    trainer.policy = Policy(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))  # what a process on a TPU chooses
    (chip,) = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    sharding = SingleDeviceSharding(chip)

    def abstract(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    state = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype), trainer.state)
    rows, samples = options.rows, int(options.seconds * SAMPLE_RATE)
    batch = (
        abstract((rows, samples), "float32"),
        abstract((rows,), "int32"),
        abstract((rows, options.labels), "int32"),
        abstract((rows,), "int32"),
    )
    begun = time.monotonic()
    program = jax.jit(trainer._step, donate_argnums=0).lower(state, *batch).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    print(
        f"{options.model}, {count / 1e6:.1f} M parameters, vocabulary {config.vocabulary_size:,}, bfloat16, "
        f"{rows} x {options.seconds:g} s, {options.labels} tokens, on one chip of {options.topology}: "
        f"state and batch {memory.argument_size_in_bytes / MIB:,.0f} MiB, "
        f"temporary {memory.temp_size_in_bytes / MIB:,.0f} MiB, "
        f"code {memory.generated_code_size_in_bytes / MIB:,.0f} MiB, {cost['flops'] / 1e12:.1f} TFLOP a step "
        f"(compiled in {time.monotonic() - begun:.0f} s)"
    )


if __name__ == "__main__":
    main()
