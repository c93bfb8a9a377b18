"""The full-size recogniser compiles for TPUs without one: features, encoder, search in one program, sharded or not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parent.parent / "benchmarks" / "tpu_compile.py"
ZIPFORMER, CONFORMER = "reazonspeech_k2_v2", "stt_en_conformer_ctc_large"
CHIP_MEMORY = 15.75 * 2**30


def environment(cache: Path) -> dict[str, str]:
    """That of a process of its own: libtpu holds a lock, and jax settles on its platforms once."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAXASR_CACHE": str(cache),
        # The least effort takes a quarter of the time of the usual one, UNKNOWN.
        **{name: os.environ.get(name, "O0") for name in ("JAX_OPTIMIZATION_LEVEL", "JAX_MEMORY_FITTING_LEVEL")},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")  # libtpu refuses flags of XLA for CPUs
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which has wheels for Linux only")
@pytest.mark.parametrize(
    ("model", "topology", "rows_per_chip", "seconds", "options", "parameters", "bytes_each", "operations"),
    [
        # The encoder alone takes 3.4 GFLOP per second of sound in clips of 10 s (benchmarks/work.py counts them).
        pytest.param(ZIPFORMER, "v5e:1x1", 64, 10, [], 152_631_330, 2, 3.4e9, id="zipformer"),
        # Rows on four chips and a beam, which do not depend on the number of layers: two layers are compiled sooner.
        pytest.param(
            ZIPFORMER, "v5e:2x2", 8, 2, ["--beam", "4", "--stacks", "2"], 9_306_607, 2, 0.5e9, id="four chips, a beam"
        ),
        # Half a byte for a weight of the two layers and a 64th for its scale; heads, most of this model, have 8 bits.
        pytest.param(
            ZIPFORMER,
            "v5e:1x1",
            8,
            2,
            ["--bits", "4", "--block", "128", "--stacks", "2"],
            9_306_607,
            0.8625,
            0.5e9,
            id="four bits",
        ),
        # 25 encoded frames a second, of which each takes two operations a parameter, and attention beside them.
        pytest.param(CONFORMER, "v5e:1x1", 64, 10, [], 121_501_313, 2, 6.1e9, id="conformer"),
    ],
)
def test_it_compiles_for_v5e(
    model: str,
    topology: str,
    rows_per_chip: int,
    seconds: int,
    options: list[str],
    parameters: int,
    bytes_each: float,
    operations: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    numbers = ["--topology", topology, "--rows", str(rows_per_chip), "--seconds", str(seconds)]
    command = [sys.executable, str(COMMAND), model, *numbers, *options, "--json"]
    result = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{' '.join(command[2:])}\n{figures}")
    assert figures["chips"] == (4 if topology == "v5e:2x2" else 1) and figures["parameters"] == parameters
    # What is stored of each parameter, two bytes of a float, and little beside it: nothing is kept wider by mistake.
    waveforms, stored = rows_per_chip * seconds * 16000 * 4, bytes_each * parameters
    assert stored < figures["arguments"] < 1.005 * stored + waveforms + 2**22
    assert figures["arguments"] + figures["temporary"] + figures["output"] + figures["code"] < CHIP_MEMORY
    # Each chip works on its own rows, all of them and no others, and waits for none.
    least = operations * seconds * rows_per_chip
    assert least < figures["operations"] < 1.5 * least
    assert figures["exchanges"] == 0


STREAMED = """
import dataclasses, json
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jaxasr.configs import named_configs
from jaxasr.devices import Policy
from jaxasr.layers.sliding import Sliding
from jaxasr.pieces import StreamPlan
from jaxasr.recognizer import Recognizer
from jaxasr.store import read_config
from jaxasr.streaming.stepping import Stepping
from jaxasr.text.tokens import TokenTable

whole = read_config(named_configs()["paraformer_large"])
tokens = TokenTable(tuple(f"<{i}>" for i in range(whole.vocabulary_size)))
chips = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1").devices)

def programs(**sizes):
    encoder = dataclasses.replace(whole.encoder, window=Sliding(), **sizes)
    head = dataclasses.replace(whole.parallel, shift=5, window=Sliding(), **sizes)
    config = dataclasses.replace(whole, encoder=encoder, parallel=head)
    made = Recognizer(config, {}, tokens, dtype="bfloat16", devices=chips).programs
    made.policy = Policy(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))
    return made

deep = programs()
Stepping(deep, StreamPlan(deep.config), 32)
(step,) = deep._steps.values()
made = {"whole": programs(num_layers=2).compile(16, 160000), "step": step}
print(json.dumps({
    name: {
        "arguments": program.memory_analysis().argument_size_in_bytes,
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "code": program.memory_analysis().generated_code_size_in_bytes,
        "accessed": program.cost_analysis()["bytes accessed"],
        "operations": program.cost_analysis()["flops"],
    }
    for name, program in made.items()
}))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, which has wheels for Linux only")
def test_a_paraformer_and_its_step_compile_for_v5e(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16 clips of 10 s at once with two layers each, and of full depth 32 streams that move on by 0.6 s."""
    result = subprocess.run(
        [sys.executable, "-c", STREAMED], env=environment(tmp_path), capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\nparaformer_large on v5e:1x1, bfloat16, of the whole 2 + 2 layers: {figures}")
    for program in figures.values():
        assert program["arguments"] + program["temporary"] < CHIP_MEMORY / 8
    # Two bytes a parameter, but for the embedding, which is the training's; then the caches of 32 streams.
    assert figures["step"]["arguments"] > 2 * (220_084_533 - 4_302_848)
    # A step encodes 15 frames and decodes 16 positions by two operations a parameter, and attention beside them.
    least = 2 * (15 * 157_975_648 + 16 * 57_018_580)
    assert 0.9 * least < figures["step"]["operations"] / 32 < 1.5 * least
