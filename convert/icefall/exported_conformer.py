"""icefall's Conformer encoder, read from the operations of its ONNX export in the order of the architecture.

The exporter has folded the log scales of training into the weights, but for the attention's, whose exponentials and
products stand in the graph: `trace` carries them out, so that every tensor comes out folded.
"""

from __future__ import annotations

import re

import numpy as np

from jaxasr.convert.formats.onnx.files import OnnxGraph
from jaxasr.convert.icefall.exported_parts import Part
from jaxasr.errors import CheckpointError

_EMBED = (
    ("conv.0", "convolution"),
    ("conv.3", "convolution"),
    ("conv.6", "convolution"),
    ("out", "linear"),
    ("out_norm", "mean square norm"),
)
_LAYER = (
    ("feed_forward_macaron.0", "linear"),
    ("feed_forward_macaron.4", "linear"),
    ("self_attn.in_proj", "linear"),
    ("self_attn.out_proj", "linear"),
    ("conv_module.pointwise_conv1", "convolution"),
    ("conv_module.depthwise_conv", "convolution"),
    ("conv_module.pointwise_conv2", "convolution"),
    ("feed_forward.0", "linear"),
    ("feed_forward.4", "linear"),
    ("norm_final", "mean square norm"),
)
# Metadata of streaming exports → the recipe's argument.
_STATED = {
    "num_encoder_layers": "num_encoder_layers",
    "encoder_dim": "encoder_dim",
    "cnn_module_kernel": "cnn_module_kernel",
}


def read_encoder(graph: OnnxGraph, integers: bool = False) -> Part:
    """The front end and the layers of `graph`; the operation that follows is left to the caller.

    CheckpointError where the operations are not those of an icefall Conformer.
    """
    part = Part(graph, "icefall Conformer", integers)
    for name, kind in _EMBED:
        part.name_next(f"encoder.encoder_embed.{name}", kind)
    layers: list[tuple[int, ...]] = []
    while len(part.operations) > 1 or not layers:
        layers.append(_read_layer(part, f"encoder.encoder.layers.{len(layers)}"))
    if len(set(layers)) > 1:
        raise CheckpointError(f"{graph.path}: its layers differ in size; this is no icefall Conformer")
    dim, hidden, heads, kernel, context = layers[0]
    if context not in (0, kernel - 1):
        raise CheckpointError(f"{graph.path}: a depthwise convolution with {context} zeros around it is no Conformer's")
    part.settings.update(
        num_encoder_layers=len(layers),
        encoder_dim=dim,
        dim_feedforward=hidden,
        nhead=heads,
        cnn_module_kernel=kernel,
        causal_convolution=context == 0,
        # Exports of whole utterances hold no mask of chunks.
        dynamic_chunk_training="cached_attn" in graph.inputs,
    )
    if "cached_attn" in graph.inputs:
        _read_streaming_metadata(part)
    return part


def _read_layer(part: Part, name: str) -> tuple[int, ...]:
    """Name the next layer's tensors; its dim, feed-forward width, heads, kernel and zeros around the convolution."""
    operations = {inner: part.name_next(f"{name}.{inner}", kind) for inner, kind in _LAYER}
    attention, convolution = operations["self_attn.in_proj"], operations["conv_module.depthwise_conv"]
    content, position = attention.biases.get("keys"), attention.biases.get("positions")
    positions = attention.positions
    if content is None or position is None or positions is None or positions.table is None or positions.integers:
        raise CheckpointError(
            f"{part.graph.path}: is no {part.architecture} that jaxasr knows: {name}.self_attn has no relative "
            "positions and no biases for them"
        )
    if not is_position_table(positions.table.array):
        raise CheckpointError(
            f"{part.graph.path}: {name}.self_attn.linear_pos is applied to '{min(positions.table.sources)[:80]}', "
            "which does not hold relative positions"
        )
    bias = positions.parameters.get("bias")
    if bias is not None:
        # The exporter makes an ordinary linear layer of it.
        if bias.array.any():
            raise CheckpointError(f"{part.graph.path}: {name}.self_attn.linear_pos has a bias, icefall's none")
        part.used |= bias.sources
    part.used |= positions.table.sources
    part.add_tensor(f"{name}.self_attn.linear_pos.weight", positions.parameters["weight"])
    part.add_tensor(f"{name}.self_attn.pos_bias_u", content)
    part.add_tensor(f"{name}.self_attn.pos_bias_v", position)
    dim = part.tensors[f"{name}.self_attn.out_proj.weight"].array.shape[0]
    heads, width = content.array.shape
    if heads * width != dim or attention.heads - {heads}:
        raise CheckpointError(f"{part.graph.path}: {heads} heads of {width} do not fit the attention of {name}")
    hidden = part.tensors[f"{name}.feed_forward.0.weight"].array.shape[0]
    kernel = part.tensors[f"{name}.conv_module.depthwise_conv.weight"].array.shape[-1]
    return dim, hidden, heads, kernel, sum(convolution.pads)


def _read_streaming_metadata(part: Part) -> None:
    """Chunk and contexts that a streaming export holds for, against its other numbers."""
    graph, settings = part.graph, part.settings
    numbers: dict[str, int] = {}
    for key in (*_STATED, "chunk_size", "left_context", "right_context", "decode_chunk_len", "T"):
        text = graph.metadata.get(key, "")
        if not re.fullmatch(r"\d{1,6}", text):
            raise CheckpointError(f"{graph.path}: its metadata {key} is {text[:40]!r}, not a number")
        numbers[key] = int(text)
    for key, argument in _STATED.items():
        if numbers[key] != settings[argument]:
            raise CheckpointError(f"{graph.path}: metadata says {key} {numbers[key]}, its tensors {settings[argument]}")
    chunk, ahead = numbers["chunk_size"], numbers["right_context"]
    if not settings["causal_convolution"] or chunk < 1 or numbers["decode_chunk_len"] != 4 * chunk:
        raise CheckpointError(f"{graph.path}: chunk_size {chunk} in its metadata does not fit its graph")
    if numbers["T"] != 4 * (chunk + ahead + 2) + 3:
        raise CheckpointError(f"{graph.path}: T {numbers['T']} in its metadata does not fit chunks of {chunk}")
    settings.update(chunk_size=(chunk,), left_context_frames=(numbers["left_context"],), right_context=ahead)


def is_position_table(table: np.ndarray) -> bool:
    """Whether `table` (1, N, D) or (N, D) holds the sinusoids of offsets from +(N - 1) / 2 down to their negative."""
    rows = table.reshape(-1, table.shape[-1]) if table.ndim else table
    if rows.ndim != 2 or table.dtype.kind != "f" or len(rows) % 2 == 0 or rows.shape[1] % 2:
        return False
    offsets = len(rows) // 2 - np.arange(len(rows), dtype=np.float64)[:, None]
    angles = offsets * 10000.0 ** (-np.arange(0, rows.shape[1], 2) / rows.shape[1])
    expected = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(rows.shape)
    # The export's angles are float32, up to 5000: right to 5e-4 before the sine; float16 rounds the sine by as much.
    return bool(np.abs(rows - expected).max() < 2e-3)
