"""Segments by two thresholds and least durations, written out frame by frame."""

from __future__ import annotations

import numpy as np
import pytest

from jaxasr.longform.configs import HysteresisConfig, Span
from jaxasr.longform.hysteresis import Hysteresis

RULES = HysteresisConfig(onset=0.6, offset=0.4, min_speech=0.3, min_silence=0.4, padding=0.2)


def segments(speech: list[float], rules: HysteresisConfig = RULES, bits: int = 1 << 30) -> list[Span]:
    """Of frames every tenth of a second."""
    machine, spans = Hysteresis(rules, 0.1), []
    for start in range(0, len(speech), bits):
        spans += machine.feed(np.array(speech[start : start + bits], np.float32), None, 0)
        first, sure = machine.pending
        assert 0 <= first <= sure <= len(speech)
    return [*spans, *machine.finish()]


@pytest.mark.parametrize("bits", [1, 3, 1 << 30])
@pytest.mark.parametrize(
    ("speech", "expected"),
    [
        ([0.5] * 20, []),  # never begins
        ([0.0] * 5 + [0.7] + [0.5] * 4 + [0.0] * 10, [(3, 12)]),  # lasts on what would not begin it
        ([0.0] * 5 + [0.9] * 2 + [0.0] * 10, []),  # too short
        (
            [0.0] * 5 + [0.9] * 2 + [0.0] * 3 + [0.9] * 2 + [0.0] * 9,
            [(3, 14)],
        ),  # a gap that is filled, then long enough
        ([0.0] * 5 + [0.9] * 3 + [0.0] * 4 + [0.9] * 3 + [0.0] * 9, [(3, 10), (10, 17)]),  # a gap that parts
        ([0.9] * 4, [(0, 6)]),  # begins with the recording and ends beyond it, where who asked knows the end
        ([], []),
    ],
)
def test_segments(speech: list[float], expected: list[Span], bits: int) -> None:
    assert segments(speech, bits=bits) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"onset": 0.3}, "offset and onset"), ({"padding": 0.3}, "padding"), ({"min_speech": -1.0}, "min_speech")],
)
def test_impossible_rules_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HysteresisConfig(**options)
