"""Segments by FunASR's rules: those of FunASR 1.4.16 itself on drawn probabilities and levels, whole and bit by bit."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest

from conftest import DATA
from golden_models import read_arrays
from jaxasr.longform.configs import DYNAMIC_SCHEDULE, EndpointConfig, Span
from jaxasr.longform.endpoints import Endpoints

FOLDER = DATA / "fsmn-vad"
RULES = {
    "fixed": EndpointConfig(),
    "fixed_300": EndpointConfig(silence_ms=300),
    "dynamic": EndpointConfig(schedule=DYNAMIC_SCHEDULE),
    "short_limit": EndpointConfig(longest_ms=8000),
    "not_extended": EndpointConfig(extends=False, silence_ms=500),
    "gates": EndpointConfig(least_level=-40.0, least_ratio=12.0, noise_frames=20),
    "odd": EndpointConfig(window_ms=250, to_speech_ms=100, to_silence_ms=120, silence_ms=615, before_ms=90, after_ms=50,
                          noise_power=1.3, threshold=0.45),
}  # fmt: skip


@functools.cache
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "rules.json").read_text())
    return found


@functools.cache
def recordings() -> dict[str, np.ndarray]:
    return read_arrays(FOLDER / "rules.npz")


def segments(rules: EndpointConfig, recording: int, samples: int, bits: int) -> list[Span]:
    """The segments in ms, the frames given `bits` at a time; samples are heard a second before their frames."""
    noise = (recordings()[f"noise_{recording}"].astype(np.float32) + np.float32(0.5)) / np.float32(256)
    levels = recordings()[f"levels_{recording}"].astype(np.float32)
    machine = Endpoints(rules, 0.01)
    spans = []
    for start in range(0, len(noise), bits):
        stop = start + bits
        heard = min(samples, stop * 160 + 16000)
        spans += machine.feed(1 - noise[start:stop], levels[start:stop], heard)
        first, sure = machine.pending
        assert first <= sure <= stop
    return [(10 * start, 10 * stop) for start, stop in [*spans, *machine.finish()]]


@pytest.mark.parametrize("rules", RULES)
def test_segments_are_those_of_funasr(rules: str) -> None:
    """Recordings of 4 s to 187 s; among them one of a sample less than a piece of 60 s, and one of just as many."""
    cases = [case for case in stored()["cases"] if case["rules"] == rules]
    assert len(cases) == 7 and sum(len(case["segments"]) for case in cases) > 25
    for case in cases:
        expected = [(start, stop) for start, stop in case["segments"]]
        for bits in (10**6, 1700):
            assert segments(RULES[rules], case["recording"], case["samples"], bits) == expected, (case, bits)


def test_what_is_pending_holds_what_ends_later() -> None:
    """A segment begins no earlier than was said, and lasts at least as long as was sure."""
    noise = 1 - (recordings()["noise_0"].astype(np.float32) + np.float32(0.5)) / np.float32(256)
    machine = Endpoints(EndpointConfig(call_ms=100), 0.01)
    before: list[Span] = []
    for start in range(0, len(noise), 10):
        for span in machine.feed(noise[start : start + 10], None, (start + 14) * 160):
            assert all(first <= span[0] and (sure == first or (first, sure) <= span) for first, sure in before)
            before = []
        before.append(machine.pending)
    assert len(before) > 1


def test_levels_matter_to_gates_alone() -> None:
    assert not Endpoints(EndpointConfig(), 0.01).hears_levels
    assert Endpoints(EndpointConfig(least_level=-40.0), 0.01).hears_levels
    assert Endpoints(EndpointConfig(least_ratio=3.0), 0.01).hears_levels


@pytest.mark.parametrize(
    ("field", "value"),
    [("window_ms", 0), ("silence_ms", -1), ("threshold", float("nan")), ("schedule", ((1000, 500), (0, 800)))],
)
def test_impossible_rules_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(EndpointConfig(), **{field: value})
