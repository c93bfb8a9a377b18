"""Types and settings of the machine that a model runs on, decided once and in one place."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxasr.caches import cache_folder
from jaxasr.errors import ConfigError

DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The types of a run: `weights` of kernels and embeddings, `activations` between the layers.

    Biases, norms and scales stay float32 in memory. On a CPU activations stay float32, since only products are faster
    in narrow types there; on GPU and TPU they take the type of the weights.
    """

    weights: jnp.dtype
    activations: jnp.dtype

    def cast(self, params: dict[str, Any]) -> dict[str, Any]:
        """Nested parameters, stored in whatever type: kernels and embeddings in that of the weights, float32 others."""
        return {
            name: self.cast(value)
            if isinstance(value, dict)
            else value.astype(self.weights if name in ("kernel", "embedding") else jnp.float32)
            for name, value in params.items()
        }


def policy(dtype: str) -> Policy:
    """The policy that an option such as "bfloat16" means on this machine; ConfigError for another word."""
    if dtype not in get_args(DTypeName):
        raise ConfigError(f"dtype {dtype!r} is none of {', '.join(get_args(DTypeName))}")
    weights = jnp.dtype(dtype)
    return Policy(weights, jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else weights)


@functools.cache
def prepare() -> None:
    """Settings of the process that must stand before the first computation: compilation cache and memory reuse."""
    if not jax.config.jax_compilation_cache_dir and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    # Every program is worth keeping: by default only those that took over a second to compile are.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: XLA allocates anew on every call, and page faults cost up to a third of it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
    mallopt(-8, 1)  # M_ARENA_MAX: one heap for all of XLA's threads
