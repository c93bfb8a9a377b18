"""Sound in many formats, made by libsndfile and by FFmpeg's encoders."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile


def tone(seconds: float, rate: int, frequency: float = 440.0) -> np.ndarray:
    """(samples,) float32 of a sine at half of full scale."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def syllables(seconds: float, rate: int = 16000) -> np.ndarray:
    """(samples,) float32: a tone that rises by 100 Hz every second, so that a second can be told from another."""
    return np.concatenate([tone(1.0, rate, 300.0 + 100.0 * second) for second in range(round(seconds))])


def encoded(samples: np.ndarray, rate: int = 16000, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """A file, by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def muxed(samples: np.ndarray, rate: int, container: str, codec: str, title: str | None = None) -> bytes:
    """A file, by PyAV: samples (n,) or (channels, n) in 1024s, so that the last ones may be missing."""
    av = pytest.importorskip("av", reason="needs PyAV (pip install av)")
    planes = np.atleast_2d(samples)
    layout = {1: "mono", 2: "stereo"}[len(planes)]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        if title is not None:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=rate)
        stream.layout = layout
        resampler = av.AudioResampler(format=stream.codec_context.codec.audio_formats[0], layout=layout, rate=rate)
        for start in range(0, planes.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(planes[:, start : start + 1024]), format="fltp", layout=layout
            )
            frame.sample_rate, frame.pts = rate, start
            for converted in resampler.resample(frame):
                output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


def loudest(samples: np.ndarray, second: int) -> float:
    """The frequency (Hz) of the middle of a second, at 16 kHz."""
    part = samples[16000 * second + 4000 : 16000 * second + 12000]
    return float(np.abs(np.fft.rfft(part)).argmax() * 2)
