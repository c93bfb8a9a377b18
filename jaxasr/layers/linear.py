"""Linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.layers.products import linear_product

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Linear(nnx.Module):
    """x (..., in) -> (..., out); kernel (in, out), optional bias (out,).

    A new kernel is uniform in +-initial_scale / sqrt(in), which is PyTorch's default times the scale.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        initial_scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        bound = initial_scale * in_features**-0.5
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (in_features, out_features), jnp.float32, -bound, bound)
        )
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return linear_product(x, self.kernel[...], None if self.bias is None else self.bias[...])
