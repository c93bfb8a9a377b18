"""From a publisher's tensors to the parameters of a model, through a table that is read like a document.

A family hands its table in. What is not "one tensor, one parameter" (scales to fold, two biases to add) is done by the
family before, on the dictionary of tensors.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxasr.convert.formats.mapped import release
from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.errors import CheckpointError, listing

if TYPE_CHECKING:
    from jaxasr.detector_config import DetectorConfig
    from jaxasr.model_config import ModelConfig

FAULTS_SHOWN = 20  # in one message


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its files hold it, under the publisher's own names.

    `tensors`: names to arrays in the publisher's layouts, views of the mapped files where the format allows.
    `settings`: what the files state or prove about the model, by the names of the publisher's training program.
    `notes`: lines for the user, to which the conversion adds. `files`: the files read. `facts`: what `jaxasr info`
    shows of the files beside what it shows of every model. `quantized`: the integers of those tensors that are to
    stay integers.
    """

    tensors: dict[str, np.ndarray]
    settings: dict[str, Any]
    notes: list[str]
    files: list[Path]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantized: dict[str, QuantizedTensor] = dataclasses.field(default_factory=dict)


class Rule(NamedTuple):
    """One row of a family's table: names that match `pattern` as a whole fill `path`, their axes moved by `layout`.

    `path` may hold the named groups of the pattern in braces: "encoder.layers.{layer}.norm.scale".
    """

    pattern: str
    path: str
    layout: Callable[[np.ndarray], np.ndarray]


class Ignored(NamedTuple):
    """Tensors that inference does not need, and why."""

    pattern: str
    reason: str


# Layouts: PyTorch's on the left, ours on the right.


def same(x: np.ndarray) -> np.ndarray:
    """Biases, scales and embeddings, which need no transposition."""
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return x.T


def conv1d(x: np.ndarray) -> np.ndarray:
    """(out, in/groups, width) -> (width, in/groups, out)."""
    return x.transpose(2, 1, 0)


def conv2d(x: np.ndarray) -> np.ndarray:
    """(out, in/groups, height, width) -> (height, width, in/groups, out); also of depthwise convolutions."""
    return x.transpose(2, 3, 1, 0)


def pointwise(x: np.ndarray) -> np.ndarray:
    """A convolution whose window is one value, (out, in/groups, 1) or (out, in/groups, 1, 1) -> (in/groups, out)."""
    return x.squeeze(tuple(range(2, x.ndim))).T


def channels_last(channels: int) -> Callable[[np.ndarray], np.ndarray]:
    """The layout of a linear layer after a front end: (out, channels * bins) -> (bins * channels, out)."""
    return lambda x: x.reshape(x.shape[0], channels, -1).transpose(2, 1, 0).reshape(-1, x.shape[0])


def modules(
    prefix: str, names: Mapping[str, str], our_prefix: str, weight: str, layout: Callable[[np.ndarray], np.ndarray]
) -> list[Rule]:
    """The rows of weight and bias of the modules of these names; `weight` is what ours is called."""
    return [
        row
        for name, ours in names.items()
        for row in (
            Rule(prefix + re.escape(f"{name}.weight"), f"{our_prefix}{ours}.{weight}", layout),
            Rule(prefix + re.escape(f"{name}.bias"), f"{our_prefix}{ours}.bias", same),
        )
    ]


def map_tensors(
    tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], ignored: Sequence[Ignored] = ()
) -> dict[str, np.ndarray]:
    """`tensors` by the paths of our parameters, in our layouts; the first rule that matches a name decides.

    CheckpointError lists the names that have no place, and the paths that are filled twice.
    """
    patterns = [(re.compile(rule.pattern), rule) for rule in rules]
    unneeded = [re.compile(row.pattern) for row in ignored]
    mapped: dict[str, np.ndarray] = {}
    faults = []
    for name, tensor in tensors.items():
        if any(pattern.fullmatch(name) for pattern in unneeded):
            continue
        found = ((match, rule) for pattern, rule in patterns if (match := pattern.fullmatch(name)))
        match, rule = next(found, (None, None))
        if match is None or rule is None:
            faults.append(f"{name} {tensor.shape} is unknown")
            continue
        path = rule.path.format(**match.groupdict())
        if path in mapped:
            faults.append(f"{name} fills {path} a second time")
        try:
            mapped[path] = rule.layout(tensor)
        except (ValueError, IndexError):
            faults.append(f"{name} has the impossible shape {tensor.shape}")
    if faults:
        raise CheckpointError(listing(faults, FAULTS_SHOWN, "; "))
    return mapped


def map_quantized(quantized: Mapping[str, QuantizedTensor], rules: Sequence[Rule]) -> dict[str, QuantizedTensor]:
    """Integers by the paths that `map_tensors` gives what they stand for, in our layouts."""
    mapped: dict[str, QuantizedTensor] = {}
    for name, tensor in quantized.items():
        match, rule = next((match, rule) for rule in rules if (match := re.fullmatch(rule.pattern, name)))
        try:
            mapped[rule.path.format(**match.groupdict())] = tensor.laid_out(rule.layout)
        except ValueError as fault:
            raise CheckpointError(f"{name}: {fault}") from None
    return mapped


def match_parameters(mapped: Mapping[str, np.ndarray], config: ModelConfig | DetectorConfig) -> dict[str, np.ndarray]:
    """`mapped` in the order of the parameters of the configured model, each of which it must hold, and nothing else.

    CheckpointError lists what is missing, has no place, or has the wrong shape, type or values that are not finite.
    """
    from jaxasr.detector_config import DetectorConfig
    from jaxasr.model import AbstractDetector, AbstractModel
    from jaxasr.store import flatten

    abstract = AbstractDetector(config) if isinstance(config, DetectorConfig) else AbstractModel(config)
    wanted = {path: leaf.shape for path, leaf in flatten(abstract.parameters).items()}
    faults = [f"{path} {wanted[path]} is missing" for path in wanted if path not in mapped]
    for path, array in mapped.items():
        if path not in wanted:
            faults.append(f"{path} {array.shape} has no place in this configuration")
        elif array.shape != wanted[path]:
            faults.append(f"{path} has shape {array.shape} instead of {wanted[path]}")
        elif not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
            faults.append(f"{path} has type {array.dtype}, not a floating one")
        elif not np.isfinite(array).all():
            faults.append(f"{path} holds values that are not finite")
        release(array)
    if faults:
        raise CheckpointError(f"the tensors do not fit: {listing(faults, FAULTS_SHOWN, '; ')}")
    return {path: mapped[path] for path in wanted}
