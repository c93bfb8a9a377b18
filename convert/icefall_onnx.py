"""icefall Zipformers from ONNX: the trio of encoder, decoder and joiner, or a CTC model, offline or streaming.

Nothing is run and no name is trusted: `onnx_graph.trace` lists the operations with parameters in the order of the
data, and this file reads that list as the architecture prescribes it (`_LAYER` is one layer). A name that a tensor
kept must agree with the place where it was found. The result has the names and layouts of the recipe's .pt.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr.convert.icefall import IcefallCheckpoint
from jaxasr.convert.icefall_folded import is_position_table, unfold_chunk_scale, unfold_positions
from jaxasr.convert.onnx_constants import Constant
from jaxasr.convert.onnx_files import OnnxGraph, OnnxTensor, read_onnx
from jaxasr.convert.onnx_graph import Operation, stored_tensors, trace
from jaxasr.errors import CheckpointError

# The operations of a layer in the order of the data; the first two see the same input.
_FIRST = (("self_attn_weights.in_proj", "linear"), ("feed_forward1.in_proj", "linear"))
_BEFORE_CONV1 = (
    ("feed_forward1.out_proj", "linear"),
    ("nonlin_attention.in_proj", "linear"),
    ("nonlin_attention.out_proj", "linear"),
    ("self_attn1.in_proj", "linear"),
    ("self_attn1.out_proj", "linear"),
    ("conv_module1.in_proj", "linear"),
)
_BEFORE_CONV2 = (
    ("conv_module1.out_proj", "linear"),
    ("feed_forward2.in_proj", "linear"),
    ("feed_forward2.out_proj", "linear"),
    ("bypass_mid", "scale"),
    ("self_attn2.in_proj", "linear"),
    ("self_attn2.out_proj", "linear"),
    ("conv_module2.in_proj", "linear"),
)
_LAST = (
    ("conv_module2.out_proj", "linear"),
    ("feed_forward3.in_proj", "linear"),
    ("feed_forward3.out_proj", "linear"),
    ("norm", "norm"),
    ("bypass", "scale"),
)


def _depthwise(module: str, causal: bool) -> tuple[tuple[str, str], ...]:
    if not causal:
        return ((f"{module}.depthwise_conv", "convolution"),)
    return (
        (f"{module}.depthwise_conv.causal_conv", "convolution"),
        (f"{module}.depthwise_conv.chunkwise_conv", "convolution"),
        (f"{module}.depthwise_conv", "chunk scale"),
    )


_LAYER = {
    causal: _FIRST
    + _BEFORE_CONV1
    + _depthwise("conv_module1", causal)
    + _BEFORE_CONV2
    + _depthwise("conv_module2", causal)
    + _LAST
    for causal in (False, True)
}
_EMBED = (
    ("encoder_embed.conv.0", "convolution"),
    ("encoder_embed.conv.4", "convolution"),
    ("encoder_embed.conv.7", "convolution"),
    ("encoder_embed.convnext.depthwise_conv", "convolution"),
    ("encoder_embed.convnext.pointwise_conv1", "convolution"),
    ("encoder_embed.convnext.pointwise_conv2", "convolution"),
    ("encoder_embed.out", "linear"),
    ("encoder_embed.out_norm", "norm"),
)
# What an operation of each kind must have, under the names of the state dict.
_PARAMETERS = {
    "linear": {"weight", "bias"},
    "convolution": {"weight", "bias"},
    "norm": {"bias", "log_scale"},
    "scale": {"bypass_scale"},
    "downsample": {"bias"},
    "embedding": {"weight"},
}

# The exporters' wrappers drop "joiner." before the projections; a quantizer puts endings on names.
_RENAMED = re.compile(r"^(?=(encoder_proj|decoder_proj|output_linear)\.)")
_ENDINGS = re.compile(r"(?<=\.weight)_(quantized|scale|zero_point)$")
_KEPT_NAME = re.compile(r"^(encoder_embed|encoder|decoder|joiner|ctc_output)\.")

# Stored tensors that are no parameters, with the reason; position tables are compared with the formula first.
_IGNORED = (
    (lambda tensor: tensor.data_type in (6, 7, 9, 12, 13), "shapes, indices and masks"),
    (lambda tensor: tensor.size <= 1, "constants of activations, masks and norms"),
    (lambda tensor: not tensor.decodable and tensor.size == 1, "text"),
)

_ROLES = {"encoder": "encoder", "decoder": "decoder", "joiner": "joiner", "ctc": "CTC model"}


def read_models(files: Sequence[Path]) -> IcefallCheckpoint:
    """The checkpoint that `files` hold: encoder, decoder and joiner, or a CTC model, or all four; in any order.

    Tensors are float32 where the files are float16 or int8, else views of the mapped files; `notes` says what was
    converted. `arguments` holds what metadata states and shapes prove; `fixed_chunk` is True where the export holds
    for its chunk and left context only. CheckpointError for other models, for models that do not belong together,
    and for tensors that have no place or places that have no tensor (all in one line per file).
    """
    graphs: dict[str, OnnxGraph] = {}
    for file in files:
        graph = read_onnx(file)
        role = _role(graph)
        if role in graphs:
            raise CheckpointError(
                f"{file}: is a second {_ROLES[role]} beside {graphs[role].path.name}; name one of them"
            )
        graphs[role] = graph
    trio = [role for role in ("encoder", "decoder", "joiner") if role in graphs]
    if not graphs or len(trio) not in (0, 3):
        missing = [role for role in ("encoder", "decoder", "joiner") if role not in graphs]
        raise CheckpointError(
            f"{graphs[trio[0]].path if trio else 'no file'}: a transducer needs its {' and '.join(missing)} too; "
            "give encoder, decoder and joiner, or a CTC model"
        )
    parts = {role: _READERS[role](graph) for role, graph in graphs.items()}
    tensors: dict[str, np.ndarray] = {}
    arguments: dict[str, Any] = {"use_transducer": bool(trio), "use_ctc": "ctc" in graphs}
    for part in parts.values():
        for name, tensor in part.finish().items():
            if name in tensors and not np.array_equal(tensors[name], tensor):
                raise CheckpointError(f"{part.graph.path}: {name} is not that of the other file; they are two models")
            tensors.setdefault(name, tensor)
        for key, value in part.arguments.items():
            if arguments.setdefault(key, value) != value:
                raise CheckpointError(
                    f"{part.graph.path}: {key} is {value}, but {arguments[key]} in the other file; they are two models"
                )
    if trio:
        _agree(tensors, graphs)
    return IcefallCheckpoint(
        tensors, arguments, _notes(list(parts.values())), [graph.path for graph in graphs.values()]
    )


def _role(graph: OnnxGraph) -> str:
    model_type = graph.metadata.get("model_type", "zipformer2")
    if model_type not in ("zipformer2", "zipformer2_ctc"):
        raise CheckpointError(
            f"{graph.path}: its model_type is {model_type[:40]!r}, not zipformer2 (Zipformer version 2)"
        )
    if graph.metadata.get("feature"):
        raise CheckpointError(
            f"{graph.path}: takes {graph.metadata['feature'][:40]!r} features, not Kaldi's filterbank"
        )
    if {"encoder_out", "decoder_out"} <= graph.inputs.keys():
        return "joiner"
    for output, role in (("decoder_out", "decoder"), ("log_probs", "ctc"), ("encoder_out", "encoder")):
        if output in graph.outputs:
            return role
    outputs = ", ".join(graph.outputs)[:80]
    raise CheckpointError(
        f"{graph.path}: gives {outputs}, so it is no encoder, decoder, joiner or CTC model of icefall"
    )


class _Part:
    """One file's operations, taken in order and given icefall's names."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.operations = collections.deque(trace(graph))
        self.arguments: dict[str, Any] = {}
        self.tensors: dict[str, Constant] = {}
        self.used: set[str] = set()
        self.dequantized = self.widened = self.folded = False

    def take(self, name: str, kind: str, parameters: set[str] | None = None) -> Operation:
        """The next operation, which must be of this kind; its parameters become `name`.weight and so on."""
        if not self.operations:
            raise CheckpointError(f"{self.graph.path}: is no whole icefall Zipformer 2: it ends where {name} belongs")
        return self.place(self.operations.popleft(), name, kind, parameters)

    def place(self, operation: Operation, name: str, kind: str, parameters: set[str] | None = None) -> Operation:
        expected = _PARAMETERS.get(kind) if parameters is None else parameters
        if operation.kind != kind or operation.integers or (expected and operation.parameters.keys() != expected):
            having = ", ".join(operation.parameters)
            raise CheckpointError(
                f"{self.graph.path}: is no icefall Zipformer 2 that jaxasr knows: where {name} ({kind}) belongs, "
                f"node '{operation.node[:80]}' is a {operation.kind} with {having}"
            )
        if kind != "chunk scale":
            for parameter, constant in operation.parameters.items():
                self.put(f"{name}.{parameter}", constant)
        self.dequantized |= operation.step is not None
        return operation

    def put(self, name: str, constant: Constant) -> None:
        self.tensors[name] = constant
        self.used |= constant.sources

    def finish(self) -> dict[str, np.ndarray]:
        """The tensors in float32; CheckpointError where something is left over or a kept name contradicts its place."""
        places: dict[str, list[str]] = {}
        for name, constant in self.tensors.items():
            for source in constant.sources:
                places.setdefault(_kept_name(source), []).append(name)
        faults = [f"operation '{operation.node[:80]}' ({operation.kind}) is left over" for operation in self.operations]
        faults += [
            f"{kept} stands where {', '.join(names)} belongs"
            for kept, names in places.items()
            if _KEPT_NAME.match(kept) and kept not in names
        ]
        faults += [
            f"{tensor.name[:120]} {list(tensor.shape)} is left over"
            for tensor in stored_tensors(self.graph)
            if tensor.name not in self.used and not _ignored(tensor)
        ]
        if faults:
            raise CheckpointError(f"{self.graph.path}: " + "; ".join(faults))
        self.widened = any(constant.array.dtype == np.float16 for constant in self.tensors.values())
        return {name: constant.array.astype(np.float32, copy=False) for name, constant in self.tensors.items()}


