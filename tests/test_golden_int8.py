"""The published int8 Zipformer as integers, against onnxruntime's int8 encoder on the features that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from golden_models import quick_jit
from icefall_exports import PUBLISHED
from jaxasr import store
from jaxasr.convert import convert_checkpoint
from jaxasr.model import AbstractModel
from jaxasr.quant.ranges import ranges_over

# Mean difference of the projected frames, whose values reach 4.4. Every product is exact, integers and all
# (tests/layers/test_products_from_zero.py), and so are the frames until what float32 rounds between two products falls
# on the other side of a step: here that takes up to three chunks. From then on the difference is that of two runs of
# int8, whatever the cause: onnxruntime with features that differ by 1e-7 is 0.009 away from itself, and 0.001 to 0.008
# on another processor.
NOISE = 0.0125


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AbstractModel, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("int8") / "model"
    convert_checkpoint(shared / "published" / PUBLISHED, folder, precision="int8", floats="float32")
    stored = store.open_model(folder)
    return AbstractModel(stored.config), stored.params()


@pytest.fixture(scope="module")
def trace(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "published" / PUBLISHED / "streaming-trace.npz") as arrays:
        return {name: arrays[name] for name in arrays.files if name.startswith(("features", "encoder_out_int8"))}


@pytest.fixture(scope="module")
def whole(model: tuple[AbstractModel, dict[str, Any]]) -> Any:
    """(frames (3, T, 80), lengths (3,)) -> projected frames (3, T', 320), lengths to decode (3,)."""
    abstract, params = model

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        filled = abstract.fill(params)
        encoded, lengths = filled.encoder(frames, lengths)
        with ranges_over(lengths, abstract.config.encoder.encoded_chunk):  # type: ignore[attr-defined]
            return filled.transducer.project(encoded), lengths  # type: ignore[union-attr]

    return lambda *arguments: run(params, *arguments)


def batched(trace: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    features = [trace[f"features_{number}"] for number in range(3)]
    lengths = np.array([len(each) for each in features], np.int32)
    frames = np.zeros((3, lengths.max(), 80), np.float32)
    for row, each in enumerate(features):
        frames[row, : len(each)] = each
    return frames, lengths


def test_whole_utterances_in_a_batch(whole: Any, trace: dict[str, np.ndarray]) -> None:
    frames, lengths = batched(trace)
    made, decoded = whole(frames, lengths)
    for row in range(3):
        expected = trace[f"encoder_out_int8_{row}"][: decoded[row]]
        assert len(expected) >= 40
        assert np.abs(made[row, : len(expected)] - expected).mean() < NOISE


def test_an_utterance_does_not_depend_on_the_others_nor_on_padding(whole: Any, trace: dict[str, np.ndarray]) -> None:
    """To the last bit: every range is of one utterance's own frames."""
    frames, lengths = batched(trace)
    made, decoded = whole(frames, lengths)
    shortest = int(lengths.argmin())
    others = frames[[1, 2, 0]] * 3
    others[shortest] = frames[shortest]
    others[shortest, lengths[shortest] :] = 50
    again, _ = whole(others, np.where(np.arange(3) == shortest, lengths, lengths[[1, 2, 0]]))
    count = decoded[shortest]
    np.testing.assert_array_equal(again[shortest, :count], made[shortest, :count])
