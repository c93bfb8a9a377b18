"""Equal layers of one network, traced once for all of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def run_layer(layer: nnx.Module, *inputs: Any) -> Float[Array, "B T D"]:
    """A layer's call, traced once for all layers of the same structure; XLA then inlines it.

    Statistics that the call replaces, as those of batch norms in training, are replaced in `layer`.
    """
    output: jax.Array
    output, statistics = _run(*nnx.split(layer), *inputs)
    if statistics:
        nnx.update(layer, statistics)
    return output


@functools.partial(jax.jit, static_argnums=0)
def _run(
    graph: nnx.GraphDef[Any], state: nnx.State[Any, Any], *inputs: Any
) -> tuple[Float[Array, "B T D"], nnx.State[Any, Any]]:
    given = {id(leaf) for leaf in jax.tree.leaves(state)}  # before the call: the layer may share its variables
    layer = nnx.merge(graph, state)
    output = layer(*inputs)
    # Those alone: a layer that a caller holds from outside of its own trace must not be written to.
    replaced = nnx.state(
        layer, lambda _, value: isinstance(value, nnx.BatchStat) and id(value.get_value()) not in given
    )
    return output, replaced


def run_step(layer: nnx.Module, *inputs: Any) -> Any:
    """A layer's `step`, traced once for all layers of the same structure; XLA then inlines it."""
    return _step(*nnx.split(layer), *inputs)


@functools.partial(jax.jit, static_argnums=0)
def _step(graph: nnx.GraphDef[Any], state: nnx.State[Any, Any], *inputs: Any) -> Any:
    return nnx.merge(graph, state).step(*inputs)
