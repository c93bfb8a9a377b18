"""QuantizedArray: integers, scales and zeros that stand wherever a kernel or an embedding stands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxasr.arrays import ceil_div
from jaxasr.quant.activations import LARGEST
from jaxasr.quant.numbers import (
    Bounds,
    Grid,
    dequantize,
    grid_of,
    max_bounds,
    percentile_bounds,
    quantize,
    searched_bounds,
)
from jaxasr.quant.packing import pack, packed_shape, unpack, unpacked_shape
from jaxasr.quant.rules import PACKED_AXIS, Activations, Layer, Ranges, Rule, needs_range

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


PARTS = ("integers", "scale", "zero", "sums", "step")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=list(PARTS),
    meta_fields=["bits", "axis", "length", "block", "activations", "ranges", "dtype"],
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedArray:
    """An array of integers that stand for floats: (q - zero) * scale.

    `integers`: int8 or uint8, as `packing` packs values of `bits` along `axis`, which is negative. `scale`, `zero`
    (None for a symmetric grid): as many axes as the array, of length 1 where the values share a grid; along `axis` one
    for each `block` of so many values, of which the last may be shorter (None: one for all). `length`: values along
    `axis`. `sums`: what the integers along `axis` add up to, int32 and shaped as the scale of a channel, where the
    activations have a zero and there are no blocks, else None: to add up all weights again would cost as much as a
    product with a few tokens. `step`: of the integers of activations where their range is static, float32 of size 1,
    else None.
    `activations`, `ranges`: how it is multiplied, as `Rule` says. `dtype`: the type of float that it stands for.
    """

    integers: jax.Array
    scale: jax.Array
    zero: jax.Array | None
    sums: jax.Array | None
    step: jax.Array | None
    bits: int
    axis: int
    length: int
    block: int | None
    activations: Activations
    ranges: Ranges
    dtype: jnp.dtype

    @property
    def ndim(self) -> int:
        """Axes of the array that it stands for."""
        return len(self.integers.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return unpacked_shape(self.integers.shape, self.bits, self.axis, self.length)

    def astype(self, dtype: DTypeLike) -> QuantizedArray:
        """The same integers, standing for floats of another type."""
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def values(self) -> Int[Array, "*_"]:
        """The integers, int8 and unpacked, in the array's shape."""
        return unpack(self.integers, self.bits, self.axis, self.length)

    def dequantize(self) -> Float[Array, "*_"]:
        """The floats that it stands for, in its type."""
        scale, zero = self.spread(self.scale), None if self.zero is None else self.spread(self.zero)
        return dequantize(self.values(), Grid(scale, zero)).astype(self.dtype)

    def rows(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Rows of a table (vocabulary, D) as floats: ids (...) -> (..., D); no other rows are unpacked."""

        def chosen(grid: jax.Array) -> jax.Array:
            return grid[ids] if grid.shape[0] > 1 else grid[jnp.zeros_like(ids)]

        zero = None if self.zero is None else chosen(self.zero)
        taken = dataclasses.replace(self, integers=self.integers[ids], scale=chosen(self.scale), zero=zero)
        return taken.dequantize()

    def tap(self, number: int) -> QuantizedArray:
        """One tap of a convolution's kernel (taps, 1, in, out): (in, out)."""

        def at(array: jax.Array) -> jax.Array:
            return array[number if array.shape[0] > 1 else 0, 0]

        parts: dict[str, Any] = {name: at(part) for name, part in parts_of(self).items()}
        return dataclasses.replace(self, **parts)

    def __getitem__(self, index: Any) -> QuantizedArray:
        """Slices of axes other than the packed one, and new axes of length 1; IndexError for any other index."""
        entries = list(index) if isinstance(index, tuple) else [index]
        named = sum(entry is not None and entry is not ... for entry in entries)
        at = entries.index(...) if ... in entries else len(entries)
        entries[at : at + 1] = [slice(None)] * (self.ndim - named)
        places = [place for place, entry in enumerate(entries) if entry is not None]  # of our axes in the result
        packed = places[self.ndim + self.axis]
        if not all(entry is None or isinstance(entry, slice) for entry in entries) or entries[packed] != slice(None):
            raise IndexError(f"{index} does not keep the axes of a quantized array, or cuts the packed one")

        def cut(array: jax.Array) -> jax.Array:
            sizes = iter(array.shape)  # where values share a grid its axis has length 1
            return array[tuple(None if each is None else slice(None) if next(sizes) == 1 else each for each in entries)]

        axis = packed - len(entries)
        parts: dict[str, Any] = {name: cut(part) for name, part in parts_of(self).items() if name != "integers"}
        if self.bits == 8:
            integers = pack(cut(self.values()), 8, axis)
        else:
            integers = cut(self.integers)
        return dataclasses.replace(self, integers=integers, **parts, axis=axis)

    def spread(self, grid: jax.Array) -> jax.Array:
        """Scales or zeros of blocks, one for each value along the packed axis."""
        if self.block is None:
            return grid
        at = self.ndim + self.axis
        whole = jnp.repeat(grid, self.block, axis=at, total_repeat_length=grid.shape[at] * self.block)
        return jax.lax.slice_in_dim(whole, 0, self.length, axis=at)


def quantize_array(
    weights: jax.Array | np.ndarray, rule: Rule, layer: Layer, largest: float | None = None
) -> QuantizedArray:
    """The weights of a layer of this kind, as a rule quantizes them.

    `largest`: the magnitude of activations that a static range ends at. ValueError where the rule leaves the weights in
    float, or has such a range and none is given.
    """
    _bits(rule)
    # One program for all rules that say the same of other paths.
    made: QuantizedArray = _quantized(weights, dataclasses.replace(rule, path="*"), layer)
    if not needs_range(rule, layer, weights.shape):
        return made
    if largest is None:
        raise ValueError(f"{rule.path}: a static range of activations is to be measured, and nothing was heard")
    step = np.full((1,) * weights.ndim, largest / LARGEST if largest else 1.0, np.float32)
    return dataclasses.replace(made, step=jnp.asarray(step))


@functools.partial(jax.jit, static_argnames=("rule", "layer"))
def _quantized(weights: jax.Array, rule: Rule, layer: Layer) -> QuantizedArray:
    bits, axis = _bits(rule), PACKED_AXIS[layer]
    at = weights.ndim + axis
    length = weights.shape[at]
    shared = _shared_axes(weights.ndim, rule, layer)
    integers, grids = [], []
    for piece in _in_blocks(weights.astype(jnp.float32), at, rule.block):
        grid = grid_of(_bounds(piece, shared, rule), bits, rule.symmetric, rule.scale_type)
        values = quantize(piece, grid, bits)
        integers.append(values.reshape(*values.shape[:at], -1, *values.shape[at + 2 :]))
        grids.append(jax.tree.map(lambda array: jnp.squeeze(array, at + 1), grid))
    grid = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=at), *grids)
    values = jnp.concatenate(integers, axis=at)
    sums = values.sum(at, dtype=jnp.int32, keepdims=True) if _summed(rule, layer) else None
    return _assembled(pack(values, bits, axis), grid, sums, rule, layer, length)


