"""The full-size recogniser compiles for TPUs without one: features, encoder, search in one program, sharded or not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = "reazonspeech_k2_v2"
SECONDS = 10
# The encoder alone takes 3.4 GFLOP per second of sound in clips of 10 s (benchmarks/work.py counts them).
OPERATIONS_PER_SECOND = 3.4e9
CHIP_MEMORY = 15.75 * 2**30

SCRIPT = """
import json, sys
import jax.numpy as jnp
from jax.experimental import topologies
from jaxasr.convert import named_configs
from jaxasr.devices import Policy
from jaxasr.recognizer import Recognizer
from jaxasr.store import read_config
from jaxasr.text.tokens import TokenTable

model, topology = sys.argv[1:3]
rows, samples, beam = map(int, sys.argv[3:])
config = read_config(named_configs()[model])
tokens = TokenTable(tuple(f"<{i}>" for i in range(config.vocabulary_size)))
chips = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
recognizer = Recognizer(config, {}, tokens, dtype="bfloat16", devices=chips, beam=beam)
recognizer.programs.policy = Policy(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))  # what a process on a TPU chooses
program = recognizer.programs.compile(rows, samples)
memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
print(json.dumps({
    "chips": len(chips),
    "arguments": memory.argument_size_in_bytes,
    "output": memory.output_size_in_bytes,
    "temporary": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
    "operations": cost["flops"],
    "bytes_accessed": cost["bytes accessed"],
    "exchanges": sum(text.count(name) for name in ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which has wheels for Linux only")
@pytest.mark.parametrize(
    ("topology", "chips", "rows_per_chip", "beam"), [("v5e:1x1", 1, 8, 1), ("v5e:1x1", 1, 8, 4), ("v5e:2x2", 4, 64, 1)]
)
def test_full_size_compiles_for_v5e(
    topology: str, chips: int, rows_per_chip: int, beam: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A process of its own: libtpu holds a lock, and jax settles on its platforms once.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAXASR_CACHE": str(tmp_path),
    }
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        MODEL,
        topology,
        str(rows_per_chip * chips),
        str(16000 * SECONDS),
        str(beam),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    with capsys.disabled():
        print(
            f"\n{MODEL} on {topology}, {rows_per_chip * chips} x {SECONDS} s, bfloat16, beam {beam}, for each chip: "
            f"arguments {figures['arguments'] / 2**20:.0f} MiB, temporary {figures['temporary'] / 2**20:.0f} MiB, "
            f"code {figures['code'] / 2**20:.0f} MiB, {figures['operations'] / 1e12:.2f} TFLOP, "
            f"{figures['bytes_accessed'] / 2**30:.1f} GiB accessed"
        )
    assert figures["chips"] == chips
    # Two bytes for each of the 152,631,330 parameters and little beside them: nothing is kept in float32 by mistake.
    assert 2 * 152e6 < figures["arguments"] < 2 * 152.7e6 + rows_per_chip * SECONDS * 16000 * 4 + 2**22
    assert figures["arguments"] + figures["temporary"] + figures["output"] + figures["code"] < CHIP_MEMORY
    # Each chip works on its own rows, all of them and no others, and waits for none.
    least = OPERATIONS_PER_SECOND * SECONDS * rows_per_chip
    assert least < figures["operations"] < 1.5 * least
    assert figures["exchanges"] == 0
