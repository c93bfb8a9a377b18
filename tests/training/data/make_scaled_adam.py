"""Makes scaled_adam.npz: icefall's own ScaledAdam and Eden on a fixed sequence of gradients.

    python make_scaled_adam.py icefall/egs/librispeech/ASR/zipformer/optim.py

with icefall at 36e0420 and PyTorch 2.13 on a CPU. The file holds, for each tensor of NAMES, start/NAME,
gradients/NAME (STEPS, ...) and values/NAME (STEPS, ...) after each step; limits (STEPS,), the clipping limit after each
step, NaN before there is one; rates (STEPS,), and eden (N, 3): step, epoch and rate on a longer way.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS = 60
# icefall: lr, clipping_scale, clipping_update_period; Eden: lr_batches, lr_epochs, warmup_batches, steps per epoch.
SETTINGS = {"lr": 0.05, "clipping_scale": 2.0, "clipping_update_period": 16}
EDEN = {"lr_batches": 40, "lr_epochs": 2, "warmup_batches": 12.0}
STEPS_PER_EPOCH = 7
# Shape, and root-mean-square at the start. Equal shapes are stacked by icefall; small grows from below the smallest
# size, large is above the largest, bounded is pushed over the largest value of single numbers.
NAMES: dict[str, tuple[tuple[int, ...], float]] = {
    "scalar": ((), 0.5),
    "single": ((1,), 0.1),
    "bounded": ((1, 1), 9.99),
    "vector": ((5,), 1.0),
    "matrix": ((3, 4), 0.2),
    "twin": ((3, 4), 0.7),
    "cube": ((2, 3, 2), 0.05),
    "zero": ((6,), 0.0),
    "small": ((4,), 3e-6),
    "large": ((2, 2), 3.1),
}
# Factors on all gradients: two large ones, and one that is not finite.
OUTLIERS = {13: 300.0, 37: 20.0, 44: np.inf}


def load(path: str) -> Any:
    """icefall's module, without the one function of lhotse that its optimizers do not use."""
    lhotse = types.ModuleType("lhotse.utils")
    lhotse.fix_random_seed = None  # type: ignore[attr-defined]
    sys.modules |= {"lhotse": types.ModuleType("lhotse"), "lhotse.utils": lhotse}
    specification = importlib.util.spec_from_file_location("optim", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main(path: str) -> None:
    """Write the file beside this one."""
    optim = load(path)
    generator = np.random.default_rng(5)
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, rms) in NAMES.items():
        start = generator.standard_normal(shape)
        size = np.sqrt(np.mean(start**2))
        arrays[f"start/{name}"] = np.asarray(start / size * rms, np.float32)
        if name == "bounded":
            arrays[f"start/{name}"] = np.full(shape, rms, np.float32)
        # A direction that stays, so that sizes move, and noise.
        mean = generator.standard_normal(shape) - (4.0 if name == "bounded" else 0.0)
        gradients = (mean + generator.standard_normal((STEPS, *shape))) * 10.0 ** generator.uniform(-2, 1)
        for step, factor in OUTLIERS.items():
            gradients[step] *= factor
        arrays[f"gradients/{name}"] = gradients.astype(np.float32)

    parameters = {name: torch.nn.Parameter(torch.tensor(arrays[f"start/{name}"])) for name in NAMES}
    optimizer = optim.ScaledAdam(list(parameters.items()), **SETTINGS)
    scheduler = optim.Eden(optimizer, **EDEN)
    values: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    limits, rates = [], []
    for step in range(STEPS):
        scheduler.step_epoch(step // STEPS_PER_EPOCH)
        scheduler.step_batch(step)
        rates.append(optimizer.param_groups[0]["lr"])
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(arrays[f"gradients/{name}"][step])
        optimizer.step()
        (limit,) = {
            state["model_norm_threshold"] for state in optimizer.state.values() if "model_norm_threshold" in state
        } or {np.nan}
        limits.append(limit)
        for name, parameter in parameters.items():
            values[name].append(parameter.detach().numpy().copy())
    arrays |= {f"values/{name}": np.stack(each) for name, each in values.items()}
    arrays |= {"limits": np.array(limits), "rates": np.array(rates)}

    scheduler = optim.Eden(optimizer, lr_batches=7500, lr_epochs=3.5)
    rows = []
    for step in (*range(0, 1000, 50), *range(1000, 200_000, 4975)):
        scheduler.step_epoch(step // 4975)
        scheduler.step_batch(step)
        rows.append((step, step // 4975, scheduler.get_last_lr()[0] / scheduler.base_lrs[0]))
    arrays["eden"] = np.array(rows)
    np.savez_compressed(Path(__file__).with_name("scaled_adam.npz"), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
