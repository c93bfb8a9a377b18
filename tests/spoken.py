"""Transcripts made by hand."""

from __future__ import annotations

from jaxasr.transcripts import Transcript


def spoken(
    tokens: list[str],
    timestamps: list[float],
    duration: float,
    text: str = "",
    audio: str = "a.wav",
    token_ids: list[int] | None = None,
    log_probs: list[float] | None = None,
) -> Transcript:
    """A transcript whose text is that of its tokens if none is given."""
    return Transcript(
        audio=audio,
        duration=duration,
        text=text or "".join(tokens).lstrip(),
        tokens=tokens,
        token_ids=token_ids or list(range(len(tokens))),
        timestamps=timestamps,
        log_probs=log_probs or [-0.5] * len(tokens),
    )


def evenly(tokens: list[str], step: float = 0.2, start: float = 0.0, **kwargs: object) -> Transcript:
    times = [round(start + step * i, 3) for i in range(len(tokens))]
    return spoken(tokens, times, kwargs.pop("duration", start + step * len(tokens) + 1.0), **kwargs)


ENGLISH = spoken([" HE", "LLO", " W", "OR", "LD", " NOW"], [0.2, 0.4, 0.6, 0.64, 0.68, 2.4], 3.0)
