"""icefall's Zipformer encoder, read from the operations of its ONNX export in the order of the architecture."""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np

from jaxasr.convert.formats.onnx.constants import Constant
from jaxasr.convert.formats.onnx.files import OnnxGraph
from jaxasr.convert.formats.onnx.graph import Operation
from jaxasr.convert.icefall.exported_parts import Part
from jaxasr.convert.icefall.folded import POS_DIMS, is_position_table, unfold_chunk_scale, unfold_positions
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
    pos_dim: int | None  # None: hidden in a folded table
    cnn_module_kernel: int


def read_encoder(graph: OnnxGraph, integers: bool = False) -> Part:
    """The front end, the stacks and the last downsampling of `graph`; what follows is left to the caller.

    CheckpointError where the operations are not those of a Zipformer, version 2.
    """
    part = Part(graph, "icefall Zipformer 2", integers)
    for name, kind in _EMBED:
        part.name_next(name, kind)
    streaming = _streaming_metadata(graph)
    layers: list[list[_Layer]] = []
    factors: list[int] = []
    while part.operations and not (part.operations[0].kind == "downsample" and len(part.operations) == 2):
        stack = len(layers)
        downsampled = part.operations[0].kind == "downsample"
        prefix = f"encoder.encoders.{stack}"
        factor = 1
        if downsampled:
            part.name_next(f"{prefix}.downsample", "downsample")
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
            part.name_next(f"encoder.encoders.{stack}.out_combiner", "scale")
    part.name_next("encoder.downsample_output", "downsample")
    _derive_settings(part, layers, factors, streaming)
    return part


def _layer_operations(part: Part) -> list[Operation]:
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


def _kernel(operation: Operation) -> tuple[int, ...]:
    return operation.parameters["weight"].array.shape[-1:]


def _begins_stack(part: Part, stack: int, previous: _Layer) -> bool:
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
    part: Part, name: str, operations: list[Operation], factor: int, streaming: dict[str, tuple[int, ...]]
) -> _Layer:
    causal = any(operation.kind == "chunk scale" for operation in operations)
    table = _LAYER[causal]
    positions = operations[0].positions if operations else None
    if len(operations) != len(table) or positions is None:
        raise CheckpointError(
            f"{part.graph.path}: is no {part.architecture} that jaxasr knows: {name} should have {len(table)} "
            f"operations with parameters, the first an attention with positions, but {len(operations)} were found"
        )
    for operation, (inner, kind) in zip(operations, table, strict=True):
        part.name_operation(operation, f"{name}.{inner}", kind)
        if kind == "chunk scale":
            _place_chunk_scale(part, f"{name}.{inner}", operation, factor, streaming)

    def rows(inner: str) -> int:
        return int(part.tensors[f"{name}.{inner}.weight"].array.shape[0])

    heads = _heads(part, name, operations[0], positions, streaming)
    pos_name = f"{name}.self_attn_weights.linear_pos.weight"
    _place_positions(part, pos_name, positions, factor, streaming)
    if pos_name in part.tensors:
        pos_width, pos_dim = part.tensors[pos_name].array.shape
    else:
        pos_width, pos_dim = heads * positions.parameters["products"].array.shape[2], None
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


def _heads(
    part: Part, name: str, attention: Operation, positions: Operation, streaming: dict[str, tuple[int, ...]]
) -> int:
    """The number of heads: the size to which queries and keys are reshaped; shapes of weights hold products only."""
    found: set[int] = set(attention.heads)
    if "products" in positions.parameters:
        found.add(positions.parameters["products"].array.shape[0])
    stack = int(name.split(".")[2])
    if not found and stack < len(streaming.get("num_heads", ())):
        found.add(streaming["num_heads"][stack])
    if len(found) != 1 or min(found) < 1:
        raise CheckpointError(f"{part.graph.path}: the number of heads of {name} cannot be told ({sorted(found)})")
    return found.pop()


def _place_positions(
    part: Part, name: str, positions: Operation, factor: int, streaming: dict[str, tuple[int, ...]]
) -> None:
    """linear_pos has no bias and no name: it multiplies the position table, or (folded) only the product is there."""
    if positions.integers:
        raise CheckpointError(f"{part.graph.path}: the scale of the integers of {name} was not found")
    if positions.table is not None:
        if not is_position_table(positions.table.array):
            raise CheckpointError(
                f"{part.graph.path}: {name} is applied to '{min(positions.table.sources)[:80]}', which does not hold "
                "icefall's relative positions"
            )
        part.used |= positions.table.sources
        part.add_tensor(name, positions.parameters["weight"])
        return
    products = positions.parameters["products"]
    chunk = streaming.get("decode_chunk_len", (0,))[0] // 2 // factor
    if products.array.shape[1] != 1 or 0 in products.array.shape or not 0 < chunk < products.array.shape[3]:
        raise CheckpointError(f"{part.graph.path}: {name} is folded into a table, and its chunk length cannot be told")
    # Rounding to int8 costs half a step; what the publisher's own files leave beyond it was measured as 0.21 steps.
    tolerance = 0.75 * positions.step if positions.step else 1e-3 * float(np.abs(products.array).max())
    part.folded_positions.append((name, products, chunk, tolerance))


