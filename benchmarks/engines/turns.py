"""How an engine's process takes its turns: a line of JSON asks for one run, a line of JSON answers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def use_cores(count: int) -> None:
    """Keep this process on its first `count` cores, before jax is imported: XLA makes one thread for each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def take_turns(prepare: Callable[[], dict[str, Any]], run: Callable[[], Any]) -> None:
    """Answer the first line with what `prepare` returns, every further line with the time that `run` takes.

    The answers hold seconds (wall), cpu_s (of all threads) and peak_mib (the process's largest resident size so far).
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not be taken for an answer
    first = True
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        facts = (prepare() if first else run()) or {}
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        answer = {"seconds": took, "cpu_s": cpu, "peak_mib": peak_mib()} | (facts if isinstance(facts, dict) else {})
        print(json.dumps(answer), file=answers, flush=True)
        first = False


def peak_mib() -> float:
    """The largest resident size of this process so far (MiB; VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")
