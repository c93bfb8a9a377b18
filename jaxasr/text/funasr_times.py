"""Times of tokens from the weights of a predictor, as FunASR 1.4 states them (utils/timestamp_tools.py).

FunASR's rule takes the token before a peak to last until the next one, moves all peaks by one and a half steps, and
scales the weights until there is a peak more than there are tokens. Of a plain Paraformer (`pred_timestamp`) FunASR
passes weights and running sums in each other's place, so that the sums are scaled. What a transcript of ours states
instead is the frame at which each token is complete.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FRAME_MILLISECONDS = 10.0 * 6  # of a stacked frame
PEAK = 1.0 - 1e-4
SHIFT = -1.5  # steps from a peak to its time, by default
LONGEST = 12  # steps of a token, after which there is silence
SILENCE = 5  # steps before the first and after the last peak that are silence


class Stretch(NamedTuple):
    """A token, by its place among the tokens, or silence (None), `start` to `stop` in seconds."""

    token: int | None
    start: float
    stop: float


def stretches(
    weights: np.ndarray, peaks: np.ndarray, count: int, upsampling: int, shift: float = SHIFT
) -> list[Stretch]:
    """Tokens and the silence between them, one after another.

    `weights` (S,) float32: of each step, the tail included where the predictor has one. `peaks` (S,) float32: their
    running sum before a token is taken off. `count`: of the tokens, `</s>` left out. `upsampling`: steps a frame.
    `shift`: steps from a peak to the time that it stands for.
    """
    if count == 0:
        return []
    step = FRAME_MILLISECONDS / 1000 / upsampling
    places = _places(peaks, shift)
    if len(places) != count + 1:
        scaled = weights / (weights.sum(dtype=np.float32) / np.float32(count + 1))
        places = _places(_running(scaled), shift)
    found = [Stretch(None, 0.0, places[0] * step)] if places[0] > SILENCE else []
    for token, (place, following) in enumerate(zip(places[:-1], places[1:], strict=True)):
        stop = min(following, place + LONGEST)
        found.append(Stretch(token, place * step, stop * step))
        if stop < following:
            found.append(Stretch(None, stop * step, following * step))
    end, last = len(peaks), places[-1]
    middle = (end + last) * 0.5
    found[-1] = found[-1]._replace(stop=(middle if end - last > SILENCE else end) * step)
    if end - last > SILENCE:
        found.append(Stretch(None, middle * step, end * step))
    return found


def token_spans(found: list[Stretch], offset: float = 0.0) -> list[tuple[int, int]]:
    """From and to of each token in whole milliseconds, cut off as FunASR does; `offset` (ms) is added first."""
    added = offset / 1000.0
    return [
        (int((each.start + added) * 1000), int((each.stop + added) * 1000)) for each in found if each.token is not None
    ]


def _places(peaks: np.ndarray, shift: float) -> list[float]:
    return [float(place) + shift for place in np.flatnonzero(peaks >= np.float32(PEAK))]


def _running(weights: np.ndarray) -> np.ndarray:
    """The running sum in float32, from which PEAK is taken off wherever it is reached."""
    total, sums = np.float32(0), []
    for weight in weights.astype(np.float32):
        total = np.float32(total + weight)
        sums.append(total)
        if total >= np.float32(PEAK):
            total = np.float32(total - np.float32(PEAK))
    return np.array(sums, np.float32)
