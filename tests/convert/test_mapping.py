"""Tensors through a table: every name has one place, every place one name, and a message lists what has not."""

from __future__ import annotations

import numpy as np
import pytest

from golden_models import Golden
from jaxasr import store
from jaxasr.convert.mapping import Ignored, Rule, conv1d, conv2d, linear, map_tensors, match_parameters, same
from jaxasr.errors import CheckpointError

RULES = (
    Rule(r"layers\.(?P<n>\d+)\.weight", "stack.{n}.kernel", linear),
    Rule(r"layers\.(?P<n>\d+)\.(bias|offset)", "stack.{n}.bias", same),
)
IGNORED = (Ignored(r"counter", "training's own"),)


def test_names_paths_and_layouts() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    mapped = map_tensors({"layers.0.weight": weight, "layers.10.bias": weight[0], "counter": weight}, RULES, IGNORED)
    assert list(mapped) == ["stack.0.kernel", "stack.10.bias"]
    np.testing.assert_array_equal(mapped["stack.0.kernel"], weight.T)
    assert conv1d(np.zeros((4, 3, 2))).shape == (2, 3, 4) and conv2d(np.zeros((5, 4, 3, 2))).shape == (3, 2, 4, 5)


def test_faults_are_listed_together() -> None:
    tensors = {"layers.0.bias": np.zeros(2), "layers.0.offset": np.zeros(2), "extra": np.zeros((2, 3)), "a.counter": 0}
    with pytest.raises(CheckpointError) as error:
        map_tensors({name: np.asarray(value) for name, value in tensors.items()}, RULES, IGNORED)
    for part in ("layers.0.offset fills stack.0.bias a second time", "extra (2, 3) is unknown", "a.counter"):
        assert part in str(error.value)


def test_a_shape_that_a_layout_cannot_take() -> None:
    with pytest.raises(CheckpointError, match=r"w has the impossible shape \(2,\)"):
        map_tensors({"w": np.zeros(2)}, [Rule("w", "kernel", conv1d)])


def test_parameters_are_matched_one_to_one(bundled: Golden) -> None:
    arrays = {path: np.asarray(leaf) for path, leaf in store.flatten(bundled.params).items()}
    matched = match_parameters(dict(reversed(arrays.items())), bundled.config)
    assert set(matched) == set(arrays)
    first, second, third, *_ = arrays
    wrong = {path: array for path, array in arrays.items() if path != first}
    wrong |= {second: np.full_like(arrays[second], np.nan), third: arrays[third].astype(int), "stray": np.zeros(3)}
    with pytest.raises(CheckpointError) as error:
        match_parameters(wrong, bundled.config)
    for part in (f"{first} {arrays[first].shape} is missing", f"{second} holds values", f"{third} has type", "stray"):
        assert part in str(error.value)
