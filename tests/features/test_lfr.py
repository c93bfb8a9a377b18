"""Stacked frames against the indices written out, rows of any length in one batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.features.framing import overlapping_frames
from jaxasr.features.kaldi import KaldiFbank
from jaxasr.features.kaldi_config import KaldiConfig
from jaxasr.features.lfr import Lfr
from jaxasr.features.lfr_config import LfrConfig


@pytest.mark.parametrize(("stacked", "shift"), [(7, 6), (5, 1), (1, 1), (4, 2), (3, 5)])
def test_a_stack_holds_its_neighbours(stacked: int, shift: int) -> None:
    config = LfrConfig(fbank=KaldiConfig(bins=3), stacked=stacked, shift=shift)
    lengths = [20, 13, 12, 1, 0]
    frames = np.random.default_rng(1).normal(0, 1, (len(lengths), 20, 3)).astype(np.float32)
    found, counts = Lfr(config).stack(frames, jnp.array(lengths))
    assert counts.tolist() == [-(-length // shift) for length in lengths]
    for row, length in enumerate(lengths):
        for i in range(int(counts[row])):
            middle = i * shift
            places = np.clip(np.arange(stacked) + middle - (stacked - 1) // 2, 0, length - 1)
            np.testing.assert_array_equal(found[row, i], frames[row, places].ravel())


def test_frames_are_normalised_and_end_with_their_row() -> None:
    config = LfrConfig()
    module = Lfr(config)
    module.offset[...] = jnp.full((560,), 2.0)
    module.scale[...] = jnp.full((560,), 0.5)
    sound = np.random.default_rng(2).normal(0, 0.1, (2, 6000)).astype(np.float32)
    lengths = np.array([6000, 2000])
    frames, counts = module(sound, jnp.asarray(lengths))
    assert counts.tolist() == [config.frame_count(int(length)) for length in lengths] == [6, 2]
    plain, _ = Lfr(config)(sound, jnp.asarray(lengths))
    np.testing.assert_allclose(frames[0], (np.asarray(plain[0]) + 2) / 2, rtol=1e-6)
    assert (np.asarray(frames[1, 2:]) == 0).all()
    assert (config.output_dim, config.sample_rate, round(config.frame_seconds, 6)) == (560, 16000, 0.06)
    nothing, counts = module(sound[:, :300], jnp.array([300, 10]))
    assert nothing.shape == (2, 0, 560) and counts.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{"stacked": 0}, {"shift": 0}])
def test_sizes_are_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stacked and shift"):
        LfrConfig(**wrong)


def copied_samples(fbank: KaldiFbank, signal: jnp.ndarray, total: int, key: None) -> jnp.ndarray:
    """Frames that no processor rounds: the first samples of each."""
    frames = overlapping_frames(signal, total, fbank.config.frame_length, fbank.config.frame_shift)
    return frames[..., : fbank.config.bins]


@pytest.mark.parametrize(("stacked", "shift", "snip_edges"), [(7, 6, True), (5, 1, True), (4, 3, False)])
@pytest.mark.parametrize("copied", [True, False])
def test_pieces_of_a_stream_are_the_frames_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, stacked: int, shift: int, snip_edges: bool, copied: bool
) -> None:
    """Four frames a piece, at the beginning, in the middle and at an end that no piece ends with.

    Of frames without a rounding what is made of them is equal to the last bit; those of the filterbank come from
    products of another number of rows.
    """
    if copied:
        monkeypatch.setattr(KaldiFbank, "_log_energies", copied_samples)
    fbank = KaldiConfig(bins=4, window="hamming", sample_scale=32768.0, snip_edges=snip_edges)
    config = LfrConfig(fbank=fbank, stacked=stacked, shift=shift)
    module, size, hop = Lfr(config), 4, shift * 160
    rng = np.random.default_rng(6)
    module.offset[...] = rng.normal(0, 3, config.output_dim).astype(np.float32)
    module.scale[...] = rng.uniform(0.1, 1, config.output_dim).astype(np.float32)
    before, after = config.reach
    sound = np.random.default_rng(3).normal(0, 0.1, 13 * 960 + 555).astype(np.float32)
    whole, counts = quick_jit(module)(sound[None], jnp.array([len(sound)]))
    width = before + (size - 1) * hop + after
    starts = np.arange(0, int(counts[0]), size) * hop - before
    around = np.pad(sound, (before, width), constant_values=9.0)  # what stands outside of the stream is never heard
    samples = np.stack([around[start + before : start + before + width] for start in starts])
    # As the host says it: before the row where it began there, no further than the row's end.
    begin, end = np.maximum(-starts, -width), np.minimum(len(sound) - starts, width)
    pieces = quick_jit(module.piece)(samples, begin, end)
    assert pieces.shape == (len(starts), size, stacked * 4) and after % hop == 0
    found = pieces.reshape(-1, stacked * 4)[: int(counts[0])]
    if copied:
        np.testing.assert_array_equal(found, whole[0])
    else:
        np.testing.assert_allclose(found, whole[0], atol=1e-5)


def test_a_stream_of_one_frame_has_it() -> None:
    config = LfrConfig(fbank=KaldiConfig(bins=3, snip_edges=True))
    module = Lfr(config)
    before, after = config.reach
    sound = np.random.default_rng(4).normal(0, 0.1, 400).astype(np.float32)
    whole, counts = quick_jit(module)(sound[None], jnp.array([400]))
    samples = np.pad(sound, (before, after - 400))[None]
    piece = quick_jit(module.piece)(samples, np.array([before]), np.array([before + 400]))
    assert counts.tolist() == [1]
    np.testing.assert_allclose(piece[0], whole[0], atol=1e-4)