def _kept_name(source: str) -> str:
    return _RENAMED.sub("joiner.", _ENDINGS.sub("", source))


def _ignored(tensor: OnnxTensor) -> bool:
    return not _KEPT_NAME.match(_kept_name(tensor.name)) and any(holds(tensor) for holds, _ in _IGNORED)


# The encoder --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What one layer's shapes prove; equal in all layers of a stack."""

    causal: bool
    encoder_dim: int
    feedforward_dim: int
    num_heads: int
    query_head_dim: int
    value_head_dim: int
    pos_head_dim: int
    pos_dim: int
    cnn_module_kernel: int


def _read_encoder(graph: OnnxGraph) -> _Part:
    part = _Part(graph)
    for name, kind in _EMBED:
        part.take(name, kind)
    streaming = _streaming_metadata(graph)
    layers: list[list[_Layer]] = []
    factors: list[int] = []
    while part.operations and not (part.operations[0].kind == "downsample" and len(part.operations) == 2):
        stack = len(layers)
        downsampled = part.operations[0].kind == "downsample"
        prefix = f"encoder.encoders.{stack}"
        factor = 1
        if downsampled:
            part.take(f"{prefix}.downsample", "downsample")
            factor = len(part.tensors[f"{prefix}.downsample.bias"].array)
            prefix += ".encoder"
        layers.append([])
        factors.append(factor)
        while True:
            name = f"{prefix}.layers.{len(layers[-1])}"
            layers[-1].append(_read_layer(part, name, _layer_operations(part), factor, streaming))
            if part.operations and part.operations[0].kind == "scale":
                break
            if not part.operations or part.operations[0].kind == "downsample":
                break
            if not downsampled and _begins_stack(part, stack, layers[-1][-1]):
                break
        if downsampled:
            part.take(f"encoder.encoders.{stack}.out_combiner", "scale")
    part.take("encoder.downsample_output", "downsample")
    _derive_arguments(part, layers, factors, streaming)
    return part


