"""From an ONNX graph to the list of its operations that have parameters, in the order of the data.

Names in an exported graph are unreliable: the exporter renames the matrices of linear layers, optimisers rename what is
small, and equal tensors are stored once under one of their names. What does not change is how the data flows.
`trace` walks the nodes once and notes, for every value, which parametric operation it passed last; the depth of an
operation is the number of such operations on the longest way to it. Linear layers are found as product and sum,
norms, bypasses and downsampling by the constants in them, integer products with their scales.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxasr.convert.formats.onnx.constants import (
    FOLDED,
    Constant,
    axis_of_scales,
    evaluate,
    flat,
    is_vector,
    logarithm,
)
from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxNode, OnnxTensor
from jaxasr.convert.formats.quantized import QuantizedTensor, quantized_tensor
from jaxasr.errors import CheckpointError

# Operations whose further inputs are shapes, indices or bounds: how many of the first carry data. Default: all.
_DATA_INPUTS = {
    "Shape": 0, "Size": 0, "Range": 0, "ConstantOfShape": 0, "Equal": 0, "Less": 0, "Greater": 0, "LessOrEqual": 0,
    "GreaterOrEqual": 0, "Not": 0, "And": 0, "Or": 0, "Reshape": 1, "Expand": 1, "Tile": 1, "Slice": 1, "Unsqueeze": 1,
    "Squeeze": 1, "Pad": 1, "ReduceSum": 1, "ReduceMean": 1, "Split": 1, "Gather": 1, "GatherElements": 1, "Clip": 1,
    "QuantizeLinear": 1, "DequantizeLinear": 1,
}  # fmt: skip
# Shape-only operations that may stand between a MatMul and its bias Add, and the roundings of static quantization.
_KEEP_PRODUCT = {"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "QuantizeLinear", "DequantizeLinear"}
# Operations that move the numbers of a constant, and the integers that it was made of.
_MOVING = {"Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"}

MAX_SOURCES = 16  # stored tensors that one constant may be computed from


@dataclasses.dataclass(eq=False)
class Operation:
    """An operation with parameters.

    `kind`: "linear", "convolution", "norm" (BiasNorm), "mean square norm" (BasicNorm), "scale" (of channels),
    "downsample", "chunk scale" (of a chunk's frames), "embedding", "positions" (a matrix applied to a constant table).
    `parameters`: weight, bias, log_scale, … in PyTorch's layouts. `positions`: for the projection of an attention, the
    operation that met its product. `heads`: the numbers of heads that its output was reshaped to. `biases`: what was
    added to a part of it before that met the "positions", and before it met the "keys". `table`: what "positions" was
    applied to. `pads`: zeros around the input of a convolution. `step`: the largest step between neighbouring values,
    where integers were dequantized.
    """

    kind: str
    depth: int
    node: str
    parameters: dict[str, Constant] = dataclasses.field(default_factory=dict)
    positions: Operation | None = None
    heads: set[int] = dataclasses.field(default_factory=set)
    biases: dict[str, Constant] = dataclasses.field(default_factory=dict)
    table: Constant | None = None
    pads: tuple[int, ...] = ()
    step: float | None = None
    integers: tuple[Constant, Constant | None] | None = None  # weight and zero point, until the scale is met


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known about one value of the graph.

    `last`: the deepest operation on the way here. `product`: the operation whose product this is, before its bias.
    `output`: the operation whose output, or a part of it, this is. `statistic`: the norm whose statistic this is.
    `added`: a constant (heads, d) that was added to such a part.
    `table`: the constant of which this is a part, cut at places known only at run time. `chunk_edges`: constants that
    are added to the left or right end of a chunk. `activation_scale`: whether DynamicQuantizeLinear scaled by this;
    `weight_scale`: the scales of a weight that it was multiplied by. `positions`: the "positions" operation whose
    product this is.
    """

    constant: Constant | None = None
    last: Operation | None = None
    product: Operation | None = None
    output: Operation | None = None
    added: Constant | None = None
    statistic: Operation | None = None
    table: Constant | None = None
    chunk_edges: tuple[tuple[str, Constant], ...] = ()
    activation_scale: bool = False
    weight_scale: Constant | None = None
    positions: Operation | None = None

    @property
    def known(self) -> bool:
        return self.constant is not None or self.table is not None or bool(self.chunk_edges)


def trace(graph: OnnxGraph) -> list[Operation]:
    """The operations of `graph` that have parameters, by depth. CheckpointError where it cannot be followed."""
    if graph.functions:
        raise CheckpointError(
            f"{graph.path}: defines operations of its own; export it with torch.onnx.export(dynamo=False)"
        )
    foreign = next((node for node in graph.nodes if node.domain not in ("", "ai.onnx")), None)
    if foreign is not None:
        raise CheckpointError(
            f"{graph.path}: a runtime has rewritten it for itself (node '{foreign.name[:80]}' is {foreign.domain[:40]}."
            f"{foreign.op_type[:40]}); convert the model as its publisher exported it"
        )
    static = next((node for node in graph.nodes if node.op_type.startswith("QLinear")), None)
    if static is not None:
        raise CheckpointError(
            f"{graph.path}: multiplies integers of fixed ranges (node '{static.name[:80]}' is {static.op_type[:40]}); "
            "convert the model in float, or quantized with DynamicQuantizeLinear or DequantizeLinear"
        )
    return _Tracer(graph).run()


def stored_tensors(graph: OnnxGraph) -> Iterator[OnnxTensor]:
    """Every tensor that a model holds, also in the branches of its conditions; scalars of Constant nodes included."""
    yield from graph.initializers.values()
    yield from graph.constants.values()
    for branch in _branches(graph.nodes):
        yield from stored_tensors(branch)


def _branches(nodes: tuple[OnnxNode, ...]) -> Iterator[OnnxGraph]:
    for node in nodes:
        for value in node.attributes.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, OnnxGraph):
                    yield inner


