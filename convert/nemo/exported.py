"""A frame classifier of NeMo from an ONNX export with a front end of its own and without the names of its weights.

Nothing is run and no name is trusted: weights are taken in the order of the nodes. The result has the names and the
settings of an archive, but for the front end, which is none of NeMo's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr.convert.formats.onnx.files import OnnxGraph, OnnxNode, read_onnx
from jaxasr.convert.mapping import Checkpoint
from jaxasr.convert.nemo.detectors import FRAME_TARGET, FRONT_END, MODELS
from jaxasr.encoders.citrinet import BATCH_EPSILON
from jaxasr.errors import CheckpointError, listing
from jaxasr.features.nemo_config import NemoMelConfig

OUTPUTS = {"score_silence": "0", "score_active": "1"}  # and what an archive calls these classes

# The nodes of the front end in their order: the mean, preemphasis, the Fourier transform by two convolutions, mel, log.
_FRONT_END = "Cast Mul ReduceMean Sub Slice Slice Slice Mul Sub Concat Conv Conv Mul Mul Add MatMul Add Log".split()
_CONVOLUTIONS = ("Conv", "FusedConv")
# Of the encoder, the head and the count of frames.
_KNOWN = {
    *_CONVOLUTIONS, "Relu", "Add", "Transpose", "MatMul", "Softmax", "Split",
    "Shape", "Gather", "Unsqueeze", "Squeeze", "Sub", "Div", "Floor", "Cast", "Identity",
}  # fmt: skip
_FOURIER_ERROR = 1e-3  # of a window times a cosine whose phases were float32
_RATE = 16000


def is_detector(path: Path) -> bool:
    """Whether the file is an ONNX model with the outputs of such an export."""
    with contextlib.suppress(CheckpointError):
        return OUTPUTS.keys() <= read_onnx(path).outputs.keys()
    return False


def read_detector(path: Path) -> Checkpoint:
    """The tensors under NeMo's names, with settings as model_config.yaml has them.

    CheckpointError, one line, for a graph that is not that of such an export.
    """
    graph = read_onnx(path)
    if not OUTPUTS.keys() <= graph.outputs.keys():
        raise CheckpointError(f"{path}: its outputs are {listing(graph.outputs)}, not {' and '.join(OUTPUTS)}")
    nodes = [node for node in graph.nodes if node.op_type != "Constant"]
    try:
        front_end, arrays = _front_end(graph, nodes[: len(_FRONT_END)])
        blocks, tensors = _encoder(graph, nodes[len(_FRONT_END) :])
        tensors |= _head(graph, nodes[len(_FRONT_END) :])
        labels = [OUTPUTS[name] for name in nodes[_place(nodes, "Split")].outputs]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its graph is not that of a frame classifier as jaxasr knows it ({error}): convert the .nemo "
            "archive instead"
        ) from None
    encoder = {"_target_": "ConvASREncoder", "feat_in": front_end.bins, "activation": "relu", "jasper": blocks}
    settings = {
        "target": MODELS[1],
        "labels": labels,
        FRONT_END: front_end,
        "encoder": encoder,
        "decoder": {"_target_": FRAME_TARGET, "num_layers": 1},
    }
    return Checkpoint(arrays | tensors, settings, ["batch norms are folded into the convolutions before them"], [path])


def _front_end(graph: OnnxGraph, nodes: Sequence[OnnxNode]) -> tuple[NemoMelConfig, dict[str, np.ndarray]]:
    """The front end, and its filterbank and window under NeMo's names; ValueError where it is another one."""
    found = [node.op_type for node in nodes]
    if found != _FRONT_END:
        raise ValueError(f"another front end: {' '.join(found)}")
    scale, preemphasis, guard = (_constants(graph, nodes[place])[0].item() for place in (1, 7, 16))
    (sine,), (cosine,) = (_constants(graph, nodes[place]) for place in (10, 11))
    (mel,) = _constants(graph, nodes[15])
    lines, _, fft_length = cosine.shape
    whole = cosine[0, 0]  # the window in the middle of a Fourier transform
    phases = 2 * np.pi / fft_length * np.outer(np.arange(lines), np.arange(fft_length))
    errors = cosine[:, 0] - whole * np.cos(phases), np.abs(sine[:, 0]) - np.abs(whole * np.sin(phases))
    if fft_length != 2 * (lines - 1) or scale != 2.0**-15 or np.abs(errors).max() > _FOURIER_ERROR:
        raise ValueError("its convolutions are no Fourier transform of 16-bit samples")
    length = np.count_nonzero(whole) + 1  # of a period, whose first sample is 0
    window = whole[(fft_length - length) // 2 :][:length]
    if np.abs(window - np.hanning(length + 1)[:length]).max() > _FOURIER_ERROR:
        raise ValueError("its window is no Hann window")
    (hop,) = nodes[10].attributes["strides"]
    config = NemoMelConfig(
        sample_rate=_RATE,
        window_length=int(length),
        hop_length=hop,
        fft_length=fft_length,
        bins=mel.shape[-2],
        periodic=True,
        framing="zeros_all",
        subtract_mean=True,
        preemphasis=preemphasis,
        log_guard_value=guard,
        normalize="none",
        dither=0.0,
    )
    return config, {"preprocessor.featurizer.fb": mel, "preprocessor.featurizer.window": window}


def _encoder(graph: OnnxGraph, nodes: Sequence[OnnxNode]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The blocks as an archive lists them, and their tensors under NeMo's names.

    A unit is a depthwise convolution and the pointwise one that hears it, or a pointwise one alone. A pointwise one
    that hears what a depthwise one hears is the residual of a block, which begins there and ends where both are added.
    """
    if unknown := sorted({node.op_type for node in nodes} - _KNOWN):
        raise ValueError(f"it has {listing(unknown)}")
    convolutions = [node for node in nodes if node.op_type in _CONVOLUTIONS]
    depthwise = {node.outputs[0]: node for node in convolutions if node.attributes["group"] > 1}
    pointwise = [node for node in convolutions if node.outputs[0] not in depthwise]
    sources = {node.inputs[0] for node in depthwise.values()}
    residuals = {node.inputs[0]: node for node in pointwise if node.inputs[0] in sources}
    added = {name for node in nodes if node.op_type == "Add" for name in node.inputs}
    activated = added | {name for node in nodes if node.op_type == "Relu" for name in node.inputs}
    blocks: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    opened = False
    for node in pointwise:
        if node.inputs[0] in sources:
            continue
        deep = depthwise.get(node.inputs[0], node)
        if node.attributes.get("activation") != b"Relu" and node.outputs[0] not in activated:
            raise ValueError("a block without ReLU")
        shape = _shape(graph, deep, node)
        residual = residuals.get(deep.inputs[0])
        if not opened:
            blocks.append({**shape, "repeat": 0, "residual": residual is not None})
            opened = residual is not None
        if blocks[-1] != {**blocks[-1], **shape}:
            raise ValueError("the convolutions of a block differ")
        name, place = f"encoder.encoder.{len(blocks) - 1}.", 5 * blocks[-1]["repeat"]
        if residual is not None:
            tensors |= _with_norm(graph, residual, f"{name}res.0.0.conv", f"{name}res.0.1")
        if deep is not node:
            tensors[f"{name}mconv.{place}.conv.weight"] = _constants(graph, deep)[0]
            place += 1
        tensors |= _with_norm(graph, node, f"{name}mconv.{place}.conv", f"{name}mconv.{place + 1}")
        blocks[-1]["repeat"] += 1
        opened = opened and node.outputs[0] not in added
    return blocks, tensors


def _shape(graph: OnnxGraph, deep: OnnxNode, node: OnnxNode) -> dict[str, Any]:
    """The settings of a block whose convolution is `deep` with the pointwise `node` after it, or `node` alone."""
    weight, *biases = _constants(graph, deep)
    kernel, (stride,), (dilation,) = weight.shape[2], deep.attributes["strides"], deep.attributes["dilations"]
    if deep.attributes["pads"] != (dilation * (kernel - 1) // 2,) * 2 or (deep is not node and biases):
        raise ValueError("a convolution with other padding, or with a bias before the pointwise one")
    return {
        "filters": _constants(graph, node)[0].shape[0],
        "kernel": [kernel],
        "stride": [stride],
        "dilation": [dilation],
        "separable": deep is not node,
    }


def _with_norm(graph: OnnxGraph, node: OnnxNode, convolution: str, norm: str) -> dict[str, np.ndarray]:
    """The weight of a convolution under that name, and its bias as the one of a norm that changes nothing else."""
    weight, bias = _constants(graph, node)
    return {
        f"{convolution}.weight": weight,
        f"{norm}.weight": np.ones_like(bias),
        f"{norm}.bias": bias,
        f"{norm}.running_mean": np.zeros_like(bias),
        f"{norm}.running_var": np.full_like(bias, 1 - BATCH_EPSILON),
    }


def _head(graph: OnnxGraph, nodes: Sequence[OnnxNode]) -> dict[str, np.ndarray]:
    """The linear layer of the classes: the product after the encoder, and the constant that is added to it."""
    product = nodes[_place(nodes, "MatMul")]
    (kernel,) = _constants(graph, product)
    (bias,) = (each for node in nodes if product.outputs[0] in node.inputs for each in _constants(graph, node))
    return {"decoder.layer0.weight": kernel.T, "decoder.layer0.bias": bias}


def _place(nodes: Sequence[OnnxNode], op_type: str) -> int:
    """Where the only such operation stands; ValueError where there is none or another."""
    (place,) = (place for place, node in enumerate(nodes) if node.op_type == op_type)
    return place


def _constants(graph: OnnxGraph, node: OnnxNode) -> list[np.ndarray]:
    """The inputs of a node that are stored in the file, in their order."""
    stored = graph.constants | graph.initializers
    return [stored[name].array() for name in node.inputs if name in stored]