def _layer_operations(part: _Part) -> list[Operation]:
    """The operations up to the second bypass, in the order of _LAYER."""
    taken: list[Operation] = []
    bypasses = 0
    while part.operations and bypasses < 2:
        taken.append(part.operations.popleft())
        bypasses += taken[-1].kind == "scale"
    # Equal in depth, and so in any order: the attention and the first feed-forward, the two causal convolutions.
    if len(taken) > 1 and taken[1].positions is not None:
        taken[:2] = taken[1::-1]
    for first, second in zip(range(len(taken)), range(1, len(taken)), strict=False):
        if taken[first].kind == taken[second].kind == "convolution":
            taken[first : second + 1] = sorted(taken[first : second + 1], key=_kernel)
    return taken


def _kernel(operation: Operation) -> int:
    return operation.parameters["weight"].array.shape[-1]


def _begins_stack(part: _Part, stack: int, previous: _Layer) -> bool:
    """Whether the next layer opens another stack at full rate: its kept names say so, else a change of width."""
    numbers: collections.Counter[int] = collections.Counter()
    for operation in list(part.operations)[: len(_LAYER[True])]:
        for constant in operation.parameters.values():
            matches = (re.match(r"encoder\.encoders\.(\d{1,4})\.", source) for source in constant.sources)
            numbers.update(int(match[1]) for match in matches if match)
        if operation.kind == "norm":
            break
    if numbers:
        return numbers.most_common(1)[0][0] > stack
    norms = [operation for operation in part.operations if operation.kind == "norm"]
    return bool(norms) and norms[0].parameters["bias"].array.size != previous.encoder_dim


