"""The context of a model that was trained with several: that of the options, else NeMo's own choice, the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxasr.convert.nemo.settings import is_pair
from jaxasr.convert.protocol import Options
from jaxasr.errors import ConfigError

_KEY = "att_context_size"


def choose_context(
    encoder: Mapping[str, Any], frame_seconds: float, options: Options, notes: list[str]
) -> dict[str, Any]:
    """The `encoder:` settings with one attention context; `frame_seconds`: between feature frames.

    A chunk is a frame and what it sees after it. ConfigError where the options name a context that was not trained.
    """
    contexts = _contexts(encoder.get(_KEY))
    step = encoder.get("subsampling_factor", 4)
    asked = {"chunk_seconds": options.chunk_seconds, "left_context_seconds": options.left_context_seconds}
    limited = [pair for pair in contexts if min(pair) >= 0]
    if type(step) is not int or not limited:
        if any(seconds is not None for seconds in asked.values()):
            raise ConfigError("chunk_seconds and left_context_seconds are for models that stream, and this is none")
        return dict(encoder)
    unit = step * frame_seconds
    trained = {pair: (round((pair[1] + 1) * unit, 6), round(pair[0] * unit, 6)) for pair in limited}
    listed = ", ".join(f"{chunk:g} after {left:g} s" for chunk, left in trained.values())
    fitting = [
        pair
        for pair, seconds in trained.items()
        if all(
            wanted is None or abs(wanted - stated) < 1e-6
            for wanted, stated in zip(asked.values(), seconds, strict=True)
        )
    ]
    if not fitting:
        raise ConfigError(f"chunk_seconds and left_context_seconds are those of the training: chunks of {listed}")
    chosen = list(fitting[0])
    if len(contexts) > 1 and all(seconds is None for seconds in asked.values()):
        chosen = list(contexts[0])
        notes.append(
            f"the first context of the training is taken; its chunks are of {listed} (chunk_seconds overrides)"
        )
    return {**encoder, _KEY: chosen}


def _contexts(value: Any) -> list[tuple[int, int]]:
    """The pairs of frames before and after, of which there may be one or several; what is none is left out."""
    pairs = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    return [(pair[0], pair[1]) for pair in pairs if is_pair(pair)]
