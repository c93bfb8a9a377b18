"""A kernel that tells what it is multiplied by: for the time of a calibration it stands where the kernel stands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jax.experimental import io_callback

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Hears the path of a kernel and the rows (M, in) that it is multiplied by, float32, at every product.
Listener: TypeAlias = Callable[[str, np.ndarray], None]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["path", "listener"])
@dataclasses.dataclass(frozen=True, eq=False)
class WatchedArray:
    """`weights` as they are, the `path` that they have in the parameters, and who hears what they are multiplied by.

    Inputs of a convolution are windows: the taps one after another, of each all inputs.
    """

    weights: jax.Array
    path: str
    listener: Listener

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return self.weights.shape

    def __getitem__(self, index: Any) -> WatchedArray:
        """A part of the weights, which tells what it is multiplied by under the name of the whole."""
        return dataclasses.replace(self, weights=self.weights[index])

    def tell(self, x: Float[Array, "*batch in"]) -> None:
        """Hand x (..., in) to the listener, in the order of the program and inside loops too."""
        io_callback(self._heard, None, x.reshape(-1, x.shape[-1]).astype("float32"), ordered=True)

    def _heard(self, rows: jax.Array) -> None:
        self.listener(self.path, np.asarray(rows))
