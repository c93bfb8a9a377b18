"""NeMo's cepstral front end against SciPy's cosine transform, and against its own promises about padding."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from golden_models import quick_jit
from jaxasr.configuration import from_mapping
from jaxasr.errors import ConfigError
from jaxasr.features.nemo_mfcc import NemoMFCC, design_cosines
from jaxasr.features.nemo_mfcc_config import TORCHAUDIO_MEL, NemoMFCCConfig

CONFIG = NemoMFCCConfig(mel=dataclasses.replace(TORCHAUDIO_MEL, bins=20), coefficients=12)
SIZES = (8000, 4001, 0)  # the first one fills all hops


def test_coefficients_of_a_batch() -> None:
    rng = np.random.default_rng(1)
    clips = [(0.1 * rng.standard_normal(size)).astype(np.float32) for size in SIZES]
    padded = np.full((len(SIZES), 8000), np.nan, np.float32)
    for row, clip in enumerate(clips):
        padded[row, : len(clip)] = clip
    module = NemoMFCC(CONFIG)
    run = quick_jit(lambda waveforms, lengths: (module(waveforms, lengths), module.mel(waveforms, lengths)))
    (frames, counts), (energies, computed) = run(padded, jnp.array(SIZES, jnp.int32))
    assert counts.tolist() == [50, 26, 0] and computed.tolist() == [51, 26, 0] and frames.shape == (3, 51, 12)
    assert [CONFIG.frame_count(size) for size in SIZES] == [50, 26, 0] and CONFIG.frame_seconds == 0.01
    for row, count in enumerate(computed):
        expected = scipy.fft.dct(energies[row, :count].astype(np.float64), norm="ortho")[:, :12]
        np.testing.assert_allclose(frames[row, :count], expected, atol=2e-4)  # of sums of 20 values up to 14
        assert not frames[row, count:].any()


def test_the_designed_matrix_is_orthonormal() -> None:
    cosines = design_cosines(NemoMFCCConfig()).astype(np.float64)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(64), atol=1e-6)


@pytest.mark.parametrize("coefficients", [0, 21])
def test_no_more_coefficients_than_bins(coefficients: int) -> None:
    mapping = {"mel": {"bins": 20}, "coefficients": coefficients}
    with pytest.raises(ConfigError, match=r"features: coefficients must lie in 1\.\.20"):
        from_mapping(NemoMFCCConfig, mapping, "features")
