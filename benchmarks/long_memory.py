"""Peak memory of `jaxasr transcribe` on one long file beside that on a short one, each in a process of its own.

    python benchmarks/long_memory.py [MODEL] [--minutes 10,180] [--vad none|energy|MODEL]

MODEL is a model directory; if unset a tiny one with random weights, whose arrays take no room beside the sound. That
one is kept from saying anything: it would say many tokens a second, all of which a transcript keeps. The sound is
16-bit WAV of one channel, with pauses. Compiled programs are made before, so that both find them in the cache.
Memory is the largest resident size of the process (Linux).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from jaxasr.speechlike import RATE, speechlike
from jaxasr.testing import tiny_model_directory

MINUTE = 60  # s of sound that are made at once, and written again and again, each time at another level


def write(path: Path, minutes: int) -> None:
    """So many minutes of sound."""
    sound = speechlike(MINUTE, seed=1)
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        for number in range(minutes):
            file.write(np.roll(sound, 7919 * number) * (0.5 + 0.5 * (number % 7) / 6))


def run(arguments: list[str]) -> tuple[int, float]:
    """`jaxasr transcribe` in a new process: the largest resident size in KiB, and seconds."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxasr", "transcribe", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"jaxasr transcribe ended with {process.returncode}")
    return usage.ru_maxrss, time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model directory")
    parser.add_argument("--minutes", default="10,180", help="of each file, the first one to compare with")
    parser.add_argument("--vad", default="energy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(tiny_model_directory(Path(folder) / "model"))
        first = 0
        for place, minutes in enumerate([1, *map(int, options.minutes.split(","))]):  # the first one fills the cache
            path = Path(folder) / f"{minutes}.wav"
            write(path, minutes)
            silent = [] if options.model else ["--blank-penalty", "-100"]
            peak, seconds = run([str(path), "--model", model, "--vad", options.vad, *silent])
            path.unlink()
            if place:
                first = first or peak
                print(f"{minutes} minutes: {peak / 1024:.0f} MiB, {peak / first:.2f} of the first, {seconds:.0f} s")


if __name__ == "__main__":
    main()
