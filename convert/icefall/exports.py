"""icefall's models from ONNX: the trio of encoder, decoder and joiner, or a CTC model, offline or streaming.

Nothing is run and no name is trusted: `trace` lists the operations with parameters in the order of the data, and the
readers take them from that list as the architecture prescribes. A name that a tensor kept must agree
with the place where it was found. The result has the names and layouts of the recipe's .pt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr.convert.formats.onnx.files import OnnxGraph, read_onnx
from jaxasr.convert.icefall import exported_conformer, exported_zipformer
from jaxasr.convert.icefall.exported_parts import Part
from jaxasr.convert.mapping import Checkpoint
from jaxasr.errors import CheckpointError

# What encoders and CTC models call themselves; decoders and joiners are the same everywhere and say nothing.
_ENCODERS = {
    "zipformer2": exported_zipformer.read_encoder,
    "zipformer2_ctc": exported_zipformer.read_encoder,
    "conformer": exported_conformer.read_encoder,
}
_DEFAULT_TYPE = "zipformer2"
_ROLES = {"encoder": "encoder", "decoder": "decoder", "joiner": "joiner", "ctc": "CTC model"}


def read_models(files: Sequence[Path], integers: bool = False) -> Checkpoint:
    """The checkpoint that `files` hold: encoder, decoder and joiner, or a CTC model, or all four; in any order.

    Tensors are float32 where the files are float16 or int8, else views of the mapped files; `notes` says what was
    converted. `integers`: those of int8 files are kept beside them, and their tables of positions are not unfolded.
    `settings` holds what metadata states and shapes prove; `fixed_chunk` is True where the export holds
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
    graphs = {role: graphs[role] for role in _ROLES if role in graphs}
    trio = [role for role in ("encoder", "decoder", "joiner") if role in graphs]
    if not graphs or len(trio) not in (0, 3):
        missing = [role for role in ("encoder", "decoder", "joiner") if role not in graphs]
        raise CheckpointError(
            f"{graphs[trio[0]].path if trio else 'no file'}: a transducer needs its {' and '.join(missing)} too; "
            "give encoder, decoder and joiner, or a CTC model"
        )
    parts = {role: _READERS[role](graph, integers) for role, graph in graphs.items()}
    tensors: dict[str, np.ndarray] = {}
    settings: dict[str, Any] = {"use_transducer": bool(trio), "use_ctc": "ctc" in graphs}
    for part in parts.values():
        for name, tensor in part.named_tensors().items():
            if name in tensors and not np.array_equal(tensors[name], tensor):
                raise CheckpointError(f"{part.graph.path}: {name} is not that of the other file; they are two models")
            tensors.setdefault(name, tensor)
        for key, value in part.settings.items():
            if settings.setdefault(key, value) != value:
                raise CheckpointError(
                    f"{part.graph.path}: {key} is {value}, but {settings[key]} in the other file; they are two models"
                )
    if trio:
        _agree(tensors, graphs)
    paths = [graph.path for graph in graphs.values()]
    quantized = {name: tensor for part in parts.values() for name, tensor in part.quantized.items()}
    return Checkpoint(tensors, settings, _notes(list(parts.values())), paths, quantized=quantized)


def _role(graph: OnnxGraph) -> str:
    model_type = graph.metadata.get("model_type", _DEFAULT_TYPE)
    if model_type not in _ENCODERS:
        raise CheckpointError(
            f"{graph.path}: its model_type is {model_type[:40]!r}, not zipformer2 (Zipformer version 2) or conformer"
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


def _read_encoder(graph: OnnxGraph, integers: bool) -> Part:
    return _ENCODERS[graph.metadata.get("model_type", _DEFAULT_TYPE)](graph, integers)


def _read_transducer_encoder(graph: OnnxGraph, integers: bool) -> Part:
    part = _read_encoder(graph, integers)
    part.name_next("joiner.encoder_proj", "linear")
    return part


def _read_ctc(graph: OnnxGraph, integers: bool) -> Part:
    part = _read_encoder(graph, integers)
    part.name_next("ctc_output.1", "linear")
    part.settings["vocab_size"] = part.tensors["ctc_output.1.weight"].array.shape[0]
    return part


def _read_decoder(graph: OnnxGraph, integers: bool) -> Part:
    part = Part(graph, "icefall decoder", integers)
    part.name_next("decoder.embedding", "embedding")
    vocabulary, width = part.tensors["decoder.embedding.weight"].array.shape
    context = 1
    if part.operations and part.operations[0].kind == "convolution":
        part.name_next("decoder.conv", "convolution", {"weight"})
        context = part.tensors["decoder.conv.weight"].array.shape[-1]
    part.name_next("joiner.decoder_proj", "linear")
    part.settings.update(vocab_size=vocabulary, decoder_dim=width, context_size=context)
    for key in ("vocab_size", "context_size"):
        stated = graph.metadata.get(key)
        if stated is not None and stated != str(part.settings[key]):
            raise CheckpointError(f"{graph.path}: metadata says {key} {stated[:20]}, its tensors {part.settings[key]}")
    return part


def _read_joiner(graph: OnnxGraph, integers: bool) -> Part:
    part = Part(graph, "icefall joiner", integers)
    part.name_next("joiner.output_linear", "linear")
    vocabulary, width = part.tensors["joiner.output_linear.weight"].array.shape
    part.settings.update(vocab_size=vocabulary, joiner_dim=width)
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
                f"{graphs[role].path}: gives {width} numbers, but {graphs['joiner'].path.name} takes {joined}; "
                "they are of two models"
            )


def _notes(parts: list[Part]) -> list[str]:
    notes = []
    for chosen, text in (
        (
            [part for part in parts if part.dequantized],
            "int8 weights are dequantized to float32 (precision int8 keeps the integers)",
        ),
        ([part for part in parts if part.quantized], "integers, scales and zero points are those of the file"),
        ([part for part in parts if part.widened], "float16 weights are widened to float32"),
    ):
        if chosen:
            notes.append(f"{', '.join(part.graph.path.name for part in chosen)}: {text}")
    for part in parts:
        if part.folded:
            chunk, left = part.settings["chunk_size"][0], part.settings["left_context_frames"][0]
            notes.append(
                f"{part.graph.path.name}: exported for chunks of {chunk} frames with {left} frames of left context, "
                f"and right for these only: {'' if part.quantized else 'positions and '}edges of chunks are fitted to "
                f"its tables{', which stay those of the positions' if part.quantized else ''}"
            )
    return notes
