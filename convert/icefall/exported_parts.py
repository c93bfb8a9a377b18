"""The operations of one ONNX file, taken in order and given the names of icefall's state dict."""

from __future__ import annotations

import collections
import re
from typing import Any

import numpy as np

from jaxasr.convert.formats.onnx.constants import Constant
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxTensor
from jaxasr.convert.formats.onnx.graph import Operation, stored_tensors, trace
from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.convert.mapping import FAULTS_SHOWN
from jaxasr.errors import CheckpointError, listing

# What an operation of each kind must have, under the names of the state dict.
_PARAMETERS = {
    "linear": {"weight", "bias"},
    "convolution": {"weight", "bias"},
    "norm": {"bias", "log_scale"},
    "mean square norm": {"eps"},
    "scale": {"bypass_scale"},
    "downsample": {"bias"},
    "embedding": {"weight"},
}

# The exporters' wrappers drop "joiner." before the projections; a quantizer puts endings on names, and the scales that
# an exporter left in the graph have them from training.
_RENAMED = re.compile(r"^(?=(encoder_proj|decoder_proj|output_linear)\.)")
_ENDINGS = re.compile(
    r"(?<=\.weight)(_Transposed)?_(quantized|scale|zero_point)$|(?<=\.bias)_scale$|(?<=pos_bias_[uv])_scale$"
)
_KEPT_NAME = re.compile(r"^(encoder_embed|encoder|decoder|joiner|ctc_output)\.")

# Stored tensors that are no parameters, with the reason; position tables are compared with the formula first.
_IGNORED = (
    (lambda tensor: tensor.data_type in (6, 7, 9, 12, 13), "shapes, indices and masks"),
    (lambda tensor: tensor.size <= 1, "constants of activations, masks and norms; texts"),
)
_INTEGER_WEIGHTS = (2, 3)  # uint8 and int8


class Part:
    """One file's operations, what was made of them, and what they prove about the recipe's settings.

    `architecture`: what it should be, for messages. `integers`: integers are to stay such; `quantized` holds them then.
    `dequantized`, `widened`: some weights were int8, or float16. `folded`: some were fitted to the exporter's tables.
    `folded_positions`: name, table, chunk and tolerance of those that wait for it.
    """

    def __init__(self, graph: OnnxGraph, architecture: str, integers: bool = False) -> None:
        self.graph, self.architecture, self.integers = graph, architecture, integers
        self.operations = collections.deque(trace(graph))
        self.settings: dict[str, Any] = {}
        self.tensors: dict[str, Constant] = {}
        self.quantized: dict[str, QuantizedTensor] = {}
        self.used: set[str] = set()
        self.dequantized = self.widened = self.folded = False
        self.folded_positions: list[tuple[str, Constant, int, float]] = []

    def name_next(self, name: str, kind: str, parameters: set[str] | None = None) -> Operation:
        """The next operation, which must be of this kind; its parameters become `name`.weight and so on."""
        if not self.operations:
            raise CheckpointError(f"{self.graph.path}: is no whole {self.architecture}: it ends where {name} belongs")
        return self.name_operation(self.operations.popleft(), name, kind, parameters)

    def name_operation(
        self, operation: Operation, name: str, kind: str, parameters: set[str] | None = None
    ) -> Operation:
        """`operation`, which must be of this kind; its parameters become `name`.weight and so on."""
        expected = _PARAMETERS.get(kind) if parameters is None else parameters
        if operation.integers is not None:
            raise CheckpointError(f"{self.graph.path}: the scale of the integers of {name} was not found")
        fits = operation.kind == kind and _fits(operation)
        if not fits or (expected and operation.parameters.keys() != expected):
            having = " and ".join(operation.parameters)
            raise CheckpointError(
                f"{self.graph.path}: is no {self.architecture} that jaxasr knows: where {name} ({kind}) belongs, "
                f"node '{operation.node[:80]}' is a {operation.kind} with {having}"
            )
        if kind != "chunk scale":
            for parameter, constant in operation.parameters.items():
                self.add_tensor(f"{name}.{parameter}", constant)
        return operation

    def add_tensor(self, name: str, constant: Constant) -> None:
        """Give `constant` the name of a parameter, and count the stored tensors that it comes from as used."""
        self.tensors[name] = constant
        self.used |= constant.sources

    def named_tensors(self) -> dict[str, np.ndarray]:
        """The tensors in float32; CheckpointError where something is left over or a kept name contradicts its place.

        What they come from stays in `quantized` if that is asked for.
        """
        places: dict[str, list[str]] = {}
        for name, constant in self.tensors.items():
            for source in constant.sources:
                places.setdefault(_kept_name(source), []).append(name)
        faults = [f"operation '{operation.node[:80]}' ({operation.kind}) is left over" for operation in self.operations]
        faults += [
            f"{kept} stands where {listing(names, 3)} belongs"
            for kept, names in places.items()
            if _KEPT_NAME.match(kept) and kept not in names
        ]
        faults += [
            f"{tensor.name[:120]} {list(tensor.shape)} is left over"
            for tensor in stored_tensors(self.graph)
            if tensor.name not in self.used and not _ignored(tensor)
        ]
        if faults:
            raise CheckpointError(f"{self.graph.path}: {listing(faults, FAULTS_SHOWN, '; ')}")
        if self.integers:
            self.quantized = {name: each.quantized for name, each in self.tensors.items() if each.quantized is not None}
        else:
            self.dequantized = any(
                tensor.data_type in _INTEGER_WEIGHTS and tensor.name in self.used
                for tensor in stored_tensors(self.graph)
            )
        self.widened = any(constant.array.dtype == np.float16 for constant in self.tensors.values())
        return {name: constant.array.astype(np.float32, copy=False) for name, constant in self.tensors.items()}


def _fits(operation: Operation) -> bool:
    """Whether the parameters of an operation have the numbers of axes of its kind, and its bias a value per output."""
    shapes = {name: constant.array.shape for name, constant in operation.parameters.items()}
    axes = {"linear": (2,), "embedding": (2,), "convolution": (3, 4)}.get(operation.kind)
    if axes is not None and "weight" in shapes:
        return len(shapes["weight"]) in axes and shapes.get("bias", shapes["weight"][:1]) == shapes["weight"][:1]
    return True


def _kept_name(source: str) -> str:
    return _RENAMED.sub("joiner.", _ENDINGS.sub("", source))


def _ignored(tensor: OnnxTensor) -> bool:
    return not _KEPT_NAME.match(_kept_name(tensor.name)) and any(holds(tensor) for holds, _ in _IGNORED)