def _read_layer(
    part: _Part, name: str, operations: list[Operation], factor: int, streaming: dict[str, tuple[int, ...]]
) -> _Layer:
    causal = any(operation.kind == "chunk scale" for operation in operations)
    table = _LAYER[causal]
    if len(operations) != len(table) or operations[0].positions is None:
        raise CheckpointError(
            f"{part.graph.path}: is no icefall Zipformer 2 that jaxasr knows: {name} should have {len(table)} "
            f"operations with parameters, the first an attention with positions, but {len(operations)} were found"
        )
    for operation, (inner, kind) in zip(operations, table, strict=True):
        part.place(operation, f"{name}.{inner}", kind)
        if kind == "chunk scale":
            _place_chunk_scale(part, f"{name}.{inner}", operation)

    def rows(inner: str) -> int:
        return part.tensors[f"{name}.{inner}.weight"].array.shape[0]

    attention, positions = operations[0], operations[0].positions
    heads = _heads(part, name, attention, streaming)
    pos_name = f"{name}.self_attn_weights.linear_pos.weight"
    _place_positions(part, pos_name, positions, factor, streaming)
    pos_width, pos_dim = part.tensors[pos_name].array.shape
    queries, values = rows("self_attn_weights.in_proj") - pos_width, rows("self_attn1.in_proj")
    if pos_width % heads or queries <= 0 or queries % (2 * heads) or values % heads:
        raise CheckpointError(f"{part.graph.path}: {heads} heads do not fit the attention of {name}")
    kernel = "chunkwise_conv.weight" if causal else "weight"
    return _Layer(
        causal=causal,
        encoder_dim=part.tensors[f"{name}.norm.bias"].array.size,
        feedforward_dim=rows("feed_forward2.in_proj"),
        num_heads=heads,
        query_head_dim=queries // (2 * heads),
        value_head_dim=values // heads,
        pos_head_dim=pos_width // heads,
        pos_dim=pos_dim,
        cnn_module_kernel=part.tensors[f"{name}.conv_module1.depthwise_conv.{kernel}"].array.shape[-1],
    )


def _heads(part: _Part, name: str, attention: Operation, streaming: dict[str, tuple[int, ...]]) -> int:
    """The number of heads: the size to which queries and keys are reshaped; shapes of weights hold products only."""
    found = set(attention.heads)
    if "products" in attention.positions.parameters:
        found.add(attention.positions.parameters["products"].array.shape[0])
    stack = int(name.split(".")[2])
    if not found and stack < len(streaming.get("num_heads", ())):
        found.add(streaming["num_heads"][stack])
    if len(found) != 1 or min(found) < 1:
        raise CheckpointError(f"{part.graph.path}: the number of heads of {name} cannot be told ({sorted(found)})")
    return found.pop()


