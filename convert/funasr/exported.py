"""ONNX exports of FunASR's detector, whose matrices have lost their names: weights are taken in the order of the nodes.

The network is a chain of products, so that every export has them in one order, whatever optimisers and quantizers made
of the graph round them. Nothing is run and no name is trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxasr.convert.formats.onnx.constants import FOLDED, evaluate
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxNode, read_onnx
from jaxasr.convert.formats.quantized import dequantize
from jaxasr.errors import CheckpointError

_ENDS = ("in_linear1", "in_linear2"), ("out_linear1", "out_linear2")
# Products with a weight: the places of the weight and, where it is of integers, of its scale and zero point (None where
# a later product with a constant has the scale), and of a bias.
_PRODUCTS: dict[str, tuple[int, int | None, int | None, int | None]] = {
    "MatMul": (1, None, None, None),
    "FusedMatMul": (1, None, None, None),
    "Gemm": (1, None, None, 2),
    "MatMulInteger": (1, None, 3, None),
    "DynamicQuantizeMatMul": (1, 2, 3, 4),
    "MatMulIntegerToFloat": (1, 3, 5, 6),
    "Conv": (1, None, None, 2),
    "ConvInteger": (1, None, 3, None),
    "QLinearMatMul": (3, 4, 5, None),
    "QLinearConv": (3, 4, 5, None),
    "QGemm": (3, 4, 5, 6),
}
_INPUT_SCALE = 1  # the place of the scale of the activations, by which a bias of integers is multiplied too
_FOLDED_LIMIT = 1 << 28  # bytes of what operations on constants give; the published detector has 1.7 MB


class _Weights(NamedTuple):
    """What the nodes hold, each in their order: matrices (in, out), kernels (channels, 1, width, 1), biases (out,)."""

    matrices: list[np.ndarray]
    kernels: list[np.ndarray]
    biases: list[np.ndarray]


def read_detector(path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    """The tensors under the names that model.pt has. CheckpointError, one line, for the graph of another model."""
    graph = read_onnx(path)
    try:
        matrices, kernels, biases = _in_order(graph, notes)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its graph is no voice activity detector's that jaxasr knows ({error})"
        ) from None
    blocks = (len(matrices) - 4) // 2
    sides = len(kernels) // blocks if blocks > 0 else 0
    counts = len(matrices), len(biases), len(kernels)
    if blocks < 1 or counts not in [(2 * blocks + 4, blocks + 4, each) for each in (blocks, 2 * blocks)]:
        raise CheckpointError(
            f"{path}: is no voice activity detector: its graph has {counts[0]} matrices, {counts[1]} biases and "
            f"{counts[2]} memories"
        )
    names = [f"fsmn.{block}.{part}" for block in range(blocks) for part in ("linear", "affine")]
    layers = [*_ENDS[0], *names, *_ENDS[1]]
    tensors = {f"encoder.{name}.linear.weight": matrix.T for name, matrix in zip(layers, matrices, strict=True)}
    biased = [name for name in layers if not name.endswith(".linear")]
    tensors |= {f"encoder.{name}.linear.bias": bias for name, bias in zip(biased, biases, strict=True)}
    for place, kernel in enumerate(kernels):
        side = "left" if place % sides == 0 else "right"
        tensors[f"encoder.fsmn.{place // sides}.fsmn_block.conv_{side}.weight"] = kernel
    return tensors


def _in_order(graph: OnnxGraph, notes: list[str]) -> _Weights:
    """The weights of a graph; ValueError where one is of a kind that no export of the detector has."""
    stored = graph.constants | graph.initializers
    known = {name: tensor.array() for name, tensor in stored.items() if tensor.decodable}
    found = _Weights([], [], [])
    unscaled: list[tuple[list[np.ndarray], int, np.ndarray | None]] = []  # where integers stand, and their zero points
    scales: list[np.ndarray] = []  # of these, in the same order
    integers, room = False, _FOLDED_LIMIT
    for node in graph.nodes:
        constants = [known.get(name) for name in node.inputs]
        if node.op_type in FOLDED and constants and all(each is not None for each in constants):
            value = evaluate(node, [each for each in constants if each is not None])
            if value is not None:
                known[node.outputs[0]] = value
                room -= value.nbytes
            if room < 0:
                raise ValueError("its constants grow out of bounds")
            integers = integers or node.op_type == "DequantizeLinear"
        elif node.op_type in _PRODUCTS:
            weight, scale, zero_point, bias = (
                constants[place] if place is not None and place < len(constants) else None
                for place in _PRODUCTS[node.op_type]
            )
            if weight is None:
                continue
            where = found.kernels if weight.ndim > 2 else found.matrices
            if weight.dtype.kind != "f":
                integers = True
                if scale is None:
                    unscaled.append((where, len(where), zero_point))
                else:
                    weight = dequantize(weight, scale, zero_point, 0 if weight.ndim > 2 else weight.ndim - 1)
            where.append(_upright(node, weight))
            if bias is not None and bias.dtype.kind != "f":
                activations = constants[_INPUT_SCALE]
                if scale is None or activations is None:
                    raise ValueError("a bias of integers without a scale")
                bias = dequantize(bias.reshape(-1), (scale * activations).reshape(-1), None, 0)
            found.biases.extend([] if bias is None else [bias.reshape(-1)])
        elif node.op_type == "QLinearAdd":
            for vector, scale, zero_point in (constants[:3], constants[3:6]):
                if vector is not None and scale is not None and vector.size > 1:
                    found.biases.append(dequantize(vector.reshape(-1), scale, zero_point, 0))
        elif node.op_type == "Mul":
            scales += _floats(constants)
        elif node.op_type == "Add":
            found.biases.extend(vector for vector in _floats(constants) if vector.size > 1)
    for (where, place, zero_point), scale in zip(unscaled, scales, strict=bool(unscaled)):
        where[place] = dequantize(where[place], scale, zero_point, 0 if where is found.kernels else 1)
    if integers:
        notes.append(f"{graph.path.name}: integer weights are dequantized to float32")
    return _Weights(*([np.asarray(each, np.float32) for each in part] for part in found))


def _upright(node: OnnxNode, weight: np.ndarray) -> np.ndarray:
    """A matrix as (in, out), a kernel over time as (channels, 1, width, 1)."""
    if weight.ndim > 2:
        if weight.shape[1] != 1 or weight.size != weight.shape[0] * weight.shape[2]:
            raise ValueError(f"a kernel of shape {weight.shape}")
        return weight.reshape(weight.shape[0], 1, -1, 1)
    if weight.ndim < 2 or node.attributes.get("alpha", 1.0) != 1 or node.attributes.get("transA", 0):
        raise ValueError(f"a product with a weight of shape {weight.shape}")
    return weight.T if node.attributes.get("transB", 0) else weight


def _floats(constants: list[np.ndarray | None]) -> list[np.ndarray]:
    """The one vector of floats (n,) among the inputs of a sum or product, as a list; none where both are unknown."""
    found = [each for each in constants if each is not None]
    return [each.reshape(-1) for each in found if each.dtype.kind == "f" and each.size == (each.shape or (1,))[-1]]