def abstract_array(shape: tuple[int, ...], rule: Rule, layer: Layer) -> QuantizedArray:
    """Shapes and types of what `quantize_array` makes of weights of this shape, without tracing it."""
    bits, at = _bits(rule), len(shape) + PACKED_AXIS[layer]
    blocks = 1 if rule.block is None else ceil_div(shape[at], rule.block)
    whole = (*shape[:at], blocks, 1, *shape[at + 1 :])
    shared = _shared_axes(len(shape), rule, layer)
    sizes = [1 if place in shared else size for place, size in enumerate(whole)]
    stored: Any = jax.ShapeDtypeStruct((*sizes[: at + 1], *sizes[at + 2 :]), jnp.dtype(rule.scale_type))
    packed: Any = jax.ShapeDtypeStruct(
        packed_shape(shape, bits, PACKED_AXIS[layer]), jnp.int8 if bits == 8 else jnp.uint8
    )
    sums: Any = jax.ShapeDtypeStruct((*shape[:at], 1, *shape[at + 1 :]), jnp.int32) if _summed(rule, layer) else None
    made = _assembled(packed, Grid(stored, None if rule.symmetric else stored), sums, rule, layer, shape[at])
    if not needs_range(rule, layer, shape):
        return made
    step: Any = jax.ShapeDtypeStruct((1,) * len(shape), jnp.float32)
    return dataclasses.replace(made, step=step)


