"""icefall's PyTorch checkpoints: training checkpoints (epoch-N.pt, checkpoint-N.pt) and the pretrained.pt of export.py.

Several files are averaged the publisher's way (icefall/checkpoint.py):

- SOURCE and one earlier checkpoint of the same training, both with the running average `model_avg`: the mean of the
  weights over all batches after the earlier file (excluded) up to SOURCE (export.py --use-averaged-model 1);
- any other two or more files: the plain mean of their `model` (export.py --use-averaged-model 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxasr.convert.formats.mapped import release
from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.convert.formats.torch.states import NAMES_SHOWN, State, find_state
from jaxasr.convert.mapping import Checkpoint
from jaxasr.errors import CheckpointError, listing

STACK_ARGUMENTS = (
    "num_encoder_layers",
    "downsampling_factor",
    "feedforward_dim",
    "num_heads",
    "encoder_dim",
    "query_head_dim",
    "value_head_dim",
    "pos_head_dim",
    "cnn_module_kernel",
)
CHUNK_ARGUMENTS = ("chunk_size", "left_context_frames")  # -1: no chunks, all frames
INTEGER_ARGUMENTS = (
    "feature_dim",
    "pos_dim",
    "decoder_dim",
    "joiner_dim",
    "context_size",
    "vocab_size",
    "blank_id",
    "unk_id",
    "nhead",
    "dim_feedforward",
)
SWITCH_ARGUMENTS = ("causal", "use_transducer", "use_ctc", "causal_convolution", "dynamic_chunk_training")

_PACKAGES = frozenset({"icefall", "k2", "lhotse"})  # whose objects lie beside the weights


def read_checkpoint(path: str | Path, average: Sequence[str | Path] = ()) -> Checkpoint:
    """The weights of `path`, averaged with those of the files in `average`, and the arguments that `path` states.

    Without `average` the weights are windows of the mapped file, in its own types; averages are float32.
    CheckpointError for a file that cannot be read safely, has no weights, or has some that are not finite numbers.
    """
    paths = [Path(path), *map(Path, average)]
    if len({each.resolve() for each in paths}) != len(paths):
        raise CheckpointError(f"{paths[0]}: one file is named twice for averaging: name each checkpoint once")
    notes: list[str] = []
    checkpoints = [_checkpoint(each, notes) for each in paths]
    names = listing(each.name for each in paths)
    if len(paths) == 1:
        tensors = find_state(paths[0], checkpoints[0])
        if "model_avg" in checkpoints[0]:
            notes.append(
                f"{names} is a training checkpoint: its model is taken as it is (with an earlier one given as average,"
                " it becomes the mean over the batches between them, which is usually better)"
            )
    elif len(paths) == 2 and all("model_avg" in checkpoint for checkpoint in checkpoints):
        tensors, first, last = _mean_of_batches(paths, checkpoints)
        notes.append(f"the weights are the mean over batches {first} (excluded) to {last}, from model_avg of {names}")
    else:
        tensors = _mean_of_files(paths, checkpoints)
        notes.append(f"the weights are the plain mean of {names}")
    _check_finite(names if average else str(path), tensors)
    return Checkpoint(tensors, _arguments(paths[0], checkpoints[0]), notes, paths)


def _checkpoint(path: Path, notes: list[str]) -> Mapping[str, Any]:
    checkpoint = read_torch(path, _PACKAGES, notes)
    # What is no dictionary holds no state dict either, which find_state says.
    return checkpoint if isinstance(checkpoint, dict) else {}


def _mean_of_batches(paths: Sequence[Path], checkpoints: Sequence[Mapping[str, Any]]) -> tuple[State, int, int]:
    """The mean of the weights over (first, last] from two running averages, and those batch numbers.

    Running averages begin at batch 0 and are updated every `average_period` batches. With w = last / (last - first) the
    mean is (end + start (1 - w) / w) w, computed in this order as average_checkpoints_with_averaged_model does.
    """
    (end_path, start_path), (end, start) = paths, checkpoints
    period = _count(start_path, start, "average_period")
    last, first = (
        _count(path, checkpoint, "batch_idx_train") // period * period
        for path, checkpoint in zip(paths, checkpoints, strict=True)
    )
    if first >= last:
        raise CheckpointError(
            f"{end_path}: its batch {last} is not after batch {first} of {start_path.name}: convert the later file and"
            " name the earlier one as average"
        )
    end_state, start_state = (
        find_state(path, checkpoint, ("model_avg",)) for path, checkpoint in ((end_path, end), (start_path, start))
    )
    _check_alike(start_path, start_state, end_path, end_state)
    weight = last / (last - first)
    averaged = {}
    with np.errstate(all="ignore"):  # what overflows is not finite, which is reported for all weights together
        for name, value in end_state.items():
            averaged[name] = value  # counters of batch norms stay those of the end
            if _is_float(value):
                mean = averaged[name] = value.astype(np.float32)
                mean += start_state[name].astype(np.float32) * np.float32((1 - weight) / weight)
                mean *= np.float32(weight)
                release(start_state[name])
                release(value)
    return averaged, first, last


def _mean_of_files(paths: Sequence[Path], checkpoints: Sequence[Mapping[str, Any]]) -> State:
    """The mean of `model`, summed in the order of the files as average_checkpoints does."""
    states = [find_state(path, checkpoint) for path, checkpoint in zip(paths, checkpoints, strict=True)]
    for path, state in zip(paths[1:], states[1:], strict=True):
        _check_alike(path, state, paths[0], states[0])
    averaged = {}
    with np.errstate(all="ignore"):
        for name, value in states[0].items():
            total: Any = value.astype(np.float32 if _is_float(value) else np.int64)
            for state in states[1:]:
                total += state[name].astype(total.dtype)
                release(state[name])
            if _is_float(value):
                total /= np.float32(len(states))
            else:
                total //= len(states)
            averaged[name] = total
            release(value)
    return averaged


def _check_alike(path: Path, state: State, other_path: Path, other: State) -> None:
    """Files to be averaged hold the same tensors."""
    wrong = sorted(state.keys() ^ other.keys())
    wrong += [
        f"{name} {state[name].shape} and {other[name].shape}"
        for name in sorted(state.keys() & other.keys())
        if state[name].shape != other[name].shape or _is_float(state[name]) != _is_float(other[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: not of the same model as {other_path.name}, tensors differ: {listing(wrong, NAMES_SHOWN)}"
        )


def _check_finite(source: str, tensors: State) -> None:
    wrong = []
    for name, value in tensors.items():
        if _is_float(value) and not np.isfinite(value).all():
            wrong.append(name)
        release(value)
    if wrong:
        raise CheckpointError(
            f"{source}: weights that are not finite numbers: {listing(wrong, NAMES_SHOWN)}: take another checkpoint"
        )


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def _arguments(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's arguments as far as the checkpoint states them; lists as tuples ("2,2,3" on the command line)."""
    arguments: dict[str, Any] = {}
    for name in STACK_ARGUMENTS + CHUNK_ARGUMENTS + INTEGER_ARGUMENTS + SWITCH_ARGUMENTS:
        value = checkpoint.get(name)
        if value is None:
            continue
        parsed: bool | int | tuple[int, ...] | None
        if name in SWITCH_ARGUMENTS:
            parsed = bool(value) if type(value) in (bool, int) else None
        elif name in INTEGER_ARGUMENTS:
            parsed = value if type(value) is int and value >= 0 else None
        else:
            parsed = _integers(value, least=1 if name in STACK_ARGUMENTS else -1)
        if parsed is None:
            raise CheckpointError(f"{path}: its argument {name} is not what the recipe takes: the file is no icefall's")
        arguments[name] = parsed
    return arguments


def _integers(value: Any, least: int) -> tuple[int, ...] | None:
    """A list of integers from "2,2,3", 2, or a sequence; None where it is not one."""
    parts: Sequence[Any] = [value]
    if isinstance(value, str | list | tuple):
        parts = value.split(",") if isinstance(value, str) else value
    if isinstance(value, str) and all(part.strip().removeprefix("-").isdecimal() and len(part) < 12 for part in parts):
        parts = [int(part) for part in parts]
    return tuple(parts) if parts and all(type(part) is int and part >= least for part in parts) else None


def _count(path: Path, checkpoint: Mapping[str, Any], name: str) -> int:
    value = checkpoint.get(name)
    if type(value) is not int or value <= 0:
        raise CheckpointError(f"{path}: its {name} is not a positive number, so model_avg cannot be averaged")
    return value
