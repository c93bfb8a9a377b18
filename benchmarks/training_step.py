"""Train a model of configs/ for a few steps on one batch, and print what a step takes: seconds, memory, operations.

    python benchmarks/training_step.py [--model reazonspeech_k2_v2] [--rows 8] [--seconds 10] [--labels 60] [--steps 3]
    python benchmarks/training_step.py --ahead v5e:1x1

The sound says nothing and the tokens are drawn at random: what is measured is the step of `jaxasr train` with all its
parts. `--ahead` compiles it for a TPU that need not be there and runs nothing; it needs libtpu, and minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="reazonspeech_k2_v2", help="a name of configs/")
parser.add_argument("--rows", type=int, default=8)
parser.add_argument("--seconds", type=float, default=10.0)
parser.add_argument("--labels", type=int, default=60, help="tokens in a row")
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--compute", default="float32", choices=("float32", "bfloat16"))
parser.add_argument("--ahead", metavar="TOPOLOGY", help="a TPU to compile for, such as v5e:1x1; implies bfloat16")
options = parser.parse_args()
if options.ahead:
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from jaxasr import configure_process  # noqa: E402
from jaxasr.configs import named_configs  # noqa: E402
from jaxasr.devices import Policy  # noqa: E402
from jaxasr.manifests import read_manifest  # noqa: E402
from jaxasr.speechlike import RATE, speechlike  # noqa: E402
from jaxasr.store import read_config  # noqa: E402
from jaxasr.text.encoding import TextEncoder  # noqa: E402
from jaxasr.text.tokens import TokenTable  # noqa: E402
from jaxasr.training.augmentation import AugmentationConfig  # noqa: E402
from jaxasr.training.curriculum import CurriculumConfig  # noqa: E402
from jaxasr.training.data import Corpus, DataConfig, check  # noqa: E402
from jaxasr.training.loop import Progress, Trainer, new_parameters, update  # noqa: E402
from jaxasr.training.recipe import OptimizerConfig, Recipe  # noqa: E402

MIB = 2**20


def trainer(folder: Path) -> Trainer:
    """One for a batch of sound without words, its tokens single characters."""
    config = read_config(named_configs()[options.model])
    size = config.vocabulary_size
    tokens = TokenTable(("<blk>", *(chr(0x4E00 + i) for i in range(1, size))))
    data = DataConfig(
        bucket_seconds=(options.seconds + 0.01,),
        batch_seconds=options.rows * (options.seconds + 0.01),
        labels_per_second=(options.labels - 4) / options.seconds,
    )
    curriculum = CurriculumConfig(join_below=0.0, edge_share=0.0)
    plain = AugmentationConfig(
        speed=(1.0, 1.0), noise_probability=0.0, reverberation_probability=0.0, telephone_probability=0.0
    )
    generator = np.random.default_rng(1)
    lines = ["path\ttext"]
    for row in range(options.rows):
        soundfile.write(folder / f"{row}.wav", speechlike(options.seconds, row), RATE)
        lines.append(f"{row}.wav\t" + "".join(tokens.pieces[i] for i in generator.integers(1, size, options.labels)))
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = Recipe(
        steps=options.steps,
        data=data,
        curriculum=curriculum,
        augmentation=plain,
        optimizer=OptimizerConfig(warmup_steps=0),
        dropout=0.1,
        compute="bfloat16" if options.ahead else options.compute,
    )
    good, bad = check(read_manifest(folder / "manifest.tsv"), TextEncoder(tokens), config, data, curriculum)
    assert not bad, bad
    corpus = Corpus(good, data, curriculum, plain)
    return Trainer(recipe, config, new_parameters(config, recipe.seed), tokens, corpus, folder / "run")


def described(compiled: Any) -> str:
    """What the compiler says of a step."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return (
        f"state and batch {memory.argument_size_in_bytes / MIB:,.0f} MiB, temporaries "
        f"{memory.temp_size_in_bytes / MIB:,.0f} MiB, code {memory.generated_code_size_in_bytes / MIB:,.0f} MiB, "
        f"{cost['flops'] / 1e12:.1f} TFLOP a step by the compiler's count"
    )


def abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and types alone, on a device that need not be there."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def main() -> None:
    configure_process()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir()
        run = trainer(folder)
        batch = next(run.batches(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(run.state["parameters"]))
        print(
            f"{options.model}: {count / 1e6:.1f} M parameters, {run.config.vocabulary_size:,} tokens; "
            f"{options.rows} x {options.seconds:g} s, {options.labels} tokens each, {run.recipe.compute}",
            flush=True,
        )
        begun = time.monotonic()
        if options.ahead:
            from jax.experimental import topologies

            narrow = Policy(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))  # what a process on a TPU chooses
            (chip,) = topologies.get_topology_desc(platform="tpu", topology_name=options.ahead).devices
            arguments = abstract((run.state, *run.arguments(0, batch)), jax.sharding.SingleDeviceSharding(chip))
            compiled = update.lower(dataclasses.replace(run.step, policy=narrow), *arguments).compile()
            print(f"{options.ahead}: {described(compiled)} (compiled in {time.monotonic() - begun:.0f} s)")
            return
        compiled = update.lower(run.step, run.state, *run.arguments(0, batch)).compile()
        print(f"this machine: {described(compiled)} (compiled in {time.monotonic() - begun:.0f} s)", flush=True)
        run.update = compiled
        seen: list[Progress] = []
        run.train(seen.append)
        for before, now in zip([None, *seen], seen, strict=False):
            print(f"step {now.step}: loss {now.loss:.3f}, {now.seconds - (before.seconds if before else 0):.1f} s")
        print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
