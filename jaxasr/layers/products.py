"""The one door for products with a weight: operand types, accumulation and precision are decided here and nowhere else.

Each kind of product is one function that takes the kernel as it is stored. The type of a kernel decides how a matrix or
a convolution multiplies: the activation is cast to it, sums are kept in float32, and the result returns in the
activation's type. So bfloat16 kernels run as bfloat16 products whether the activations around them are bfloat16 (GPU,
TPU) or float32 (CPU, where narrow element-wise arithmetic is slow). Depthwise and grouped products are element-wise
arithmetic, which runs in the activation's type.

A kernel may be a QuantizedArray. It is dequantized here, inside the product, or multiplied as integers with activations
that are quantized here: its own `activations` says which. What only float arithmetic does well (depthwise, grouped and
two-dimensional convolutions, embeddings) dequantizes either way, and so do all convolutions where activations have a
zero: `multiplied` in quant/rules.py says so to all that ask. A matrix or a convolution whose kernel is a WatchedArray
tells what it is multiplied by.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from jaxasr.quant.activations import quantize_activations, quantize_from_zero
from jaxasr.quant.array import QuantizedArray
from jaxasr.quant.rules import multiplied
from jaxasr.quant.watched import WatchedArray

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Shaped

# Shifted products that XLA fuses into one loop; more of them at once spill registers and run at half the speed.
TAPS_PER_LOOP = 8


def precision_of(dtype: jnp.dtype) -> lax.Precision:
    """Float32 products are true float32 on every device; narrower ones take the device's own unit."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def linear_product(
    x: Float[Array, "*batch in"],
    kernel: Float[Array, "in out"] | QuantizedArray | WatchedArray,
    bias: Float[Array, " out"] | None = None,
) -> Float[Array, "*batch out"]:
    """x (..., in) times kernel (in, out) plus bias (out,): (..., out) in x's type."""
    if isinstance(kernel, WatchedArray):
        kernel.tell(x)
        kernel = kernel.weights
    if isinstance(kernel, QuantizedArray) and kernel.activations == "int8":
        integers, steps = quantize_activations(x, kernel.ranges, kernel.step)
        product = _integer_sums(integers, kernel) * steps
    elif isinstance(kernel, QuantizedArray) and kernel.activations == "uint8":
        product = _product_from_zero(x, kernel)
    else:
        product = lax.dot_general(
            _rounded(x, kernel).astype(kernel.dtype),
            _weights(kernel),
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=precision_of(kernel.dtype),
            preferred_element_type=jnp.float32,
        )
    if bias is not None:
        product = product + bias.astype(jnp.float32)
    return product.astype(x.dtype)


def convolution_product(
    x: Float[Array, "B H W in"],
    kernel: Float[Array, "height width in out"] | QuantizedArray | WatchedArray,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "B _ _ out"]:
    """x (B, H, W, in) convolved with kernel (height, width, in, out): (B, H', W', out) in x's type.

    Over H alone (width 1) integers are multiplied too, as a sum of shifted products: XLA's own convolution of integers
    is slow on a CPU.
    """
    if isinstance(kernel, WatchedArray):
        windows = _windows(x, (kernel.shape[0], kernel.shape[1]), strides, padding)
        kernel.tell(jnp.concatenate(list(windows.values()), axis=-1))
        kernel = kernel.weights
    if x.shape[-1] == 1:
        return _single_channel_convolution(x, _weights(kernel), strides, padding)
    # What integers are not multiplied with is not rounded for them either.
    way = multiplied(kernel.activations, "convolution", kernel.shape) if isinstance(kernel, QuantizedArray) else "float"
    if way == "int8":
        assert isinstance(kernel, QuantizedArray)
        return _integer_convolution(x, kernel, strides, padding)
    y = lax.conv_general_dilated(
        (_rounded(x, kernel) if way == "fake" else x).astype(kernel.dtype),
        _weights(kernel),
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision_of(kernel.dtype),
    )
    return y.astype(x.dtype)


def _weights(kernel: Float[Array, "*weights"] | QuantizedArray) -> Float[Array, "*_"]:
    """The kernel in floats of its type."""
    return kernel.dequantize() if isinstance(kernel, QuantizedArray) else kernel


def _rounded(x: Float[Array, "*shape"], kernel: Float[Array, "*weights"] | QuantizedArray) -> Float[Array, "*shape"]:
    """x, or the floats that its integers would stand for where the kernel asks for these."""
    if not isinstance(kernel, QuantizedArray) or kernel.activations != "fake":
        return x
    integers, steps = quantize_activations(x, kernel.ranges, kernel.step)
    return (integers * steps).astype(x.dtype)


