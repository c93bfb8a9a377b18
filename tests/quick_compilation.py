"""Programs compiled without most of XLA's optimizations, which take most of the time that tests would take.

Measured on an encoder and its search, on a CPU: 4.4 s of processor time instead of 14.6, and results that differ by
4e-6 of the largest. What is said about memory, the texts of a published model and the figures of the model in the
package are tested under `as_for_users`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

_JAXS, _XLAS = "JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"
_EMITTERS = "xla_cpu_use_fusion_emitters"
_WITHOUT = f"--{_EMITTERS}=false"

# For a program that runs minutes of sound: an encoder takes 3 s more to compile and a quarter of the time to run.
RUNS_LONG = {"xla_backend_optimization_level": 1}


def install() -> None:
    """For this process, which has not imported JAX, and for those that it starts; not where the caller decides."""
    if os.environ["JAX_PLATFORMS"] != "cpu" or _JAXS in os.environ:
        return
    os.environ[_JAXS] = "1"
    flags = f"{os.environ.get(_XLAS, '')} {_WITHOUT}".strip()
    if _known(flags):
        os.environ[_XLAS] = flags


def _known(flags: str) -> bool:
    """Whether this version of XLA has them: they come and go, and a process ends at one that is unknown."""
    command = [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"]
    return subprocess.run(command, env={**os.environ, _XLAS: flags}, capture_output=True).returncode == 0


def with_flags(flags: str) -> Mapping[str, str]:
    """The environment for a new process, with more of XLA's flags."""
    return {**os.environ, _XLAS: f"{os.environ.get(_XLAS, '')} {flags}".strip()}


@contextlib.contextmanager
def as_for_users() -> Iterator[None]:
    """What is lowered and compiled inside has all optimizations, here and in processes that are started inside."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    compiled = jax.stages.Lowered.compile
    flags = os.environ.get(_XLAS, "")
    options: dict[str, Any] = {_EMITTERS: True} if _WITHOUT in flags else {}

    def optimized(lowered: jax.stages.Lowered, compiler_options: Any = None) -> jax.stages.Compiled:
        return compiled(lowered, {**options, **(compiler_options or {})})

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(_JAXS, raising=False)
        patch.setenv(_XLAS, flags.replace(_WITHOUT, "").strip())
        patch.setattr(jax.stages.Lowered, "compile", optimized)
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)
