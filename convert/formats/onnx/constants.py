"""Constants of an ONNX graph, and the few operations on them that exporters and quantizers leave standing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxasr.convert.formats.onnx.files import OnnxNode
from jaxasr.convert.formats.quantized import QuantizedTensor, dequantize

# Operations on constants that are carried out; the others leave a value unknown.
FOLDED = {
    "Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Gather", "Slice", "DequantizeLinear",
    "Exp", "Softmax", "Add", "Mul",
}  # fmt: skip
_FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor known before the model runs. `sources`: the stored tensors that it comes from, by name.

    `logarithm`: the constant whose exponential or softmax this one was seen to be. `quantized`: the integers that were
    dequantized to `array`.
    """

    array: np.ndarray
    sources: frozenset[str]
    logarithm: Constant | None = None
    quantized: QuantizedTensor | None = None

    def laid_out(self, layout: Callable[[np.ndarray], np.ndarray]) -> Constant:
        """The same numbers in another layout, and their integers, unless their scales have no place there."""
        quantized = None
        if self.quantized is not None:
            try:
                quantized = self.quantized.laid_out(layout)
            except ValueError:
                pass
        return dataclasses.replace(self, array=layout(self.array), quantized=quantized)


def is_vector(constant: Constant) -> bool:
    """Floats of shape (D,) or (1, …, 1, D)."""
    array = constant.array
    return array.dtype.kind == "f" and array.ndim > 0 and 1 < array.size == array.shape[-1]


def flat(constant: Constant) -> Constant:
    """One axis of numbers, such as a bias: no weight, so that integers have no place in it."""
    return dataclasses.replace(constant, array=constant.array.reshape(-1), quantized=None)


def logarithm(constant: Constant) -> Constant:
    """The logarithm of an exponential or softmax that the exporter carried out; a weight of 0 stays finite."""
    array = constant.array
    smallest = np.finfo(array.dtype).tiny
    return Constant(np.log(np.maximum(array, smallest)).astype(array.dtype), constant.sources)


def axis_of_scales(node: OnnxNode, integers: np.ndarray) -> int:
    """The axis along which a DequantizeLinear's scales run, where there are several."""
    return int(node.attributes.get("axis", 1)) % max(integers.ndim, 1)


def evaluate(node: OnnxNode, arrays: list[np.ndarray]) -> np.ndarray | None:
    """One of FOLDED on constant inputs; results are views where they can be, and never larger than an input."""
    x = arrays[0]
    attributes = node.attributes
    axes = arrays[1].reshape(-1).tolist() if len(arrays) > 1 else list(attributes.get("axes", ()))
    match node.op_type:
        case "Identity":
            return x
        case "Cast":
            kind = _FLOATS.get(attributes.get("to", 0))
            return x.astype(kind, copy=False) if kind and x.dtype.kind == "f" else None
        case "Transpose":
            return x.transpose(attributes.get("perm", range(x.ndim)[::-1]))
        case "Reshape":
            return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(axes)])
        case "Unsqueeze":
            return np.expand_dims(x, tuple(axes))
        case "Squeeze":
            return np.squeeze(x, tuple(axes) or None)
        case "Gather":
            return x.take(int(arrays[1]), axis=attributes.get("axis", 0)) if arrays[1].ndim == 0 else None
        case "Slice":
            starts, ends = arrays[1].reshape(-1).tolist(), arrays[2].reshape(-1).tolist()
            along = arrays[3].reshape(-1).tolist() if len(arrays) > 3 else range(len(starts))
            steps = arrays[4].reshape(-1).tolist() if len(arrays) > 4 else [1] * len(starts)
            cut = [slice(None)] * x.ndim
            for axis, start, end, step in zip(along, starts, ends, steps, strict=True):
                cut[axis] = slice(start, end, step)
            return x[tuple(cut)] if all(step > 0 for step in steps) else None
        case "DequantizeLinear":
            zero_point = arrays[2] if len(arrays) > 2 else None
            return dequantize(x, arrays[1], zero_point, axis_of_scales(node, x))
        case "Exp":
            return np.exp(x) if x.dtype.kind == "f" else None
        case "Softmax":
            axis = attributes.get("axis", -1)
            weights: np.ndarray = np.exp(x - x.max(axis=axis, keepdims=True))
            weights /= weights.sum(axis=axis, keepdims=True)
            return weights
        case "Add" | "Mul":
            y = arrays[1]
            if x.dtype.kind != "f" or np.broadcast_shapes(x.shape, y.shape) not in (x.shape, y.shape):
                return None
            combined: np.ndarray = x + y if node.op_type == "Add" else x * y
            return combined
    return None