def _integer_sums(x: Int[Array, "*batch in"], kernel: QuantizedArray) -> Float[Array, "*batch out"]:
    """Integers x (..., in) times what kernel (in, out) stands for, float32: (..., out).

    The sum of x * (q - z) * s over the values that share a grid is s * (sum of x * q - z * sum of x), both sums exact
    in int32: int8 with a magnitude of 128 fills it after 131,072 products.
    """
    zero, length = kernel.zero, kernel.length
    if kernel.block is None:
        sums = _integer_product(x, kernel)
        scale = kernel.scale[0].astype(jnp.float32)
        return (sums.astype(jnp.float32) - _zeros(x, None if zero is None else zero[0])) * scale
    weights, whole, blocks = kernel.values(), length // kernel.block * kernel.block, length // kernel.block
    total = jnp.zeros((), jnp.float32)
    if blocks:
        split = x[..., :whole].reshape(*x.shape[:-1], blocks, kernel.block)
        taps = weights[:whole].reshape(blocks, kernel.block, -1)
        total = total + _block_sums(split, taps, kernel.scale[:blocks], None if zero is None else zero[:blocks])
    if whole < length:
        rest = x[..., None, whole:], weights[None, whole:]
        total = total + _block_sums(*rest, kernel.scale[blocks:], None if zero is None else zero[blocks:])
    return total


