"""Sound to measure with: it has the pauses, syllables and harmonics of speech, and says nothing."""

from __future__ import annotations

import numpy as np

RATE = 16000
SYLLABLE = 0.2  # seconds
HARMONICS = 24


def speechlike(seconds: float, seed: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz: voiced syllables with three moving resonances, hiss, and a pause now and then."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    syllables = int(seconds / SYLLABLE) + 2
    times = np.arange(samples) / RATE / SYLLABLE

    def contour(low: float, high: float) -> np.ndarray:
        return np.interp(times, np.arange(syllables), generator.uniform(low, high, syllables))

    loudness = np.where(generator.random(syllables) < 0.2, 0.0, generator.uniform(0.3, 1.0, syllables))
    envelope = np.interp(times, np.arange(syllables), loudness) * np.abs(np.sin(np.pi * times))
    pitch = contour(90, 180)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    resonances = [(contour(300, 800), 80.0), (contour(900, 2200), 120.0), (contour(2300, 3200), 160.0)]
    voice = np.zeros(samples)
    for harmonic in range(1, HARMONICS + 1):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + np.square((frequency - centre) / width)) for centre, width in resonances)
        voice += gain * np.sin(harmonic * phase)
    hiss = generator.standard_normal(samples)
    return (envelope * (0.1 * voice + 0.01 * hiss) + 0.001 * hiss).astype(np.float32)
