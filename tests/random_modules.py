"""Modules with random numbers in every parameter, made without compiling an initialiser; a dropout that only notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.layers.dropout import Dropout
from jaxasr.testing import random_parameters


def random_module(build: Callable[[nnx.Rngs], Any], seed: int = 0) -> tuple[Any, Any]:
    """(graph, state) of the module that `build` makes, for `nnx.merge`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return graph, random_parameters(state, seed)


def build(kind: Callable[..., Any], *arguments: Any, seed: int = 0) -> Any:
    """A module of this kind with random parameters."""
    graph, state = random_module(lambda rngs: kind(*arguments, rngs=rngs), seed)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, state))


def noting_dropout() -> tuple[Dropout, list[tuple[int, ...]]]:
    """A dropout that drops nothing, and the places where it is called: the path of members to each, and its number."""
    places: list[tuple[int, ...]] = []

    class Noted(Dropout):
        """`key` is the path of members to it."""

        def __call__(self, x: jax.Array, place: int) -> jax.Array:
            places.append((*self.key, place))
            return x

        def within(self, number: int) -> Noted:
            return Noted(self.rate, (*self.key, number))

    return Noted(jnp.asarray(0.1), ()), places