def _integer_product(x: Int[Array, "*batch in"], kernel: QuantizedArray) -> Int[Array, "*batch out"]:
    """int8 x (..., in) times the integers of kernel (in, out): (..., out) int32.

    A row by itself is multiplied twice: XLA's loop for one vector of integers takes three times as long on a CPU. There
    integers of 8 bits have to be contracted as they lie: their transpose would be multiplied in 32 bits.
    """
    weights, inputs = (kernel.integers, 1) if kernel.bits == 8 else (kernel.values(), 0)
    rows = x.reshape(-1, x.shape[-1])
    alone = rows.shape[0] == 1
    sums = lax.dot_general(
        jnp.concatenate([rows, rows]) if alone else rows,
        weights,
        (((1,), (inputs,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return (sums[:1] if alone else sums).reshape(*x.shape[:-1], -1)


def _product_from_zero(x: Float[Array, "*batch in"], kernel: QuantizedArray) -> Float[Array, "*batch out"]:
    """x (..., in), quantized with a zero, times what kernel (in, out) stands for, float32: (..., out).

    ONNX's DynamicQuantizeLinear, MatMulInteger and the product with both scales. The sum of (x - a) * (q - z) is that
    of x * q, less a times the sum of q and z times the sum of x - a: exact in int32 where z is an integer, and x is
    signed as CPUs want it.
    """
    integers, zeros, steps = quantize_from_zero(x, kernel.ranges)
    if kernel.block is not None:
        rest = _integer_sums(jnp.ones((1, kernel.length), jnp.int8), kernel)[0] * zeros.astype(jnp.float32)
        return (_integer_sums(integers, kernel) - rest) * steps
    sums = _integer_product(integers, kernel)
    assert kernel.sums is not None
    sums = sums - zeros * kernel.sums[0]
    scale = steps * kernel.scale[0].astype(jnp.float32)
    if kernel.zero is None:
        return sums.astype(jnp.float32) * scale
    zero = kernel.zero[0].astype(jnp.float32)
    whole = jnp.round(zero)
    taken = integers.sum(-1, dtype=jnp.int32, keepdims=True) - kernel.length * zeros
    sums = sums - taken * whole.astype(jnp.int32)
    return (sums.astype(jnp.float32) - taken.astype(jnp.float32) * (zero - whole)) * scale


def table_operands(
    x: Float[Array, "*batch D"], table: Float[Array, "N D"] | QuantizedArray
) -> tuple[Float[Array, "*batch D"], Float[Array, "N D"], Float[Array, "*#batch 1"] | None]:
    """x (..., D) and the rows of a table (N, D) as what to multiply, and by what the sums of products are multiplied.

    For products over a few entries of D, such as those of one head. Activations that are to be quantized, and a table
    with one scale, are integers in float32, whose sums are exact: products are below 2^16. All else is as it is, and
    the last result None.
    """
    if not isinstance(table, QuantizedArray) or table.activations != "uint8" or table.scale.size > 1:
        return x, _weights(table).astype(x.dtype), None
    integers, zeros, steps = quantize_from_zero(x, table.ranges)
    rows = table.values().astype(jnp.float32)
    if table.zero is not None:
        rows = rows - table.zero.astype(jnp.float32)
    return (integers - zeros).astype(jnp.float32), rows, steps * table.scale.astype(jnp.float32).reshape(())


def _block_sums(
    x: Int[Array, "*batch N K"],
    weights: Int[Array, "N K out"],
    scale: Float[Array, "N _"],
    zero: Float[Array, "N _"] | None,
) -> Float[Array, "*batch out"]:
    """The products of N blocks by themselves, each times its scale, added up."""
    contracted, batched = ((x.ndim - 1,), (1,)), ((x.ndim - 2,), (0,))
    sums = lax.dot_general(x, weights, (contracted, batched), preferred_element_type=jnp.int32)  # (N, ..., out)
    sums = jnp.moveaxis(sums, 0, -2).astype(jnp.float32) - _zeros(x, zero)
    return (sums * scale.astype(jnp.float32)).sum(-2)


def _zeros(x: Int[Array, "*batch K"], zero: Float[Array, "*_"] | None) -> Float[Array, "*_"]:
    """What zeros take off sums of products: zero times the sum of x (..., K) over its last axis."""
    if zero is None:
        return jnp.zeros((1,), jnp.float32)
    return zero.astype(jnp.float32) * x.sum(-1, dtype=jnp.int32, keepdims=True).astype(jnp.float32)


def _integer_convolution(
    x: Float[Array, "B H W in"],
    kernel: QuantizedArray,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "B _ _ out"]:
    """Integers x convolved over H: a product for each tap, whose activations keep their own steps."""
    integers, steps = quantize_activations(x, kernel.ranges, kernel.step)
    size = (kernel.shape[0], 1)
    windows = _windows(integers, size, strides, padding)
    scales = _windows(jnp.broadcast_to(steps, (*x.shape[:-1], 1)), size, strides, padding)
    products = (_integer_sums(windows[i, 0], kernel.tap(i)) * scales[i, 0] for i in range(size[0]))
    return functools.reduce(operator.add, products).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _single_channel_convolution(
    x: Float[Array, "B H W 1"],
    kernel: Float[Array, "height width 1 out"],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "B _ _ out"]:
    """One input channel: a few shifted multiples, which on CPU take a tenth of XLA's convolution's time."""
    taps = kernel[:, :, 0].astype(x.dtype)
    windows = _windows(x, (taps.shape[0], taps.shape[1]), strides, padding)
    return functools.reduce(operator.add, (windows[tap] * taps[tap] for tap in windows))


def _single_channel_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _single_channel_convolution(x, kernel, strides, padding), (x, kernel)


def _single_channel_backward(
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    saved: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A product each, where the transposed program would keep every shifted copy of x in all channels."""
    x, kernel = saved
    taps = kernel[:, :, 0].astype(dy.dtype)
    flat = dy.reshape(-1, dy.shape[-1])
    size = (taps.shape[0], taps.shape[1])
    windows, back = jax.vjp(lambda x: jnp.stack(list(_windows(x, size, strides, padding).values())), x)
    dkernel = batched_product(windows.reshape(len(windows), -1).astype(dy.dtype), flat)
    dwindows = batched_product(taps.reshape(len(windows), -1), flat.T)
    (dx,) = back(dwindows.reshape(windows.shape).astype(x.dtype))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


_single_channel_convolution.defvjp(_single_channel_forward, _single_channel_backward)


def _windows(
    x: Shaped[Array, "B H W C"],
    size: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> dict[tuple[int, int], Shaped[Array, "B _ _ C"]]:
    """What each tap of a kernel of this size is multiplied by: x (B, H, W, C), padded, from that row and column on."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return {tap: _strided(x, tap, size, strides) for tap in itertools.product(range(size[0]), range(size[1]))}


def _strided(
    x: Shaped[Array, "B H W C"], tap: tuple[int, int], size: tuple[int, int], strides: tuple[int, int]
) -> Shaped[Array, "B _ _ C"]:
    """The values of x that a valid convolution with these strides multiplies by one tap of a kernel of this size."""
    last = (x.shape[1] - size[0] + tap[0], x.shape[2] - size[1] + tap[1])
    return x[:, tap[0] : last[0] + 1 : strides[0], tap[1] : last[1] + 1 : strides[1]]


def depthwise_product(
    x: Float[Array, "B *space C"],
    kernel: Float[Array, "*window 1 C"] | QuantizedArray,
    strides: tuple[int, int] = (1, 1),
) -> Float[Array, "B ... C"]:
    """Valid depthwise convolution, in x's type, over one axis or two.

    x (B, T, C), kernel (width, 1, C) -> (B, T - width + 1, C), or x (B, H, W, C), kernel (height, width, 1, C) ->
    (B, H - height + 1, W - width + 1, C), of which `strides` takes every such row and column. On TPU XLA's own
    depthwise convolution reads its input once. Elsewhere the product is a sum of shifted multiples: on a CPU XLA's own
    is tens of times slower (docs/benchmarks.md).
    """
    taps = _weights(kernel).astype(x.dtype)
    if taps.ndim == 3:
        return depthwise_product(x[:, :, None], taps[:, None])[:, :, 0]

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
            precision=precision_of(x.dtype),
        )

    sums = functools.partial(_shifted_sums, strides=strides)
    y: jax.Array = lax.platform_dependent(x, taps, tpu=native, default=sums)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_sums(
    x: Float[Array, "B H W C"], kernel: Float[Array, "height width 1 C"], strides: tuple[int, int]
) -> Float[Array, "B _ _ C"]:
    """x (B, H, W, C), kernel (h, w, 1, C): the taps' shifted multiples of x added up."""
    height, width = kernel.shape[:2]
    taps = [
        _strided(x, (i, j), (height, width), strides) * kernel[i, j, 0] for i in range(height) for j in range(width)
    ]
    return _in_groups(taps, width if width > 1 else TAPS_PER_LOOP)


def _shifted_sums_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_sums(x, kernel, strides), (x, kernel)


def _shifted_sums_backward(
    strides: tuple[int, int], saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Again shifted sums, where the transposed program would be one padded copy of x for each tap."""
    x, kernel = saved
    height, width = kernel.shape[:2]
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    if strides != (1, 1):  # zeros where a stride passes over
        down, across = strides
        beyond = (rows - 1) % down, (columns - 1) % across
        edges = ((0, 0, 0), (0, beyond[0], down - 1), (0, beyond[1], across - 1), (0, 0, 0))
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), edges)
    surrounded = jnp.pad(dy, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)))
    dx = _shifted_sums(surrounded, kernel[::-1, ::-1], (1, 1))

    def row_of_taps(i: jax.Array) -> jax.Array:
        band = lax.dynamic_slice_in_dim(x, i, rows, axis=1)
        products = [band[:, :, j : j + columns] * dy for j in range(width)]
        return jnp.stack([product.sum((0, 1, 2), dtype=jnp.float32) for product in products])

    dkernel = lax.map(row_of_taps, jnp.arange(height))  # (h, w, C)
    return dx, dkernel[:, :, None].astype(kernel.dtype)


_shifted_sums.defvjp(_shifted_sums_forward, _shifted_sums_backward)


def _in_groups(taps: list[Float[Array, "*shape"]], size: int) -> Float[Array, "*shape"]:
    """The sum of `taps`, `size` of them in a loop."""
    total = _barrier(functools.reduce(operator.add, taps[:size]))
    for start in range(size, len(taps), size):
        total = _barrier(total + functools.reduce(operator.add, taps[start : start + size]))
    return total


def _barrier(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x, computed by itself: XLA fuses nothing across it."""
    y: jax.Array = lax.optimization_barrier(x)
    return y


def grouped_product(
    steps: Sequence[Float[Array, "B C"]], kernel: Float[Array, "width per_group out"] | QuantizedArray
) -> Float[Array, "B out"]:
    """One output of a grouped convolution over time: its window's steps (B, C), kernel (width, in, out) -> (B, out).

    The kernel has C / in groups. It is multiplied in the type of the steps: a few numbers a group fill no matrix unit.
    """
    taps = _weights(kernel).astype(steps[0].dtype)
    return functools.reduce(operator.add, (_grouped(step, taps[place]) for place, step in enumerate(steps)))


def _grouped(x: Float[Array, "B C"], tap: Float[Array, "per_group out"]) -> Float[Array, "B out"]:
    """x (B, groups * in), tap (in, groups * out): (B, groups * out), written out since `in` is small."""
    inputs = tap.shape[0]
    groups = x.reshape(x.shape[0], -1, 1, inputs)  # (B, groups, 1, in)
    taps = tap.reshape(inputs, groups.shape[1], -1)  # (in, groups, out)
    return functools.reduce(operator.add, (groups[..., k] * taps[k] for k in range(inputs))).reshape(x.shape[0], -1)


def embed(table: Float[Array, "vocabulary D"] | QuantizedArray, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of a table (vocabulary, D) in its own type: ids (...) int32 -> (..., D)."""
    return table.rows(ids) if isinstance(table, QuantizedArray) else table[ids]


def batched_product(a: Float[Array, "*#batch M K"], b: Float[Array, "*#batch K N"]) -> Float[Array, "... M N"]:
    """Activation times activation: a (..., M, K), b (..., K, N) -> (..., M, N), summed in float32, in a's type."""
    return jnp.matmul(a, b, precision=precision_of(a.dtype), preferred_element_type=jnp.float32).astype(a.dtype)
