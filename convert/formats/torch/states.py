"""The state dict in a checkpoint as people save it: under one of several names or bare, wrapped or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxasr.convert.formats.torch.pickles import Record
from jaxasr.errors import CheckpointError, listing

State = dict[str, np.ndarray]

# Where training programs keep the weights, the usual name first: `state_dict` is Lightning's, `model_state_dict` that
# of PyTorch's tutorials. Without any of them the checkpoint is the state dict.
ENTRIES = ("model", "state_dict", "model_state_dict")
# Parts that a wrapper puts into the names of what it wraps: DistributedDataParallel and AveragedModel, torch.compile,
# FSDP, activation checkpoints.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
ATTRIBUTE = "model."  # of a LightningModule, which holds the network under a name of the user's, mostly this one
COUNTER = "n_averaged"  # of AveragedModel, beside the weights
NAMES_SHOWN = 5
SWELLING_LIMIT = 4  # tensors may alias storage; together they may not exceed this multiple of the file's size


def find_state(path: Path, checkpoint: object, entries: tuple[str, ...] = ENTRIES) -> State:
    """The weights in what `read_torch` made of the file `path`, under the names that the network itself gives them.

    `entries`: under which the state dict may stand; where it stands bare, what is no tensor is left out.
    CheckpointError where there is none, or it holds something else than tensors under names.
    """
    found = checkpoint if isinstance(checkpoint, dict) else {}
    entry = next((name for name in entries if name in found), None)
    where = f"'{entry}'" if entry else "the file"
    state = found[entry] if entry else {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    if not entry and not state:
        *others, last = map(repr, entries)
        raise CheckpointError(f"{path}: holds no entry {', '.join(others)} or {last}, and no weights beside them")
    if not isinstance(state, dict) or not state:
        what = f"an object of {state}" if isinstance(state, Record) else "not a state dict"
        raise CheckpointError(f"{path}: its {where} is {what}: save the model's state_dict() there")
    wrong = [f"{name} ({_kind(value)})" for name, value in state.items() if not isinstance(value, np.ndarray)]
    wrong += [str(name) for name in state if not isinstance(name, str)]
    if wrong:
        raise CheckpointError(
            f"{path}: weights in {where} that are not tensors under names: {listing(wrong, NAMES_SHOWN)}"
        )
    if sum(value.nbytes for value in state.values()) > SWELLING_LIMIT * path.stat().st_size:
        raise CheckpointError(f"{path}: the tensors of {where} overlap and would swell far beyond the file")
    return unwrapped(path, state)


def unwrapped(path: Path, state: Mapping[str, np.ndarray]) -> State:
    """`state` without what wrappers put into its names, whatever their order.

    CheckpointError where two tensors would then have one name.
    """
    names: dict[str, str] = {}
    plain: State = {}
    for name, value in state.items():
        if name == COUNTER:
            continue
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS).removeprefix(ATTRIBUTE)
        if bare in plain:
            raise CheckpointError(f"{path}: {listing([names[bare], name])} are one tensor twice: save the model alone")
        names[bare], plain[bare] = name, value
    return plain


def _kind(value: object) -> str:
    return str(value) if isinstance(value, Record) else type(value).__name__
