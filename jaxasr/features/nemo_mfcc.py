"""NeMo's cepstral front end in JAX: a cosine transform of log-mel energies.

Source: NeMo 3.0.0, collections/asr/modules/audio_preprocessing.py, AudioToMFCCPreprocessor, over torchaudio's MFCC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxasr.features.nemo import NemoMel
from jaxasr.features.nemo_mfcc_config import NemoMFCCConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class NemoMFCC(nnx.Module):
    """Mel-frequency cepstral coefficients of padded waveforms.

    Holds the matrix of the cosine transform (mel bins, coefficients) of the checkpoint, which is not trained. A new one
    is designed.
    """

    def __init__(self, config: NemoMFCCConfig, *, rngs: nnx.Rngs | None = None) -> None:
        self.config = config
        self.mel = NemoMel(config.mel, rngs=rngs)
        self.cosines = nnx.Variable(jnp.asarray(design_cosines(config)))

    def __call__(
        self, waveforms: Float[Array, "B S"], lengths: Int[Array, " B"], *, key: jax.Array | None = None
    ) -> tuple[Float[Array, "B T coefficients"], Int[Array, " B"]]:
        """waveforms (B, S) float32 in -1..1, lengths (B,) in samples -> frames (B, T, coefficients), lengths (B,).

        T is that of the mel energies, up to one more than `config.frame_count(S)`: as in NeMo the last frame of a row
        whose samples fill all hops is there and does not count. Frames beyond those of a row's energies are 0.
        """
        energies, _ = self.mel(waveforms, lengths, key=key)
        cosines = jax.lax.stop_gradient(self.cosines[...])
        cepstra = jnp.matmul(energies, cosines, precision=jax.lax.Precision.HIGHEST)
        return cepstra, self.config.frame_count(jnp.asarray(lengths, jnp.int32))


def design_cosines(config: NemoMFCCConfig) -> np.ndarray:
    """The orthonormal cosine transform of type II, (mel bins, coefficients) float32."""
    bins = config.mel.bins
    phases = np.pi / bins * np.outer(np.arange(bins) + 0.5, np.arange(config.coefficients))
    cosines: np.ndarray = np.cos(phases) * np.sqrt(2 / bins)
    cosines[:, 0] /= np.sqrt(2)
    return cosines.astype(np.float32)
