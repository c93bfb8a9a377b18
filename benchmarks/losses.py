"""Time the transducer loss, forward and backward, against an encoder's step and torchaudio's loss.

    python benchmarks/losses.py [--vocabulary 500] [--encoder librispeech_zipformer_small] [--torchaudio PYTHON]

`--torchaudio` names a Python that has torch and torchaudio; without it jaxasr runs alone. Every engine is a process of
its own and they take turns, as in race.py. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from racing import Engine, machine, running

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=500, help="encoded frames, at 25 Hz")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--vocabulary", type=int, default=500)
    parser.add_argument("--width", type=int, default=512, help="of the joiner")
    parser.add_argument("--budgets", default="0,256,64", help="MiB of joiner outputs at a time; 0: all")
    parser.add_argument("--encoder", help="a name of configs/ whose encoder is timed beside the loss")
    parser.add_argument("--torchaudio", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    names = ("threads", "batch", "frames", "labels", "vocabulary", "width")
    size = tuple(text for name in names for text in (f"--{name}", str(getattr(options, name))))
    ours = str(HERE / "engines/loss_part.py")
    field = []
    if options.torchaudio:
        script = (str(HERE / "engines/torchaudio_loss.py"), *size)
        field.append(Engine("torchaudio", script, python=options.torchaudio))
    for budget in options.budgets.split(","):
        name = f"loss, {budget} MiB at a time" if float(budget) else "loss, whole"
        against = "torchaudio" if options.torchaudio else None
        field.append(Engine(name, (ours, *size, "--budget", budget), against))
    if options.encoder:
        field.append(Engine("encoder", (ours, *size, "--encoder", options.encoder)))
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAXASR_CACHE": cache, "JAX_PLATFORMS": "cpu"}
        with running(field, environment) as turns:
            first = {turn.engine.name: turn.take() for turn in turns}
            rounds = [{turn.engine.name: turn.take() for turn in turns} for _ in range(options.rounds)]
    shape = f"B {options.batch}, T {options.frames}, U {options.labels}, V {options.vocabulary}, J {options.width}"
    versions = [facts["version"] for facts in first.values() if "version" in facts]
    print(f"{', '.join([machine(options.threads), *versions])}.\n")
    print(f"{shape}, {options.rounds} rounds, forward and backward:\n")
    print("| engine | seconds a step (lowest to highest) | ratio to torchaudio | temporaries, MiB | peak memory, MiB |")
    print("|---|---|---|---|---|")
    for engine in field:
        times = sorted(r[engine.name]["seconds"] for r in rounds)
        ratio = ""
        if engine.against:
            ratios = [r[engine.against]["seconds"] / r[engine.name]["seconds"] for r in rounds]
            ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        temporary = first[engine.name].get("temporary_mib")
        cells = (
            f"{options.encoder}'s encoder" if engine.name == "encoder" else engine.name,
            f"{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})",
            ratio,
            f"{temporary:.0f}" if temporary is not None else "",
            f"{rounds[-1][engine.name]['peak_mib']:.0f}",
        )
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