def _place_positions(
    part: _Part, name: str, positions: Operation, factor: int, streaming: dict[str, tuple[int, ...]]
) -> None:
    """linear_pos has no bias and no name: a matrix met by the position table, or (folded) their product."""
    part.dequantized |= positions.step is not None
    if positions.integers:
        raise CheckpointError(f"{part.graph.path}: the scale of the integers of {name} was not found")
    if positions.table is not None:
        if not is_position_table(positions.table.array):
            raise CheckpointError(
                f"{part.graph.path}: {name} is applied to '{min(positions.table.sources)[:80]}', which does not hold "
                "icefall's relative positions"
            )
        part.used |= positions.table.sources
        part.put(name, positions.parameters["weight"])
        return
    products = positions.parameters["products"]
    chunk = streaming.get("decode_chunk_len", (0,))[0] // 2 // factor
    if products.array.shape[1] != 1 or not 0 < chunk < products.array.shape[3]:
        raise CheckpointError(f"{part.graph.path}: {name} is folded into a table, and its chunk length cannot be told")
    # Rounding to int8 costs half a step; what the publisher's own files leave beyond it was measured as 0.21 steps.
    largest = float(np.abs(products.array).max())
    tolerance = 0.75 * positions.step if positions.step else 1e-3 * largest
    weight = unfold_positions(products.array, chunk, tolerance)
    if weight is None:
        raise CheckpointError(f"{part.graph.path}: the table of {name} is no product with icefall's relative positions")
    part.folded = True
    part.put(name, Constant(weight, products.sources))


def _place_chunk_scale(part: _Part, name: str, operation: Operation) -> None:
    """The two edges as the export holds them, or their sum for one chunk length."""
    kernel = part.tensors[f"{name}.chunkwise_conv.weight"].array.shape[-1]
    parameters = operation.parameters
    if parameters.keys() == {"left", "right"} and parameters["left"].array.shape == parameters["right"].array.shape:
        edges = np.stack([parameters["left"].array, parameters["right"].array])
    elif parameters.keys() == {"sum"} and parameters["sum"].array.ndim == 2:
        edges = unfold_chunk_scale(parameters["sum"].array, kernel)
        part.folded = True
    else:
        raise CheckpointError(
            f"{part.graph.path}: {name}.chunkwise_conv_scale was not found at '{operation.node[:80]}'"
        )
    sources = frozenset().union(*(constant.sources for constant in parameters.values()))
    part.put(f"{name}.chunkwise_conv_scale", Constant(edges, sources))


def _streaming_metadata(graph: OnnxGraph) -> dict[str, tuple[int, ...]]:
    """The lists of integers that a streaming export states; offline ones state none."""
    lists = {}
    for key in ("decode_chunk_len", "left_context_len", *_STATED):
        text = graph.metadata.get(key)
        if text is not None:
            if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", text):
                raise CheckpointError(f"{graph.path}: its metadata {key} is {text[:40]!r}, not a list of numbers")
            lists[key] = tuple(map(int, text.split(",")))
    return lists


# metadata of streaming exports → the recipe's argument, per stack
_STATED = {
    "num_encoder_layers": "num_encoder_layers",
    "encoder_dims": "encoder_dim",
    "cnn_module_kernels": "cnn_module_kernel",
    "query_head_dims": "query_head_dim",
    "value_head_dims": "value_head_dim",
    "num_heads": "num_heads",
}


