"""Race jaxasr against onnxruntime, sherpa-onnx, NeMo and FunASR on this machine's CPU, and print a page of Markdown.

    python benchmarks/race.py MODEL [--trio DIR] [--sizes 1x10,8x10,1x30] [--rounds 7] [--threads 2] [--json FILE]
    python benchmarks/race.py MODEL --trio DIR --int8 MODEL8 [...]
    python benchmarks/race.py MODEL --nemo DIR --nemo-python PYTHON [...]
    python benchmarks/race.py MODEL --funasr DIR --funasr-python PYTHON [...]

MODEL is a model directory (or a name of configs/ for random weights). DIR is an icefall ONNX trio of the same weights,
or what nemo_models.py or funasr_models.py made, which PYTHON, with NeMo or FunASR in it, runs in PyTorch. MODEL8 is a
model directory of the trio's quantized files (`jaxasr convert --precision int8`), which race beside the others. Every
engine is a process of its own; they take turns A B C A B C ... and those that wait are stopped, so that no idle thread
spins beside the one that runs. Ratios are medians over the rounds of (peer's time / ours), so above 1 we are faster.
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

from racing import Engine, machine, running, write_clip

HERE = Path(__file__).resolve().parent
STARTS = 5
DTYPES = "float32,bfloat16"


def engines(options: argparse.Namespace, clips: int, seconds: float) -> list[Engine]:
    """Who races at one size."""
    threads = ("--threads", str(options.threads))
    size = (*threads, "--clips", str(clips), "--seconds", str(seconds))

    def ours(part: str, dtype: str, model: str = options.model) -> tuple[str, ...]:
        return (str(HERE / "engines/jaxasr_part.py"), model, "--part", part, "--dtype", dtype, *size)

    found = [Engine("matrix peak", (str(HERE / "engines/matrix_peak.py"), *threads))]
    trio = options.trio
    if trio:
        script = str(HERE / "engines/onnxruntime_encoder.py")
        found.append(Engine("onnxruntime encoder", (script, str(trio), *size)))
    for folder, frame in ((options.nemo, "0.01"), (options.funasr, "0.06")):
        if folder:
            script = str(HERE / "engines/exported_onnxruntime.py")
            found.append(Engine("onnxruntime encoder", (script, str(folder), "--frame-seconds", frame, *size)))
    if options.nemo_python:
        command = (str(HERE / "engines/nemo_pytorch.py"), str(options.nemo), *size)
        found.append(Engine("PyTorch encoder", command, "onnxruntime encoder", options.nemo_python))
    pytorch = (str(HERE / "engines/funasr_pytorch.py"), str(options.funasr), *size) if options.funasr_python else ()
    if pytorch:
        command = (*pytorch, "--part", "encoder")
        found.append(Engine("PyTorch encoder", command, "onnxruntime encoder", options.funasr_python))
    peer = "onnxruntime encoder" if trio or options.nemo or options.funasr else None
    for dtype in options.dtypes:
        found.append(Engine(f"encoder {dtype}", ours("encoder", dtype), peer))
    if trio:
        found.append(Engine("sherpa-onnx whole", (str(HERE / "engines/sherpa_onnx_whole.py"), str(trio), *size)))
    whole = "sherpa-onnx whole" if trio else None
    if pytorch:
        whole = "PyTorch without features"
        found.append(Engine(whole, (*pytorch, "--part", "whole"), python=options.funasr_python))
    for dtype in options.dtypes:
        found.append(Engine(f"whole {dtype}", ours("whole", dtype), whole))
    if options.int8:
        for part, peer, script in (
            ("encoder", "onnxruntime encoder int8", "onnxruntime_encoder.py"),
            ("whole", "sherpa-onnx whole int8", "sherpa_onnx_whole.py"),
        ):
            found.append(Engine(peer, (str(HERE / "engines" / script), str(trio), "--int8", *size)))
            found.append(Engine(f"{part} int8", ours(part, "float32", options.int8), peer))
    found += [Engine(part, ours(part, "float32")) for part in ("features", "search")]
    return found


def race(options: argparse.Namespace, clips: int, seconds: float, cache: Path) -> dict[str, Any]:
    """All rounds at one size: per engine the answers of its first turn and of the counted ones."""
    environment = os.environ | {"JAXASR_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    field = engines(options, clips, seconds)
    with running(field, environment) as turns:
        first = {turn.engine.name: turn.take() for turn in turns}
        rounds = [{turn.engine.name: turn.take() for turn in turns} for _ in range(options.rounds)]
    again = [engine for engine in field if engine.name in {f"encoder {dtype}" for dtype in options.dtypes}]
    with running(again, environment) as turns:
        cached = {turn.engine.name: turn.take() for turn in turns}
    return {"clips": clips, "seconds": seconds, "first": first, "cached": cached, "rounds": rounds,
            "against": {e.name: e.against for e in field}}  # fmt: skip


def start_up(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from starting `jaxasr transcribe` on a clip of 10 s to its end: without compiled programs, then with."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        write_clip(clip, 10, 0)
        environment = os.environ | {"JAXASR_CACHE": str(Path(folder) / "cache"), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", "from jaxasr.cli import main; main()", "transcribe", str(clip)]
        command += ["--model", options.model]
        times = []
        for _ in range(1 + STARTS):
            started = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
    return {"cold_s": times[0], "warm_s": times[1:]}


def page(results: list[dict[str, Any]], starts: dict[str, Any] | None, options: argparse.Namespace) -> str:
    """The Markdown that stands in docs/benchmarks.md."""
    lines = [machine(options.threads) + "."]
    for result in results:
        audio = result["clips"] * result["seconds"]
        rounds, first, cached = result["rounds"], result["first"], result["cached"]
        kinds = [kind for kind in first["matrix peak"] if "float" in kind]
        peaks = {kind: statistics.median(r["matrix peak"][kind] for r in rounds) for kind in kinds}
        lines += [
            "",
            f"{result['clips']} x {result['seconds']:g} s, {len(rounds)} rounds. Matrix peak (GFLOP/s): "
            + ", ".join(f"{name.replace('_', ' ')} {value / 1e9:.0f}" for name, value in peaks.items()),
            "",
            "| engine | times real time (lowest to highest) | against | ratio (lowest to highest) | share of peak "
            "| peak memory, MiB | trace, compile, cached (s) | tokens |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, against in result["against"].items():
            if name == "matrix peak":
                continue
            times = [r[name]["seconds"] for r in rounds]
            speeds = sorted(audio / t for t in times)
            ratios = sorted(r[against]["seconds"] / r[name]["seconds"] for r in rounds) if against else []
            operations = first[name].get("operations")
            kind = "jax_bfloat16" if name.endswith("bfloat16") else "jax_float32"
            shares = [operations / r[name]["seconds"] / r["matrix peak"][kind] for r in rounds] if operations else []
            compile_times = ""
            if "compile_s" in first[name]:
                compile_times = f"{first[name]['trace_s']:.1f}, {first[name]['compile_s']:.1f}"
                compile_times += f", {cached[name]['compile_s']:.1f}" if name in cached else ""
            cells = (
                name,
                f"{audio / statistics.median(times):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})",
                against or "",
                f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else "",
                f"{statistics.median(shares):.0%}" if shares else "",
                f"{rounds[-1][name]['peak_mib']:.0f}",
                compile_times,
                str(rounds[-1][name].get("tokens", "")),
            )
            lines.append("| " + " | ".join(cells) + " |")
        encoder = first[f"encoder {options.dtypes[0]}"]
        lines += ["", f"The encoder's work: {encoder['operations'] / audio / 1e9:.2f} GFLOP per second of sound."]
    if starts:
        warm = sorted(starts["warm_s"])
        lines += [
            "",
            f"First transcript, `jaxasr transcribe` on a clip of 10 s, from start to end of the process: "
            f"{statistics.median(warm):.2f} s ({warm[0]:.2f} to {warm[-1]:.2f}, {len(warm)} runs) with the compiled "
            f"program in the cache, {starts['cold_s']:.1f} s without.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--trio", type=Path)
    parser.add_argument("--nemo", type=Path, metavar="DIR", help="made by nemo_models.py")
    parser.add_argument("--nemo-python", metavar="PYTHON", help="an interpreter that has NeMo")
    parser.add_argument("--int8", metavar="MODEL8", help="a model directory of the quantized trio's integers")
    parser.add_argument("--funasr", type=Path, metavar="DIR", help="made by funasr_models.py")
    parser.add_argument("--funasr-python", metavar="PYTHON", help="an interpreter that has FunASR")
    parser.add_argument("--sizes", default="1x10,8x10,1x30")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", type=lambda names: names.split(","), default=DTYPES, help="of ours, with commas")
    parser.add_argument("--json", type=Path, help="keep every single time here")
    parser.add_argument("--no-start-up", action="store_true", help="leave out the time to the first transcript")
    options = parser.parse_args()
    if options.int8 and not options.trio:
        parser.error("--int8 races beside a trio's quantized files: give --trio too")
    results = []
    with tempfile.TemporaryDirectory() as cache:
        for size in options.sizes.split(","):
            clips, seconds = size.split("x")
            results.append(race(options, int(clips), float(seconds), Path(cache)))
            print(f"{size} done", file=sys.stderr)
    starts = start_up(options) if Path(options.model).is_dir() and not options.no_start_up else None
    if options.json:
        options.json.write_text(json.dumps({"results": results, "start_up": starts}, indent=1) + "\n")
    print(page(results, starts, options))


if __name__ == "__main__":
    main()
