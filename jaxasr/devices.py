"""The types that a model computes in on the machine that it runs on, decided once and in one place."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

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
