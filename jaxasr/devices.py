"""The types that a model computes in, and JAX as it is to be while it does: decided once and in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge  # which alone knows whether JAX has been used

from jaxasr.errors import ConfigError, ModelError

DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The types of a run: `weights` of kernels and embeddings, `activations` between the layers.

    Biases, norms and scales stay float32 in memory. On a CPU activations stay float32, since only products are faster
    in narrow types there; on GPU and TPU they take the type of the weights.
    """

    weights: jnp.dtype
    activations: jnp.dtype

    def cast(self, params: dict[str, Any], put: Callable[[Any], Any] = lambda leaf: leaf) -> dict[str, Any]:
        """Nested parameters, stored in whatever type: kernels and embeddings in that of the weights, float32 others.

        An array that has its type already is not copied. Arrays of the host are cast there: on a device the cast would
        be a program for every shape. `put`: where each one goes before the next one is cast.
        """
        cast: dict[str, Any] = {}
        for name, value in params.items():
            if isinstance(value, dict):
                cast[name] = self.cast(value, put)
                continue
            dtype = self.weights if name in ("kernel", "embedding") else jnp.dtype(jnp.float32)
            with np.errstate(over="ignore"):  # float16 ends at infinity, on the host as on devices
                cast[name] = put(value if value.dtype == dtype else value.astype(dtype))
        return cast


def policy(dtype: str) -> Policy:
    """The policy that an option such as "bfloat16" means on this machine; ConfigError for another word."""
    if dtype not in get_args(DTypeName):
        raise ConfigError(f"dtype {dtype!r} is none of {', '.join(get_args(DTypeName))}")
    weights = jnp.dtype(dtype)
    return Policy(weights, jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else weights)


@contextlib.contextmanager
def usual_settings() -> Iterator[None]:
    """JAX's own defaults, inside and in this thread, whatever the host program has set for the arrays of its own."""
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.enable_x64(False),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.transfer_guard("allow"),
            jax.disable_jit(False),
        ):
            stack.enter_context(setting)
        yield


_lost = False  # JAX was used before this process was forked, and its threads are the parent's alone


def _note_fork() -> None:
    global _lost
    _lost = _lost or xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def is_lost() -> bool:
    """Whether this process was forked after JAX was used: every computation would wait for ever in it."""
    return _lost


def check_process() -> None:
    """ModelError in a process that is lost to JAX."""
    if _lost:
        raise ModelError(
            "JAX was used before this process was forked, and does not work in it: start processes by spawn "
            "(multiprocessing.get_context('spawn')), or fork before a model is loaded and JAX is used"
        )
