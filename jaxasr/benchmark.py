"""How fast a model runs on this machine: what `jaxasr bench` prints and the scripts of benchmarks/ call."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr.configs import named_configs
from jaxasr.loading import load_model
from jaxasr.model import AbstractModel
from jaxasr.recognizer import Recognizer
from jaxasr.search import searched_head
from jaxasr.speechlike import speechlike
from jaxasr.store import read_config
from jaxasr.text.tokens import TokenTable

SIZES: tuple[tuple[int, float], ...] = ((1, 10.0), (8, 10.0), (1, 30.0))  # (clips, seconds each)
DEFAULT = "reazonspeech_k2_v2"


def measure(
    model: str | None = None,
    *,
    dtype: str = "float32",
    search: str | None = None,
    head: str | None = None,
    beam: int | None = None,
    sizes: tuple[tuple[int, float], ...] = SIZES,
    repeats: int = 5,
    parts: bool = True,
) -> dict[str, Any]:
    """Real-time factors (audio seconds a second) of `model`: a directory, a published name, or a name of configs/.

    A name of configs/ (by default that of reazonspeech-k2-v2) is built with random weights, which costs the same as
    trained ones. `search`, `head`, `beam`: as `load_model` takes them. Medians of `repeats` runs after one warm-up.
    `parts`: also features, encoder and search alone.
    """
    name = model or DEFAULT
    make = random_recognizer if name in named_configs() else load_model
    recognizer = make(name, dtype=dtype, search=search, head=head, beam=beam)
    rows = []
    for clips, seconds in sizes:
        rows.append(_size(recognizer, clips, seconds, repeats, parts))
    units_per_mib = 1 << (20 if sys.platform == "darwin" else 10)  # bytes there, KiB elsewhere
    return {
        "model": recognizer.config.name,
        "search": recognizer.programs.search.kind,
        "head": searched_head(recognizer.programs.search, recognizer.config.heads),
        "beam": recognizer.programs.search.beam,
        "dtype": dtype,
        "device": f"{recognizer.programs.devices[0].device_kind} x {len(recognizer.programs.devices)}",
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "sizes": rows,
        "programs": len(recognizer.programs.compiled),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_mib),
    }


def random_recognizer(name: str, *, seed: int = 0, **options: Any) -> Recognizer:
    """A recognizer of the named configuration with random weights, small enough that activations stay finite.

    `options`: as `Recognizer` takes them.
    """
    config = read_config(named_configs()[name])
    generator = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(generator.standard_normal(leaf.shape, dtype=np.float32) * np.float32(0.03))

    params = jax.tree.map(fill, AbstractModel(config).parameters)
    pieces = tuple(f"<{i}>" for i in range(config.vocabulary_size))
    return Recognizer(config, params, TokenTable(pieces), **options)


def _size(recognizer: Recognizer, clips: int, seconds: float, repeats: int, parts: bool) -> dict[str, Any]:
    audio = [speechlike(seconds, seed) for seed in range(clips)]
    total = clips * seconds
    started = time.perf_counter()
    first = list(recognizer.transcribe(audio))
    row: dict[str, Any] = {
        "clips": clips,
        "seconds": seconds,
        "first_call_s": round(time.perf_counter() - started, 3),
        "tokens": sum(len(each.tokens) for each in first),
    }
    row["whole"] = _factor(total, lambda: list(recognizer.transcribe(audio)), repeats)
    if parts:
        row |= _parts(recognizer, np.stack(audio), total, repeats)
    return row


def _parts(recognizer: Recognizer, audio: np.ndarray, total: float, repeats: int) -> dict[str, Any]:
    programs, params = recognizer.programs, recognizer.programs.params
    waveforms = jnp.asarray(audio)
    lengths = jnp.full((audio.shape[0],), audio.shape[1], jnp.int32)
    features = jax.jit(lambda p, x, n: programs.abstract_model.fill(p).features(x, n))
    frames, frame_lengths = features(params, waveforms, lengths)
    frames = frames.astype(programs.policy.activations)
    encoder = jax.jit(lambda p, x, n: programs.abstract_model.fill(p).encoder(x, n))
    encoded, encoded_lengths = encoder(params, frames, frame_lengths)
    search = jax.jit(lambda p, x, n: programs.abstract_model.fill(p).search(x, n, programs.search))
    return {
        "features": _factor(total, lambda: features(params, waveforms, lengths), repeats),
        "encoder": _factor(total, lambda: encoder(params, frames, frame_lengths), repeats),
        "search": _factor(total, lambda: search(params, encoded, encoded_lengths), repeats),
    }


def _factor(seconds: float, call: Callable[[], Any], repeats: int) -> float:
    """Median real-time factor of `call`, which handles `seconds` of audio."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return round(seconds / statistics.median(times), 1)