def _derive_arguments(
    part: _Part, layers: list[list[_Layer]], factors: list[int], streaming: dict[str, tuple[int, ...]]
) -> None:
    path = part.graph.path
    mixed = [str(stack) for stack, same in enumerate(layers) if len(set(same)) != 1]
    if mixed or not layers:
        raise CheckpointError(f"{path}: the layers of stack {', '.join(mixed)} differ in size; this is no Zipformer 2")
    first = [same[0] for same in layers]
    if len({layer.causal for layer in first}) != 1 or len({layer.pos_dim for layer in first}) != 1:
        raise CheckpointError(f"{path}: its stacks differ in causality or pos_dim; this is no Zipformer 2")
    arguments = part.arguments
    arguments["num_encoder_layers"] = tuple(len(same) for same in layers)
    arguments["downsampling_factor"] = tuple(factors)
    for field in dataclasses.fields(_Layer):
        arguments[field.name] = tuple(getattr(layer, field.name) for layer in first)
    for key in ("causal", "pos_dim"):
        arguments[key] = arguments[key][0]
    for key, argument in _STATED.items():
        if key in streaming and streaming[key] != arguments[argument]:
            raise CheckpointError(f"{path}: metadata says {key} {streaming[key]}, its tensors {arguments[argument]}")
    if "decode_chunk_len" in streaming:
        left = {length * factor for length, factor in zip(streaming.get("left_context_len", ()), factors, strict=False)}
        if len(left) != 1 or len(streaming["left_context_len"]) != len(factors):
            raise CheckpointError(f"{path}: left_context_len in its metadata does not fit downsampling {factors}")
        arguments["chunk_size"] = (streaming["decode_chunk_len"][0] // 2,)
        arguments["left_context_frames"] = (left.pop(),)
    if part.folded:
        arguments["fixed_chunk"] = True


# The heads ----------------------------------------------------------------------------------------------------------


def _read_transducer_encoder(graph: OnnxGraph) -> _Part:
    part = _read_encoder(graph)
    part.take("joiner.encoder_proj", "linear")
    return part


def _read_ctc(graph: OnnxGraph) -> _Part:
    part = _read_encoder(graph)
    part.take("ctc_output.1", "linear")
    part.arguments["vocab_size"] = part.tensors["ctc_output.1.weight"].array.shape[0]
    return part


def _read_decoder(graph: OnnxGraph) -> _Part:
    part = _Part(graph)
    part.take("decoder.embedding", "embedding")
    vocabulary, width = part.tensors["decoder.embedding.weight"].array.shape
    context = 1
    if part.operations and part.operations[0].kind == "convolution":
        part.take("decoder.conv", "convolution", {"weight"})
        context = part.tensors["decoder.conv.weight"].array.shape[-1]
    part.take("joiner.decoder_proj", "linear")
    part.arguments.update(vocab_size=vocabulary, decoder_dim=width, context_size=context)
    for key in ("vocab_size", "context_size"):
        stated = graph.metadata.get(key)
        if stated is not None and stated != str(part.arguments[key]):
            raise CheckpointError(f"{graph.path}: metadata says {key} {stated[:20]}, its tensors {part.arguments[key]}")
    return part


def _read_joiner(graph: OnnxGraph) -> _Part:
    part = _Part(graph)
    part.take("joiner.output_linear", "linear")
    vocabulary, width = part.tensors["joiner.output_linear.weight"].array.shape
    part.arguments.update(vocab_size=vocabulary, joiner_dim=width)
    stated = graph.metadata.get("joiner_dim")
    if stated is not None and stated != str(width):
        raise CheckpointError(f"{graph.path}: metadata says joiner_dim {stated[:20]}, its tensors {width}")
    return part


_READERS = {"encoder": _read_transducer_encoder, "decoder": _read_decoder, "joiner": _read_joiner, "ctc": _read_ctc}


def _agree(tensors: dict[str, np.ndarray], graphs: dict[str, OnnxGraph]) -> None:
    joined = tensors["joiner.output_linear.weight"].shape[1]
    for role in ("encoder", "decoder"):
        width = tensors[f"joiner.{role}_proj.weight"].shape[0]
        if width != joined:
            raise CheckpointError(
                f"{graphs[role].path}: its output has {width} numbers, but {graphs['joiner'].path.name} takes {joined}; "
                "they are of two models"
            )


def _notes(parts: list[_Part]) -> list[str]:
    notes = []
    for chosen, text in (
        ([part for part in parts if part.dequantized], "int8 weights are dequantized to float32"),
        ([part for part in parts if part.widened], "float16 weights are widened to float32"),
    ):
        if chosen:
            notes.append(f"{', '.join(part.graph.path.name for part in chosen)}: {text}")
    for part in parts:
        if part.folded:
            chunk, left = part.arguments["chunk_size"][0], part.arguments["left_context_frames"][0]
            notes.append(
                f"{part.graph.path.name}: exported for chunks of {chunk} frames with {left} frames of left context, "
                "and right for these only: positions and edges of chunks are fitted to its tables"
            )
    return notes
