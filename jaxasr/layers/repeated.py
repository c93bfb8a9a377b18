"""Equal layers of one network, traced once for all of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@functools.partial(jax.jit, static_argnums=0)
def run_layer(graph: nnx.GraphDef[Any], state: nnx.State[Any, Any], *inputs: Any) -> Float[Array, "B T D"]:
    """A layer's call, traced once for all layers of the same structure; XLA then inlines it."""
    called: jax.Array = nnx.merge(graph, state)(*inputs)
    return called