def _unfold_positions(part: Part, candidates: tuple[int, ...]) -> int:
    """Fit the matrices of all folded position tables with the first pos_dim that does for each; that pos_dim."""
    if not part.folded_positions:
        return candidates[0]
    for pos_dim in candidates:
        fits = [unfold_positions(products.array, chunk, pos_dim) for _, products, chunk, _ in part.folded_positions]
        if all(miss <= fold[3] for (_, miss), fold in zip(fits, part.folded_positions, strict=True)):
            for (weight, _), (name, products, _, _) in zip(fits, part.folded_positions, strict=True):
                part.add_tensor(name, Constant(weight, products.sources))
            part.folded = True
            return pos_dim
    raise CheckpointError(f"{part.graph.path}: its position tables are no products with icefall's relative positions")


def _keep_positions(part: Part) -> bool:
    """Whether all folded position tables are integers that are to stay such; then they are placed as they are."""
    tables = [(name, products) for name, products, _, _ in part.folded_positions if products.quantized is not None]
    if not part.integers or not tables or len(tables) < len(part.folded_positions):
        return False
    for name, products in tables:
        assert products.quantized is not None
        table = products.quantized.laid_out(_by_offset)
        name = f"{name.removesuffix('linear_pos.weight')}position_table"
        part.add_tensor(name, Constant(table.dequantize(), products.sources, quantized=table))
    part.folded = part.settings["stored_positions"] = True
    del part.settings["pos_dim"]  # nothing tells it
    return True


def _by_offset(products: np.ndarray) -> np.ndarray:
    """(heads, 1, d, N) -> (N, heads * d)."""
    return products.transpose(3, 1, 0, 2).reshape(products.shape[3], -1)


def _place_chunk_scale(
    part: Part, name: str, operation: Operation, factor: int, streaming: dict[str, tuple[int, ...]]
) -> None:
    """The two edges as the export holds them, or their sum for one chunk length."""
    channels, _, kernel = part.tensors[f"{name}.chunkwise_conv.weight"].array.shape
    arrays = {role: constant.array for role, constant in operation.parameters.items()}
    chunk = streaming.get("decode_chunk_len", (0,))[0] // 2 // factor
    if arrays.keys() == {"left", "right"} and all(array.shape == (channels, kernel) for array in arrays.values()):
        edges = np.stack([arrays["left"], arrays["right"]])
    elif arrays.keys() == {"sum"} and chunk > 0 and arrays["sum"].shape == (channels, chunk):
        edges = unfold_chunk_scale(arrays["sum"], kernel)
        part.folded = True
    else:
        raise CheckpointError(
            f"{part.graph.path}: {name}.chunkwise_conv_scale is neither two edges of {kernel} frames nor their sum for "
            f"a known chunk at node '{operation.node[:80]}'"
        )
    sources = frozenset().union(*(constant.sources for constant in operation.parameters.values()))
    part.add_tensor(f"{name}.chunkwise_conv_scale", Constant(edges, sources))


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


def _derive_settings(
    part: Part, layers: list[list[_Layer]], factors: list[int], streaming: dict[str, tuple[int, ...]]
) -> None:
    path = part.graph.path
    mixed = [str(stack) for stack, same in enumerate(layers) if len(set(same)) != 1]
    if mixed or not layers:
        raise CheckpointError(f"{path}: the layers of stack {', '.join(mixed)} differ in size; this is no Zipformer 2")
    first = [same[0] for same in layers]
    pos_dims = {layer.pos_dim for layer in first if layer.pos_dim is not None}
    if len({layer.causal for layer in first}) != 1 or len(pos_dims) > 1:
        raise CheckpointError(f"{path}: its stacks differ in causality or pos_dim; this is no Zipformer 2")
    settings = part.settings
    settings["num_encoder_layers"] = tuple(len(same) for same in layers)
    settings["downsampling_factor"] = tuple(factors)
    for field in dataclasses.fields(_Layer):
        settings[field.name] = tuple(getattr(layer, field.name) for layer in first)
    settings["causal"] = first[0].causal
    if not _keep_positions(part):
        settings["pos_dim"] = _unfold_positions(part, tuple(pos_dims) or POS_DIMS)
    for key, argument in _STATED.items():
        if key in streaming and streaming[key] != settings[argument]:
            raise CheckpointError(f"{path}: metadata says {key} {streaming[key]}, its tensors {settings[argument]}")
    if "decode_chunk_len" in streaming:
        left = {length * factor for length, factor in zip(streaming.get("left_context_len", ()), factors, strict=False)}
        if len(left) != 1 or len(streaming["left_context_len"]) != len(factors):
            raise CheckpointError(f"{path}: left_context_len in its metadata does not fit downsampling {factors}")
        chunk = streaming["decode_chunk_len"][0] // 2
        if not first[0].causal or chunk < 1 or any(chunk % factor for factor in factors):
            raise CheckpointError(f"{path}: decode_chunk_len in its metadata does not fit downsampling {factors}")
        settings["chunk_size"] = (chunk,)
        settings["left_context_frames"] = (left.pop(),)
    if part.folded:
        settings["fixed_chunk"] = True