class _Tracer:
    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.operations: list[Operation] = []
        self.values: dict[str, _Value] = {"": _Value(), **{name: _Value() for name in graph.inputs}}
        self.producers: dict[str, OnnxNode] = {}
        self.partial: dict[frozenset[str], Operation] = {}
        stored = 0
        for tensor in (*graph.initializers.values(), *graph.constants.values()):
            self.values[tensor.name] = _Value()
            if tensor.decodable:
                array = tensor.array()
                stored += array.nbytes
                self.values[tensor.name] = _Value(Constant(array, frozenset([tensor.name])))
        # Dequantizing and casting make copies; a chain of them must not outgrow the file by more than a whole model.
        self.bytes_left = 8 * stored + 2**20

    def run(self) -> list[Operation]:
        for node in self._sorted():
            made = self.visit(node)
            for index, name in enumerate(node.outputs):
                if name:
                    self.producers[name] = node
                    self.values[name] = made
                    if node.op_type == "DynamicQuantizeLinear" and index > 0:
                        self.values[name] = _Value(last=made.last, activation_scale=index == 1)
        return sorted(self.operations, key=lambda operation: operation.depth)

    def _sorted(self) -> Iterator[OnnxNode]:
        """The nodes, each after those whose outputs it uses: some converters append nodes where they should insert."""
        nodes = [node for node in self.graph.nodes if node.op_type != "Constant"]
        needs = [{name for name in (*node.inputs, *_captured(node)) if name not in self.values} for node in nodes]
        users: dict[str, list[int]] = {}
        for index, names in enumerate(needs):
            for name in names:
                users.setdefault(name, []).append(index)
        made = set(self.values)
        ready = collections.deque(index for index, names in enumerate(needs) if not names)
        left = len(nodes)
        while ready:
            node = nodes[ready.popleft()]
            yield node
            left -= 1
            for name in filter(None, node.outputs):
                if name in made:
                    raise CheckpointError(f"{self.graph.path}: '{name[:80]}' is made twice")
                made.add(name)
                for index in users.get(name, ()):
                    needs[index].discard(name)
                    if not needs[index]:
                        ready.append(index)
        if left:
            raise CheckpointError(f"{self.graph.path}: {left} nodes use values that nothing makes")

    def visit(self, node: OnnxNode) -> _Value:
        inputs = [self.values[name] for name in node.inputs]
        handler = _HANDLERS.get(node.op_type)
        made = handler(self, node, inputs) if handler and inputs else None
        return made or self._fold(node, inputs) or self._pass(node, inputs)

    # Operations with parameters ---------------------------------------------------------------------------------------

    def _matmul(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        if len(inputs) < 2:
            return None
        left, right = inputs[:2]
        if right.constant is not None and right.constant.array.ndim == 2:
            weight = right.constant.laid_out(np.transpose)
            if left.known:
                made = self._operation("positions", node, None, {"weight": weight})
                made.table = left.table or left.constant
                return _Value(product=made, positions=made)
            made = self._operation("linear", node, left, {"weight": weight})
            return _Value(last=made, product=made, output=made)
        if right.table is not None and right.table.array.ndim == 2 and not left.known:
            made = self._partial(node, left, right.table)
            return _Value(last=made, product=made, output=made)
        if right.constant is not None and right.constant.array.ndim == 4 and left.output is not None:
            # The table already multiplied by its matrix: (head, 1, position head dim, position).
            left.output.positions = self._operation("positions", node, None, {"products": right.constant})
            return _Value(last=left.last, product=left.output.positions)
        for projection, positions in ((left.output, right.positions), (right.output, left.positions)):
            if projection is not None and positions is not None:
                projection.positions = positions
        for value, other in _both_ways([left, right]):
            if value.output is not None and value.added is not None:
                if other.positions is not None:
                    value.output.biases["positions"] = value.added
                elif other.output is value.output:
                    value.output.biases["keys"] = value.added
        return None

    def _partial(self, node: OnnxNode, source: _Value, table: Constant) -> Operation:
        """The product with some rows of a weight (out, in), one operation with the products with its other rows.

        A streaming attention projects its queries from fewer frames than its keys and values.
        """
        made = self.partial.get(table.sources)
        if made is None:
            made = self.partial[table.sources] = self._operation("linear", node, source, {"weight": table})
        return made

    def _matmulinteger(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        made = self._matmul(node, inputs)
        if made is not None and made.product is not None:
            zero_point = inputs[3].constant if len(inputs) > 3 else None
            (integers,) = made.product.parameters.values()
            made.product.integers = (integers, zero_point)
        return made

    def _gemm(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        flags = {key: node.attributes.get(key, default) for key, default in _GEMM.items()}
        if len(inputs) < 2 or inputs[1].constant is None or inputs[0].known or inputs[1].constant.array.ndim != 2:
            return None
        if flags["transA"] or flags["alpha"] != 1 or (flags["beta"] != 1 and len(inputs) > 2):
            return None
        weight = inputs[1].constant
        parameters = {"weight": weight if flags["transB"] else weight.laid_out(np.transpose)}
        made = self._operation("linear", node, inputs[0], parameters)
        if len(inputs) > 2 and inputs[2].constant is not None:
            made.parameters["bias"] = flat(inputs[2].constant)
            return _Value(last=made, output=made)
        return _Value(last=made, product=made, output=made)

    def _conv(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        if len(inputs) < 2 or inputs[1].constant is None:
            return None
        made = self._operation("convolution", node, inputs[0], {"weight": inputs[1].constant})
        made.pads = tuple(node.attributes.get("pads", ()))
        if len(inputs) > 2 and inputs[2].constant is not None:
            made.parameters["bias"] = inputs[2].constant
            return _Value(last=made)
        return _Value(last=made, product=made)

    def _convinteger(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        """The quantizer keeps a convolution's bias for an Add after the scales."""
        made = self._conv(node, inputs[:2])
        if made is not None and made.product is not None:
            zero_point = inputs[3].constant if len(inputs) > 3 else None
            made.product.integers = (made.product.parameters["weight"], zero_point)
        return made

    def _add(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        for (value, other), name in zip(_both_ways(inputs), node.inputs, strict=False):
            bias = other.constant
            if value.product in self.partial.values():
                bias = bias or other.table
            if bias is not None and bias.array.size > 1 and value.product and "bias" not in value.product.parameters:
                weight = value.product.parameters.get("weight")
                if weight is not None and weight.array.shape[:1] == (bias.array.size,):
                    value.product.parameters["bias"] = flat(bias)
                    return dataclasses.replace(value, product=None)
            if value.known or bias is None or bias.array.dtype.kind != "f":
                continue
            if value.product in self.partial.values():  # the bias of a further part, known from the first
                return dataclasses.replace(value, product=None)
            if value.output is not None and value.added is None and bias.array.ndim == 2:
                return dataclasses.replace(value, product=None, added=dataclasses.replace(bias, quantized=None))
            producer = self.producers.get(name)
            if producer is not None and producer.op_type == "ReduceMean" and bias.array.size == 1:
                epsilon = bias.logarithm or logarithm(bias)
                parameters = {"eps": _scalar(epsilon)}
                return _Value(last=self._operation("mean square norm", node, value, parameters))
        return None

    def _sub(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        """BiasNorm begins with x − bias; its bias enters only the statistic."""
        value, bias = inputs[0], inputs[-1].constant
        if value.known or bias is None or not is_vector(bias):
            return None
        made = self._operation("norm", node, value, {"bias": flat(bias)})
        return _Value(last=made, statistic=made)

    def _mul(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        for value, other in _both_ways(inputs):
            if value.known:
                continue
            constant = other.constant
            if (
                value.statistic
                and constant is not None
                and constant.array.dtype.kind == "f"
                and constant.array.size == 1
            ):
                scale = constant.logarithm or logarithm(constant)
                value.statistic.parameters["log_scale"] = _scalar(scale)
                return _Value(last=value.statistic)
            if other.chunk_edges:
                made = self._operation("chunk scale", node, value, dict(other.chunk_edges))
                return _Value(last=made)
            if value.activation_scale and constant is not None:
                return _Value(last=value.last, weight_scale=constant)
            if constant is not None and constant.array.dtype.kind == "f" and constant.array.size > 1:
                return self._scale(node, value, constant)
            if value.product is not None and value.product.integers is not None and other.weight_scale is not None:
                self._dequantize(value.product, other.weight_scale, multiplied=True)
                return value
            if value.output is not None and constant is not None and constant.array.size == 1:
                return _Value(last=value.last, output=value.output)  # queries are scaled before their heads are split
        return None

    def _scale(self, node: OnnxNode, value: _Value, constant: Constant) -> _Value:
        """A product with a constant: (D,) scales channels, (ds, 1, 1) weighs frames, (C, T) a chunk's frames."""
        shape = constant.array.shape
        if is_vector(constant):
            made = self._operation("scale", node, value, {"bypass_scale": flat(constant)})
        elif shape[0] > 1 and constant.array.size == shape[0]:
            made = self._operation("downsample", node, value, {"bias": flat(constant.logarithm or logarithm(constant))})
        else:
            made = self._operation("chunk scale", node, value, {"sum": constant})
        return _Value(last=made)

    def _gather(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        table, index = inputs[0].constant, inputs[-1]
        if table is None or index.known or table.array.ndim != 2 or table.array.dtype.kind not in "fu":
            return None
        made = self._operation("embedding", node, index, {"weight": table})
        if table.array.dtype.kind == "u":
            made.integers = (table, None)
        return _Value(last=made, product=made)

    def _dequantizelinear(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        made = inputs[0].product
        if made is None or made.integers is None or len(inputs) < 2 or inputs[1].constant is None:
            return None
        made.integers = (made.integers[0], inputs[2].constant if len(inputs) > 2 else None)
        self._dequantize(made, inputs[1].constant, multiplied=False)
        return _Value(last=made)

    def _dequantize(self, operation: Operation, scale: Constant, *, multiplied: bool) -> None:
        """Replace the integers of an operation by what they stand for, in float32; they stay beside it."""
        assert operation.integers is not None
        integers, zero_point = operation.integers
        try:
            quantized = quantized_tensor(integers.array, scale.array, zero_point.array if zero_point else None)
        except ValueError as fault:
            raise CheckpointError(
                f"{self.graph.path}: the weight of node '{operation.node[:80]}' cannot be dequantized: {fault}"
            ) from None
        quantized = dataclasses.replace(quantized, multiplied=multiplied)
        used = [integers, scale] + ([zero_point] if zero_point else [])
        sources = frozenset().union(*(constant.sources for constant in used))
        ((name, _),) = [item for item in operation.parameters.items() if item[0] != "bias"]
        operation.parameters[name] = Constant(quantized.dequantize(), sources, quantized=quantized)
        operation.step = float(quantized.scale.max(initial=0.0))
        operation.integers = None

    # What else must be remembered -------------------------------------------------------------------------------------

    def _slice(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        """Part of a constant: [:, :chunk] is cut for the left end of a chunk, [:, -chunk:] for the right."""
        constant = inputs[0].constant
        if constant is None or constant.array.dtype.kind != "f" or len(inputs) < 3:
            return None
        folded = self._fold(node, inputs)
        axes = inputs[3].constant if len(inputs) > 3 else None
        if constant.array.ndim == 2 and axes is not None and axes.array.reshape(-1).tolist() in ([1], [-1]):
            start = inputs[1].constant
            side = "left" if start is not None and start.array.reshape(-1).tolist() == [0] else "right"
            return _Value(folded.constant if folded else None, chunk_edges=((side, constant),))
        return folded or _Value(table=constant)

    def _concat(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        """A constant with zeros after it belongs to the left end of a chunk, one with zeros before it to the right."""
        places = [
            (index, value.constant)
            for index, value in enumerate(inputs)
            if value.constant is not None and value.constant.array.ndim == 2 and value.constant.array.size
        ]
        if len(inputs) == 2 and len(places) == 1 and node.attributes.get("axis") in (1, -1):
            index, constant = places[0]
            if constant.array.dtype.kind == "f" and inputs[1 - index].last is None:
                return _Value(chunk_edges=(("right" if index else "left", constant),))
        return None

    def _reshape(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        """(T, N, heads · d) to (T, N, heads, d) tells the number of heads."""
        if inputs[0].output is not None and len(node.inputs) > 1:
            sizes = self._sizes(node.inputs[1])
            if len(sizes) == 4 and sizes[2] is not None and sizes[2] > 0:
                inputs[0].output.heads.add(sizes[2])
        return None

    def _sizes(self, name: str) -> list[int | None]:
        """What is known of a shape that is a constant or put together from constants and run-time sizes."""
        whole, node = _integers(self.values[name]), self.producers.get(name)
        if whole or node is None or node.op_type != "Concat":
            return whole[:8]
        pieces = [_integers(self.values[piece]) for piece in node.inputs]
        return [size for piece in pieces for size in (piece or [None])][:8]

    def _pass(self, node: OnnxNode, inputs: list[_Value]) -> _Value:
        """Any other operation: what its inputs passed, and the roles that survive it."""
        carrying = inputs[1:3] if node.op_type == "Where" else inputs[: _DATA_INPUTS.get(node.op_type, len(inputs))]
        carrying = [*carrying, *(self.values[name] for name in _captured(node))]
        last = max((v.last for v in carrying if v.last), key=lambda operation: operation.depth, default=None)
        moving = [v for v in carrying if not v.known]
        first = carrying[0] if carrying else _Value()
        parts = node.op_type in (
            "Slice",
            "Split",
            "Concat",
            "Identity",
            "Cast",
            "DynamicQuantizeLinear",
            "QuantizeLinear",
            "DequantizeLinear",
            "Transpose",
            "Reshape",
        )
        statistics = {v.statistic for v in moving}
        outputs = {v.output for v in moving if v.output}
        edges = (
            tuple(dict(edge for v in carrying for edge in v.chunk_edges).items())
            if node.op_type == "Add"
            else first.chunk_edges
        )
        return _Value(
            last=last,
            product=first.product if node.op_type in _KEEP_PRODUCT else None,
            output=outputs.pop() if parts and len(outputs) == 1 else None,
            added=first.added if parts and len(carrying) == 1 else None,
            statistic=statistics.pop() if len(statistics) == 1 else None,
            table=first.table if len(carrying) == 1 else None,
            chunk_edges=edges if not moving or node.op_type in _KEEP_PRODUCT else (),
            positions=first.positions if len(carrying) == 1 else None,
        )

    def _operation(
        self, kind: str, node: OnnxNode, source: _Value | None, parameters: dict[str, Constant]
    ) -> Operation:
        depth = 1 + (source.last.depth if source and source.last else 0)
        made = Operation(kind, depth, node.name or "/".join(node.outputs), parameters)
        for constant in parameters.values():
            if constant.quantized is not None:
                made.step = float(constant.quantized.scale.max(initial=0.0))
        if kind != "positions":
            self.operations.append(made)
        return made

    def _fold(self, node: OnnxNode, inputs: list[_Value]) -> _Value | None:
        """The result of an operation on constants, where it is one of the few that exporters leave standing."""
        constants = [value.constant for value in inputs if value.constant is not None]
        if node.op_type not in FOLDED or not inputs or len(constants) != len(inputs):
            return None
        try:
            with np.errstate(all="ignore"):
                array = evaluate(node, [constant.array for constant in constants])
        except (ValueError, IndexError, TypeError, OverflowError):
            return None
        if array is None:
            return None
        quantized = self._integers_of(node, constants)
        if array.base is None:
            self.bytes_left -= array.nbytes
            if self.bytes_left < 0:
                raise CheckpointError(f"{self.graph.path}: its constants grow out of bounds at node '{node.name}'")
        logarithm = constants[0].logarithm
        if node.op_type in ("Exp", "Softmax"):
            logarithm = constants[0]
        elif node.op_type not in _KEEP_PRODUCT:
            logarithm = None
        every = node.op_type == "DequantizeLinear"  # the zero points too
        sources = frozenset().union(
            *(c.sources for c in constants if every or c is constants[0] or c.array.dtype.kind == "f")
        )
        if len(sources) > MAX_SOURCES:
            return None
        edges = tuple(dict(edge for v in inputs for edge in v.chunk_edges).items()) if node.op_type == "Add" else ()
        return _Value(Constant(array, sources, logarithm, quantized), chunk_edges=edges)

    @staticmethod
    def _integers_of(node: OnnxNode, constants: list[Constant]) -> QuantizedTensor | None:
        """The integers of 8 bits that an operation on constants makes floats of, or moves; None where it does neither.

        They are weights that the graph multiplies in float.
        """
        first, arrays = constants[0], [constant.array for constant in constants]
        if node.op_type == "DequantizeLinear" and first.array.dtype.itemsize == 1:
            zero_point = arrays[2] if len(arrays) > 2 else None
            made = quantized_tensor(first.array, arrays[1], zero_point, axis_of_scales(node, first.array))
            return dataclasses.replace(made, multiplied=False)
        if node.op_type not in _MOVING or first.quantized is None:
            return None

        def moved(array: np.ndarray) -> np.ndarray:
            made = evaluate(node, [array, *arrays[1:]])
            assert made is not None  # these are always carried out
            return made

        return first.laid_out(moved).quantized


_HANDLERS = {
    "MatMul": _Tracer._matmul,
    "MatMulInteger": _Tracer._matmulinteger,
    "Gemm": _Tracer._gemm,
    "Conv": _Tracer._conv,
    "ConvInteger": _Tracer._convinteger,
    "Add": _Tracer._add,
    "Sub": _Tracer._sub,
    "Mul": _Tracer._mul,
    "Gather": _Tracer._gather,
    "DequantizeLinear": _Tracer._dequantizelinear,
    "Slice": _Tracer._slice,
    "Concat": _Tracer._concat,
    "Reshape": _Tracer._reshape,
}
_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _captured(node: OnnxNode) -> list[str]:
    """The values of the outer graph that the branches of a condition use."""
    if not any(isinstance(value, OnnxGraph) for value in node.attributes.values()):
        return []
    names: list[str] = []
    for branch in _branches((node,)):
        inside = {*branch.inputs, *branch.initializers, *(name for inner in branch.nodes for name in inner.outputs)}
        used = [name for inner in branch.nodes for name in (*inner.inputs, *_captured(inner))] + list(branch.outputs)
        names += [name for name in used if name and name not in inside]
    return names


def _scalar(constant: Constant) -> Constant:
    return dataclasses.replace(constant, array=constant.array.reshape(()), quantized=None)


def _integers(value: _Value) -> list[int | None]:
    constant = value.constant
    return constant.array.reshape(-1)[:8].tolist() if constant is not None and constant.array.dtype.kind == "i" else []


def _both_ways(inputs: list[_Value]) -> list[tuple[_Value, _Value]]:
    return [(inputs[0], inputs[1]), (inputs[1], inputs[0])] if len(inputs) == 2 else []
