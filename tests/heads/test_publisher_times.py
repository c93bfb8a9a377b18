"""FunASR's times of tokens: the reference's cases of the rule; whole clips stand in tests/test_golden_paraformer.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from golden_models import quick_jit
from jaxasr.heads.parallel_config import STEP_PARTS
from jaxasr.heads.publisher_times import SHIFT, Steps, steps_exchanged
from jaxasr.heads.running_sums import PEAK, Running

ROOM = 16  # tokens


def spans_of(cases: list[dict[str, Any]], shift: int) -> list[list[tuple[float, float]]]:
    """Begin and end of each case's tokens in steps, all cases as rows of one batch, beside padding."""
    lengths = np.array([len(case["alphas"]) for case in cases])
    weights, peaks = (
        np.stack([np.pad(np.array(case[name], np.float32), (0, 205 - len(case[name]))) for case in cases])
        for name in ("alphas", "peaks")
    )
    counts = np.array([len(case["char_list"]) for case in cases])

    @quick_jit
    def run(weights: Any, peaks: Any, counts: Any, lengths: Any) -> Any:
        whole = jnp.cumsum(peaks >= PEAK, axis=1, dtype=jnp.int32)
        steps = Steps(weights, Running(whole, jnp.zeros_like(weights)), lengths)
        return steps.spans(counts[:, None], ROOM, shift)

    begin, duration = run(weights, peaks, counts, lengths)
    assert (begin[:, 0][np.arange(ROOM) >= counts[:, None]] == 0).all()
    ends = (begin + duration) / STEP_PARTS
    return [
        list(zip(row / STEP_PARTS, end, strict=True))[:count]
        for row, end, count in zip(begin[:, 0], ends[:, 0], counts, strict=True)
    ]


def test_every_case_of_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "golden/paraformer-tiny/timestamps.json").read_text(encoding="utf-8"))["cases"]
    assert {case["upsample_rate"] for case in cases} == {1, 3}
    shifts = sorted({case.get("force_time_shift", SHIFT / STEP_PARTS) for case in cases})
    assert shifts == [-1.5, 0.0]
    for shift in shifts:
        group = [case for case in cases if case.get("force_time_shift", -1.5) == shift]
        for case, spans in zip(group, spans_of(group, int(shift * STEP_PARTS)), strict=True):
            # In FunASR's order of operations, which decides what is cut off.
            step, offset = 10.0 * 6 / 1000 / case["upsample_rate"], case.get("vad_offset", 0.0) / 1000
            times = [(begin * step, end * step) for begin, end in spans]
            assert [[int((time + offset) * 1000) for time in both] for both in times] == case["timestamps_ms"]
            stated = [part.split() for part in case["text"].split(";") if part and not part.startswith("<sil>")]
            printed = [[str(time + offset + 0.0005)[:5] for time in both] for both in times]
            assert [[name, *both] for name, both in zip(case["char_list"], printed, strict=True)] == stated


def test_a_plain_predictors_weights_and_sums_change_places() -> None:
    """By hand; what stands after a row is not read."""
    weights = np.array([[0.5, 0.5, 0.5, 0.5, 7.0]], np.float32)
    running = Running(np.array([[0, 1, 1, 2, 9]], np.int32), np.array([[0.5, 0.0, 0.5, 0.0, 0.9]], np.float32))
    steps = quick_jit(lambda *rows: steps_exchanged(*rows))(weights, running, np.array([3]))
    np.testing.assert_allclose(steps.weights, [[0.5, 1.0, 0.5, 1.0, 0.0]])
    assert steps.running.whole.tolist() == [[0, 0, 0, 0, 0]] and steps.lengths.tolist() == [4]
    begin, duration = quick_jit(lambda steps: Steps(*steps).spans(jnp.array([[1]]), 2))(steps)
    # The sums are scaled to 1/3, 2/3, 1/3, 2/3: peaks at steps 1 and 3 stand for -0.5 and 1.5, and the row ends at 4.
    assert begin.tolist() == [[[0, 0]]]
    assert duration.tolist() == [[[4 * 4, 0]]]


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_no_tokens_have_no_times(weight: float) -> None:
    weights = np.full((1, 4), weight, np.float32)
    still = Running(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.float32))
    begin, duration = quick_jit(lambda w: Steps(w, still, jnp.array([4])).spans(jnp.array([[0]]), 3))(weights)
    assert (begin == 0).all() and (duration == 0).all()
