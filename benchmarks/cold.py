"""Whole jobs from the start of a process to its end, beside sherpa-onnx, and print a page of Markdown (Linux).

    python benchmarks/cold.py MODEL --trio DIR [--jobs 10,100,short,one] [--rounds 3] [--threads 2] [--json FILE]

MODEL is a model directory, or "embedded" without --trio; DIR holds ONNX files of the same weights: an icefall trio, or
what nemo_models.py made. In every round of a job sherpa-onnx runs, then `jaxasr transcribe FOLDER --format json` with
an empty cache folder, then the same with what that left there; none of them adds silence. Times are of whole processes;
ratios are medians over the rounds of our time by sherpa-onnx's, so below 1 we are faster. Nothing that a run writes
outlives it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from racing import machine, write_clip

HERE = Path(__file__).resolve().parent


def lengths(job: str) -> np.ndarray:
    """Seconds of each recording of a job."""
    if job == "one":
        return np.array([3.5])
    if job == "short":
        return np.full(200, 0.5)
    # As recordings of speech are: from 1 to 25 s, most of them short.
    return np.clip(np.exp(np.random.default_rng(0).normal(np.log(7.5), 0.75, int(job))), 1.0, 25.0)


def write(folder: Path, seconds: np.ndarray) -> None:
    for number, each in enumerate(seconds):
        write_clip(folder / f"{number:05d}.wav", float(each), number)


def run(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """One process: its seconds, and the largest resident size (MiB)."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024}


def race(options: argparse.Namespace, job: str) -> dict[str, Any]:
    """All rounds of one job."""
    seconds = lengths(job)
    with tempfile.TemporaryDirectory() as folder:
        sounds = Path(folder) / "sounds"
        sounds.mkdir()
        write(sounds, seconds)
        ours = [sys.executable, "-m", "jaxasr", "transcribe", str(sounds), "--model", options.model, "--format", "json"]
        ours += ["--pad-before", "0", "--pad-after", "0"]
        theirs = [sys.executable, str(HERE / "engines/sherpa_onnx_job.py"), str(options.trio), str(sounds)]
        theirs += ["--threads", str(options.threads)]
        rounds = []
        for number in range(options.rounds):
            cache = Path(folder) / f"cache{number}"
            environment = os.environ | {"JAXASR_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            taken: dict[str, Any] = {"sherpa-onnx": run(theirs, environment)} if options.trio else {}
            taken |= {name: run(ours, environment) for name in ("cold", "warm")}
            taken["programs"] = len(list((cache / "exported").iterdir()))
            rounds.append(taken)
            print(f"{job}: {json.dumps(taken)}", file=sys.stderr)
    return {"job": job, "clips": len(seconds), "sound_s": float(seconds.sum()), "rounds": rounds}


def page(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The Markdown that stands in docs/benchmarks.md."""
    lines = [
        machine(options.threads) + ".",
        "",
        "| job | programs | engine | seconds (lowest to highest) | by sherpa-onnx's (lowest to highest) | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        title = f"{result['clips']} clips, {result['sound_s']:.0f} s"
        rounds = result["rounds"]
        for name in [name for name in ("sherpa-onnx", "cold", "warm") if name in rounds[0]]:
            times = sorted(taken[name]["seconds"] for taken in rounds)
            ratio = ""
            if name != "sherpa-onnx" and "sherpa-onnx" in rounds[0]:
                ratios = sorted(taken[name]["seconds"] / taken["sherpa-onnx"]["seconds"] for taken in rounds)
                ratio = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            cells = (
                title,
                "" if name == "sherpa-onnx" else str(max(taken["programs"] for taken in rounds)),
                name if name == "sherpa-onnx" else f"jaxasr, {name}",
                f"{statistics.median(times):.1f} ({times[0]:.1f} to {times[-1]:.1f})",
                ratio,
                f"{max(taken[name]['peak_mib'] for taken in rounds):.0f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--trio", type=Path)
    parser.add_argument("--jobs", default="10,100,short,one", help="numbers of recordings, short (200 of 0.5 s) or one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep every single time here")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    results = [race(options, job) for job in options.jobs.split(",")]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(page(results, options))


if __name__ == "__main__":
    main()
