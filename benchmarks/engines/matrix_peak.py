"""The machine's matrix peak: the best rate that a large product reaches in numpy and in a jitted JAX function."""

from __future__ import annotations

import argparse

from turns import take_turns, use_cores

SIZES = (1024, 2048)
REPEATS = 5

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, required=True)
options = parser.parse_args()
use_cores(options.threads)

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402


def rate(multiply: Callable[[Any, Any], Any], a: Any, b: Any) -> float:
    """The best of several runs, in operations a second."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(multiply(a, b))
        times.append(time.perf_counter() - started)
    return 2 * a.shape[0] ** 3 / min(times)


@jax.jit
def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def run() -> dict[str, Any]:
    best = {"numpy_float32": 0.0, "jax_float32": 0.0, "jax_bfloat16": 0.0}
    for size in SIZES:
        a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
        for name, multiply, dtype in (
            ("numpy_float32", np.matmul, None),
            ("jax_float32", product, jnp.float32),
            ("jax_bfloat16", product, jnp.bfloat16),
        ):
            pair = (a, b) if dtype is None else (jnp.asarray(a, dtype), jnp.asarray(b, dtype))
            best[name] = max(best[name], rate(multiply, *pair))
    return best


take_turns(run, run)
