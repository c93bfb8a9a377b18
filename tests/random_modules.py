"""Modules with random numbers in every parameter, biases included, made without compiling an initialiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def randomize(parameters: Any, seed: int, scale: float = 0.3) -> Any:
    """A tree of shapes to one of arrays: normal numbers, kernels smaller where more numbers are summed."""
    rng = np.random.default_rng(seed)

    def numbers(leaf: Any) -> np.ndarray:
        fan_in = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1
        return (rng.standard_normal(leaf.shape) * (fan_in**-0.5 if fan_in > 1 else scale)).astype(np.float32)

    return jax.tree.map(numbers, parameters)


def random_module(build: Callable[[nnx.Rngs], Any], seed: int = 0) -> tuple[Any, Any]:
    """(graph, state) of the module that `build` makes, for `nnx.merge`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return graph, randomize(state, seed)


def build(kind: Callable[..., Any], *arguments: Any, seed: int = 0) -> Any:
    """A module of this kind with random parameters."""
    graph, state = random_module(lambda rngs: kind(*arguments, rngs=rngs), seed)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, state))
