"""Chunk and left context of a model that streams: those of the options, else the first of those trained with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxasr.convert.protocol import Options
from jaxasr.errors import ConfigError

# The recipes' defaults for what shapes leave open, in frames of the encoder.
DEFAULT_CHUNK, DEFAULT_LEFT_CONTEXT = 16, 64


@dataclasses.dataclass(frozen=True)
class Frames:
    """In what an encoder counts its chunks: `seconds` a frame, and what must divide a chunk and a left context."""

    seconds: float
    chunk_step: int = 1
    left_step: int = 1


def choose_chunks(settings: Mapping[str, Any], options: Options, frames: Frames, notes: list[str]) -> tuple[int, int]:
    """Chunk size and left context of a causal model, -1 for none and for unlimited; `notes` says what was chosen."""
    chosen = []
    for key, name, seconds, default, step in (
        ("chunk_size", "chunk_seconds", options.chunk_seconds, DEFAULT_CHUNK, frames.chunk_step),
        (
            "left_context_frames",
            "left_context_seconds",
            options.left_context_seconds,
            DEFAULT_LEFT_CONTEXT,
            frames.left_step,
        ),
    ):
        trained = trained_with(settings, key)
        listed = ", ".join("unlimited" if value < 0 else f"{value * frames.seconds:g}" for value in trained)
        if seconds is None:
            value = next((value for value in trained if value > 0), default)
            if len(trained) != 1:
                origin = f"the first of {listed}" if trained else "the recipe's first"
                notes.append(f"{name} {value * frames.seconds:g} is taken, {origin} ({name} overrides)")
        else:
            value = _in_frames(seconds, name, frames.seconds, step, listed)
            if settings.get("fixed_chunk") and value != trained[0]:
                raise ConfigError(
                    f"this export holds weights for {name} {listed} only: {seconds:g} needs the .pt checkpoint"
                )
        chosen.append(value)
    return chosen[0], chosen[1]


def trained_with(settings: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The values of an argument that a recipe may draw from; () where nothing states them."""
    value = settings.get(key)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def refuse_chunks(options: Options) -> None:
    """ConfigError where chunks are asked of a model that has none."""
    if (options.chunk_seconds, options.left_context_seconds) != (None, None):
        raise ConfigError("chunk_seconds and left_context_seconds are for causal models, and this one is not causal")


def _in_frames(seconds: float, name: str, frame_seconds: float, step: int, trained: str) -> int:
    """`seconds` in frames, a multiple of `step`; -1 for infinity. A chunk has at least one step."""
    if seconds == math.inf:
        return -1
    frames = round(seconds / frame_seconds) if math.isfinite(seconds) else -1
    least = step if name == "chunk_seconds" else 0
    if frames < least or frames % step or abs(frames * frame_seconds - seconds) > 1e-6:
        known = f"; the recipe trains with {trained}" if trained else ""
        raise ConfigError(
            f"{name} {seconds:g} is not possible: this model takes multiples of {step * frame_seconds:g} s{known}"
        )
    return frames
