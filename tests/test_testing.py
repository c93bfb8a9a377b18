"""The small model for users' own tests is a whole recogniser, from arrays and files, by every search."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import jaxasr
from jaxasr import store
from jaxasr.errors import ModelError
from jaxasr.speechlike import RATE, speechlike
from jaxasr.testing import tiny_config, tiny_model_directory, tiny_recognizer

CLIPS = [speechlike(1.0, seed) for seed in range(2)]


def test_it_is_tiny() -> None:
    parameters = jax.tree.leaves(tiny_recognizer().programs.params)
    assert 5_000 < sum(leaf.size for leaf in parameters) < 20_000
    assert {leaf.dtype for leaf in parameters} == {np.dtype(np.float32)}


@pytest.mark.parametrize("search", ["greedy", "beam", "joint"])
def test_it_transcribes(search: str) -> None:
    transcripts = list(tiny_recognizer(search=search).transcribe(CLIPS))
    assert [each.duration for each in transcripts] == [1.0, 1.0]
    for each in transcripts:
        assert isinstance(each, jaxasr.Transcript)
        assert np.isfinite(each.log_probs).all() and len(each.tokens) == len(each.timestamps)
        assert all(0 <= time < 1.0 for time in each.timestamps)
        assert set("".join(each.text.split())) <= set("ABCDEF⁇<unk>")


def test_a_directory_of_it(tmp_path: Path) -> None:
    directory = tiny_model_directory(tmp_path / "tiny", seed=3)
    assert store.load_config(directory) == tiny_config()
    recognizer = jaxasr.load_model(directory)
    jax.tree.map(np.testing.assert_array_equal, recognizer.programs.params, tiny_recognizer(seed=3).programs.params)
    assert not np.array_equal(*(jax.tree.leaves(tiny_recognizer(seed=seed).programs.params)[0] for seed in (3, 4)))
    with pytest.raises(ModelError):
        tiny_model_directory(directory)


def test_speechlike() -> None:
    """Syllables, pauses and hiss, the same for the same seed."""
    clip = speechlike(2.0, 1)
    assert clip.shape == (2 * RATE,) and clip.dtype == np.float32
    np.testing.assert_array_equal(clip, speechlike(2.0, 1))
    loudness = np.sqrt(np.square(clip.reshape(-1, RATE // 50)).mean(axis=1))  # of 20 ms
    assert loudness.max() > 20 * loudness.min() > 0
    assert 0.05 < np.abs(clip).max() < 2 and not np.array_equal(clip, speechlike(2.0, 2))


def test_a_recognizer_hands_out_its_module() -> None:
    recognizer = tiny_recognizer()
    model = recognizer.model
    assert model.config is recognizer.config
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(recognizer.programs.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    frames, counts = model.features(np.zeros((2, 16000), np.float32), np.array([16000, 8000], np.int32))
    assert frames.shape[2] == recognizer.config.features.output_dim
    assert counts.tolist() == [recognizer.config.features.frame_count(samples) for samples in (16000, 8000)]
