"""ONNX model files: a reader of our own that executes nothing and leaves tensors in the mapped file.

Follows onnx.proto3 of onnx 1.x; the numbers in the `match` statements are its field numbers. Whatever a file holds,
reading it ends in an `OnnxGraph` or in one `CheckpointError`; time and memory are bounded by the limits below and in
protobuf.py, not by what the file claims.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxasr.convert.formats import protobuf
from jaxasr.convert.formats.mapped import map_whole, regular_file
from jaxasr.convert.formats.onnx.external import external_bytes
from jaxasr.convert.formats.protobuf import Malformed
from jaxasr.errors import CheckpointError

MAX_FILE_BYTES = 2**31  # protobuf's own limit for one message
# Fields in one file, a node or tensor counted as PARTS_OF_MESSAGE; an encoder of 160 M parameters has 0.3 million.
MAX_PARTS = 4_000_000
PARTS_OF_MESSAGE = 8
MAX_NESTING = 8  # graphs inside the attributes of graphs
MAX_DIMENSIONS = 32

_BFLOAT16 = 16

# TensorProto.DataType: (numpy type of the stored elements, the repeated field that may hold them instead of raw_data).
_ELEMENTS = {
    1: ("<f4", "float_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("?", "int32_data"),
    10: ("<f2", "int32_data"),  # the 16 bits as an integer
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
    _BFLOAT16: ("<u2", "int32_data"),  # the upper half of a float32
}

Shape = tuple[int | str | None, ...]  # sizes known, named, or neither


@dataclasses.dataclass(frozen=True)
class OnnxTensor:
    """A tensor that is decoded when `array()` is called.

    `data_type`: TensorProto.DataType. `field`: what holds the elements (`raw_data`, `float_data`, …, or `external`).
    `data`: the bytes of that field, a view of the mapped file; for `external` the entries that say where they are.
    """

    name: str
    shape: tuple[int, ...]
    data_type: int
    field: str
    data: Any
    path: Path

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def decodable(self) -> bool:
        """Whether `array()` knows the type: not strings, complex numbers, 8-bit floats and 4-bit integers."""
        return self.data_type in _ELEMENTS

    def array(self) -> np.ndarray:
        """The elements, read-only; bfloat16 becomes float32. Raw data is not copied, and so may lie unaligned.

        Raises CheckpointError where the data does not fit shape and type, or external data cannot be trusted.
        """
        if not self.decodable:
            raise CheckpointError(f"{self.path}: tensor '{self.name}' has the unsupported ONNX type {self.data_type}")
        stored, repeated_field = _ELEMENTS[self.data_type]
        if self.field == "external":
            expected = self.size * np.dtype(stored).itemsize
            flat = np.frombuffer(external_bytes(self.path, self.name, self.data, expected), stored)
        elif self.field in ("raw_data", "float_data", "double_data") and self.field in ("raw_data", repeated_field):
            if len(self.data) != self.size * np.dtype(stored).itemsize:
                raise CheckpointError(
                    f"{self.path}: tensor '{self.name}' of shape {self.shape} and type {self.data_type} "
                    f"has {len(self.data)} bytes"
                )
            flat = np.frombuffer(self.data, stored)
        elif self.field == repeated_field:
            flat = self._from_integers(np.dtype(stored))
        else:
            raise CheckpointError(
                f"{self.path}: tensor '{self.name}' of type {self.data_type} keeps it in {self.field}"
            )
        if self.data_type == _BFLOAT16:
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        array = flat.reshape(self.shape)
        array.flags.writeable = False
        return array

    def _from_integers(self, stored: np.dtype) -> np.ndarray:
        try:
            integers = protobuf.integers(self.data)
        except Malformed as fault:
            raise CheckpointError(f"{self.path}: tensor '{self.name}' is damaged ({fault})") from None
        if len(integers) != self.size:
            raise CheckpointError(
                f"{self.path}: tensor '{self.name}' of shape {self.shape} has {len(integers)} integers"
            )
        if stored.kind == "f":
            return integers.astype("<u2").view(stored)
        return integers.astype(stored)


@dataclasses.dataclass(frozen=True)
class OnnxNode:
    """One operation; `attributes` holds numbers, bytes, tensors, graphs, or tuples of them."""

    op_type: str
    name: str
    inputs: tuple[str, ...]  # "" stands for an input left out
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    domain: str


@dataclasses.dataclass(frozen=True)
class OnnxGraph:
    """A model's graph, or one inside a node.

    `constants`: the outputs of this graph's Constant nodes. `inputs`, `outputs`: shapes by name. `functions`: how many
    operations of its own the model defines.
    """

    path: Path
    nodes: tuple[OnnxNode, ...]
    initializers: dict[str, OnnxTensor]
    constants: dict[str, OnnxTensor]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    functions: int = 0


def read_onnx(path: str | Path) -> OnnxGraph:
    """Read the model at `path`; its tensors stay in the mapped file until asked for.

    Raises CheckpointError for a file that is missing, truncated, damaged, too large, or no ONNX model.
    """
    path = Path(path)
    try:
        with regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size < MAX_FILE_BYTES:
                raise CheckpointError(f"{path}: {size} bytes are no ONNX model (1 byte to 2 GiB)")
            return _Reader(path).model(memoryview(map_whole(file)))
    except Malformed as fault:
        raise CheckpointError(f"{path}: is not a whole ONNX model ({fault}); fetch or export it again") from None


class _Reader:
    """The messages of one file, a method for each; `Malformed` where the bytes are not what the schema says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.budget = protobuf.Budget(MAX_PARTS)

    def model(self, data: memoryview) -> OnnxGraph:
        graph: OnnxGraph | None = None
        version = functions = 0
        metadata: dict[str, str] = {}
        for number, wire, value in self._fields(data):
            match number:
                case 1:
                    version = protobuf.integer(wire, value)
                case 7:
                    if graph is not None:
                        raise Malformed("two graphs")
                    graph = self._graph(protobuf.message(wire, value), 0)
                case 14:
                    _insert(metadata, self._pair(protobuf.message(wire, value)), "metadata entry")
                case 25:
                    functions += 1
        if graph is None or version < 1:
            raise Malformed("no graph or no version")
        return dataclasses.replace(graph, metadata=metadata, functions=functions)

    def _graph(self, data: memoryview, nesting: int) -> OnnxGraph:
        self.budget.spend(PARTS_OF_MESSAGE)
        if nesting > MAX_NESTING:
            raise Malformed(f"graphs nested more than {MAX_NESTING} deep")
        nodes: list[OnnxNode] = []
        initializers: dict[str, OnnxTensor] = {}
        inputs: dict[str, Shape] = {}
        outputs: dict[str, Shape] = {}
        for number, wire, value in self._fields(data):
            match number:
                case 1:
                    nodes.append(self._node(protobuf.message(wire, value), nesting))
                case 5:
                    tensor = self._tensor(protobuf.message(wire, value))
                    _insert(initializers, (tensor.name, tensor), "initializer")
                case 11:
                    _insert(inputs, self._value_info(protobuf.message(wire, value)), "graph input")
                case 12:
                    _insert(outputs, self._value_info(protobuf.message(wire, value)), "graph output")
                case 15:
                    raise Malformed("sparse tensors, which jaxasr does not read")
        constants: dict[str, OnnxTensor] = {}
        for node in nodes:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensor = self._constant(node)
                _insert(constants, (tensor.name, tensor), "constant")
        return OnnxGraph(self.path, tuple(nodes), initializers, constants, inputs, outputs)

    def _node(self, data: memoryview, nesting: int) -> OnnxNode:
        self.budget.spend(PARTS_OF_MESSAGE)
        names: dict[int, list[str]] = {1: [], 2: []}
        texts = {3: "", 4: "", 7: ""}
        attributes: dict[str, Any] = {}
        for number, wire, value in self._fields(data):
            if number in names:
                names[number].append(protobuf.name(wire, value))
            elif number in texts:
                texts[number] = protobuf.name(wire, value)
            elif number == 5:
                _insert(attributes, self._attribute(protobuf.message(wire, value), nesting), "attribute")
        return OnnxNode(texts[4], texts[3], tuple(names[1]), tuple(names[2]), attributes, texts[7])

    def _attribute(self, data: memoryview, nesting: int) -> tuple[str, Any]:
        self.budget.spend(PARTS_OF_MESSAGE)
        name = ""
        one: Any = None
        several: list[Any] = []
        for number, wire, value in self._fields(data):
            match number:
                case 1:
                    name = protobuf.name(wire, value)
                case 2:
                    one = protobuf.single(wire, value)
                case 3:
                    one = protobuf.integer(wire, value)
                case 4:
                    one = bytes(protobuf.short(protobuf.message(wire, value)))
                case 5:
                    one = self._tensor(protobuf.message(wire, value))
                case 6:
                    one = self._graph(protobuf.message(wire, value), nesting + 1)
                case 7:
                    several += self._list(protobuf.floats, wire, value, protobuf.FIXED32)
                case 8:
                    several += self._list(protobuf.integers, wire, value, protobuf.VARINT)
                case 9:
                    several.append(bytes(protobuf.short(protobuf.message(wire, value))))
                case 10:
                    several.append(self._tensor(protobuf.message(wire, value)))
                case 11:
                    several.append(self._graph(protobuf.message(wire, value), nesting + 1))
        return name, tuple(several) if one is None else one

    def _tensor(self, data: memoryview) -> OnnxTensor:
        self.budget.spend(PARTS_OF_MESSAGE)
        name, data_type, location = "", 0, 0
        shape: list[int] = []
        external: dict[str, str] = {}
        pieces: dict[str, list[memoryview]] = {}
        for number, wire, value in self._fields(data):
            match number:
                case 1:
                    shape += self._list(protobuf.integers, wire, value, protobuf.VARINT)
                case 2:
                    data_type = protobuf.integer(wire, value)
                case 4:
                    pieces.setdefault("float_data", []).append(protobuf.packed(wire, value, protobuf.FIXED32))
                case 5:
                    pieces.setdefault("int32_data", []).append(protobuf.packed(wire, value, protobuf.VARINT))
                case 7:
                    pieces.setdefault("int64_data", []).append(protobuf.packed(wire, value, protobuf.VARINT))
                case 8:
                    name = protobuf.name(wire, value)
                case 9:
                    pieces.setdefault("raw_data", []).append(protobuf.message(wire, value))
                case 10:
                    pieces.setdefault("double_data", []).append(protobuf.packed(wire, value, protobuf.FIXED64))
                case 11:
                    pieces.setdefault("uint64_data", []).append(protobuf.packed(wire, value, protobuf.VARINT))
                case 13:
                    _insert(external, self._pair(protobuf.message(wire, value)), "entry of external data")
                case 14:
                    location = protobuf.integer(wire, value)
        if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape) or math.prod(shape) >= 2**40:
            raise Malformed(f"tensor '{name}' has impossible sizes")
        if location not in (0, 1) or len(pieces) + location > 1 or len(pieces.get("raw_data", ())) > 1:
            raise Malformed(f"tensor '{name}' has its data in more than one place")
        if location == 1:
            return OnnxTensor(name, tuple(shape), data_type, "external", external, self.path)
        field, parts = next(iter(pieces.items()), ("raw_data", [memoryview(b"")]))
        content = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        return OnnxTensor(name, tuple(shape), data_type, field, content, self.path)

    def _constant(self, node: OnnxNode) -> OnnxTensor:
        """The tensor of a Constant node, also where it was written as a plain number or a list."""
        if len(node.outputs) != 1 or len(node.attributes) != 1:
            raise Malformed(f"Constant node '{node.name}' has {len(node.attributes)} values")
        ((kind, value),) = node.attributes.items()
        if kind == "value" and isinstance(value, OnnxTensor):
            return dataclasses.replace(value, name=node.outputs[0])
        data_type = {"value_float": 1, "value_floats": 1, "value_int": 7, "value_ints": 7}.get(kind)
        numbers = value if isinstance(value, tuple) else (value,)
        if data_type is None or not all(isinstance(number, int | float) for number in numbers):
            return OnnxTensor(node.outputs[0], (), 0, "raw_data", b"", self.path)  # a text: not decodable
        array = np.asarray(value, _ELEMENTS[data_type][0])
        return OnnxTensor(node.outputs[0], array.shape, data_type, "raw_data", array.tobytes(), self.path)

    def _value_info(self, data: memoryview) -> tuple[str, Shape]:
        """ValueInfoProto: name 1, type 2 → tensor_type 1 → shape 2 → dim 1 → dim_value 1 or dim_param 2."""
        self.budget.spend(PARTS_OF_MESSAGE)
        name, shape = "", []
        for number, wire, value in self._fields(data):
            if number == 1:
                name = protobuf.name(wire, value)
            elif number == 2:
                for dimension in self._inside(protobuf.message(wire, value), 1, 2, 1):
                    size: int | str | None = None
                    for kind, size_wire, size_value in self._fields(dimension):
                        if kind == 1:
                            size = protobuf.integer(size_wire, size_value)
                        elif kind == 2:
                            size = protobuf.name(size_wire, size_value)
                    shape.append(size)
        return name, tuple(shape)

    def _inside(self, data: memoryview, *numbers: int) -> Iterator[memoryview]:
        """The messages reached from `data` by going through the fields `numbers`."""
        for number, wire, value in self._fields(data):
            if number == numbers[0] and wire == protobuf.BYTES:
                inner = protobuf.message(wire, value)
                if len(numbers) == 1:
                    yield inner
                else:
                    yield from self._inside(inner, *numbers[1:])

    def _pair(self, data: memoryview) -> tuple[str, str]:
        key = content = ""
        for number, wire, value in self._fields(data):
            if number == 1:
                key = protobuf.name(wire, value)
            elif number == 2:
                content = protobuf.text(wire, value)
        return key, content

    def _list(
        self, decode: Callable[[memoryview], np.ndarray], wire: int, value: protobuf.Value, element_wire: int
    ) -> list[Any]:
        decoded = decode(protobuf.short(protobuf.packed(wire, value, element_wire)))
        self.budget.spend(len(decoded))
        numbers: list[Any] = decoded.tolist()
        return numbers

    def _fields(self, data: memoryview) -> Iterator[protobuf.Field]:
        return protobuf.fields(data, self.budget)


Inserted = TypeVar("Inserted")


def _insert(mapping: dict[str, Inserted], item: tuple[str, Inserted], what: str) -> None:
    """Add to `mapping` what may stand there once: a second one is a way to show a checker and a reader two things."""
    if item[0] in mapping:
        raise Malformed(f"{what} '{item[0]}' stands twice")
    mapping[item[0]] = item[1]