def assembled_array(parts: dict[str, Any], shape: tuple[int, ...], rule: Rule, layer: Layer) -> QuantizedArray:
    """The array that was taken apart to these parts; ValueError where they misfit.

    Sums that another way to multiply left out are added up, and left out where this way has none.
    """
    abstract = abstract_array(shape, rule, layer)
    if abstract.sums is None:
        parts = {name: part for name, part in parts.items() if name != "sums"}
    elif "sums" not in parts:
        bare = dataclasses.replace(abstract, sums=None, integers=parts["integers"])
        parts = parts | {"sums": bare.values().sum(abstract.axis, dtype=jnp.int32, keepdims=True)}
    wanted = {name: (part.shape, part.dtype) for name, part in parts_of(abstract).items()}
    if wanted != {name: (part.shape, part.dtype) for name, part in parts.items()}:
        raise ValueError("integers, scales, zeros, sums and steps do not fit the rules")
    return dataclasses.replace(abstract, **parts)


def parts_of(array: QuantizedArray) -> dict[str, Any]:
    """What is stored of an array, by name (PARTS), without what it has not."""
    parts = {name: getattr(array, name) for name in PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def _summed(rule: Rule, layer: Layer) -> bool:
    """Whether a product with activations that have a zero wants what the integers of each output add up to."""
    return rule.activations == "uint8" and layer == "dense" and rule.block is None


def _assembled(
    integers: jax.Array, grid: Grid, sums: jax.Array | None, rule: Rule, layer: Layer, length: int
) -> QuantizedArray:
    return QuantizedArray(
        integers=integers,
        scale=grid.scale,
        zero=grid.zero,
        sums=sums,
        step=None,
        bits=_bits(rule),
        axis=PACKED_AXIS[layer],
        length=length,
        block=rule.block,
        activations=rule.activations,
        ranges=rule.ranges,
        dtype=jnp.dtype(jnp.float32),
    )


def _bits(rule: Rule) -> int:
    if rule.bits is None:
        raise ValueError(f"{rule.path}: the rule leaves the weights in float")
    return rule.bits


def _in_blocks(weights: jax.Array, at: int, block: int | None) -> Iterator[jax.Array]:
    """The weights with the axis `at` split in two, (blocks, values): whole blocks, then the shorter one at the end."""
    length = weights.shape[at]
    whole = length // block * block if block is not None else length
    if whole:
        part = jax.lax.slice_in_dim(weights, 0, whole, axis=at)
        yield part.reshape(*part.shape[:at], -1, block or length, *part.shape[at + 1 :])
    if whole < length:
        yield jnp.expand_dims(jax.lax.slice_in_dim(weights, whole, length, axis=at), at)


def _shared_axes(ndim: int, rule: Rule, layer: Layer) -> tuple[int, ...]:
    """The axes of what `_in_blocks` gives, of which all values share a grid: of a block all but its own axis have their
    own, of a channel none but that of the channel.
    """
    if rule.block is not None:
        return (ndim + PACKED_AXIS[layer] + 1,)
    channel = 0 if layer == "embedding" else ndim
    return tuple(axis for axis in range(ndim + 1) if rule.per == "tensor" or axis != channel)


def _bounds(weights: jax.Array, axes: tuple[int, ...], rule: Rule) -> Bounds:
    if rule.bounds == "search":
        return searched_bounds(weights, axes, _bits(rule), rule.symmetric, rule.scale_type)
    if rule.bounds == "percentile":
        return percentile_bounds(weights, axes, rule.percentile)
    return max_bounds(weights, axes)
