"""Race jaxasr's streams against FunASR's on this machine's CPU, and print a page of Markdown.

    python benchmarks/stream_race.py MODEL [--funasr DIR --funasr-python PYTHON] [--streams 1,4,16] [--chunks 20]
        [--rounds 5] [--threads 1] [--json FILE]

MODEL is a model directory of a model that streams, DIR the same weights as funasr_models.py --online made them, which
PYTHON, with FunASR in it, runs in PyTorch. The chunks of all streams come at the same time; a latency is the time until
the last of them has its text. Engines take turns as in race.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from racing import Engine, machine, running

HERE = Path(__file__).resolve().parent
DTYPES = "float32,bfloat16"


def engines(options: argparse.Namespace, streams: int) -> list[Engine]:
    """Who races with so many streams."""
    size = ("--threads", str(options.threads), "--streams", str(streams), "--chunks", str(options.chunks))
    found, peer = [], None
    if options.funasr:
        script = str(HERE / "engines/funasr_streams.py")
        peer = "FunASR, PyTorch"
        found.append(Engine(peer, (script, str(options.funasr), *size), python=options.funasr_python or sys.executable))
    script = str(HERE / "engines/jaxasr_streams.py")
    for dtype in options.dtypes:
        found.append(Engine(f"jaxasr {dtype}", (script, options.model, *size, "--dtype", dtype), peer))
    return found


def race(options: argparse.Namespace, streams: int, cache: Path) -> dict[str, Any]:
    """All rounds with so many streams: the answers of the counted turns."""
    environment = os.environ | {"JAXASR_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    field = engines(options, streams)
    with running(field, environment) as turns:
        for turn in turns:
            turn.take()
        rounds = [{turn.engine.name: turn.take() for turn in turns} for _ in range(options.rounds)]
    return {"streams": streams, "rounds": rounds, "against": {engine.name: engine.against for engine in field}}


def page(results: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The Markdown of all sizes."""
    lines = [
        machine(options.threads) + ".",
        "",
        f"{options.chunks} chunks, {options.rounds} rounds.",
        "",
        "| streams | engine | latency of a chunk, median (95 %), ms | streams per core in real time | against "
        "| ratio (lowest to highest) | peak memory, MiB | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        streams, rounds = result["streams"], result["rounds"]
        for name, against in result["against"].items():
            turns = [each[name] for each in rounds]
            latencies = sorted(latency for turn in turns for latency in turn["latencies"])
            high = latencies[min(round(0.95 * len(latencies)), len(latencies) - 1)]
            took = statistics.median(statistics.mean(turn["latencies"]) for turn in turns)
            ratios = sorted(sum(r[against]["latencies"]) / sum(r[name]["latencies"]) for r in rounds) if against else []
            cells = (
                str(streams),
                name,
                f"{1e3 * statistics.median(latencies):.1f} ({1e3 * high:.1f})",
                f"{streams * turns[0]['chunk_s'] / took / options.threads:.1f}",
                against or "",
                f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else "",
                f"{turns[-1]['peak_mib']:.0f}",
                str(turns[-1]["tokens"]),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--funasr", type=Path, metavar="DIR", help="made by funasr_models.py --online")
    parser.add_argument("--funasr-python", metavar="PYTHON", help="an interpreter that has FunASR")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", type=lambda names: names.split(","), default=DTYPES, help="of ours, with commas")
    parser.add_argument("--json", type=Path, help="keep every single time here")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as cache:
        for streams in options.streams.split(","):
            results.append(race(options, int(streams), Path(cache)))
            print(f"{streams} done", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"results": results}, indent=1) + "\n")
    print(page(results, options))


if __name__ == "__main__":
    main()
