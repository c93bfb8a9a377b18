"""Which programs a job runs in: few of them, little padding, and every window in its place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxasr.batching import Batch, Window
from jaxasr.planner import COSTS, MOST_PROGRAMS, Planner, ladder, most_programs

RATE = 16000


def planner(
    platform: str = "cpu", parameters: int = 150_000_000, multiple: int = 1, seconds: float = 20.0, padding: int = 0
) -> Planner:
    return Planner(
        ladder(RATE, 30 * RATE),
        most_samples=seconds * RATE,
        multiple=multiple,
        padding=padding,
        costs=COSTS[platform],
        parameters=parameters,
        rate=RATE,
    )


def windows_of(seconds: np.ndarray | list[float], first: int = 0) -> list[Window]:
    return [Window(first + index, 0, max(int(each * RATE), 1)) for index, each in enumerate(seconds)]


def run(chosen: Planner, seconds: np.ndarray, group: float = 480.0, known: bool = True) -> list[Batch]:
    """The batches of a job whose windows come in groups of so many seconds; all windows in them, each in its place."""
    batches: list[Batch] = []
    start = 0
    while start < len(seconds):
        stop = start + int(np.searchsorted(np.cumsum(seconds[start:]), group)) + 1
        share = min(stop / len(seconds), 1.0) if known else None
        batches += chosen.plan(windows_of(seconds[start:stop], start), share=share)
        start = stop
    assert sorted(window.clip for batch in batches for window in batch.windows) == list(range(len(seconds)))
    for batch in batches:
        assert 0 < len(batch.windows) <= batch.rows
        assert all(window.stop - window.start <= batch.samples for window in batch.windows)
    return batches


def programs(batches: list[Batch]) -> set[tuple[int, int]]:
    return {(batch.rows, batch.samples) for batch in batches}


def padded(batches: list[Batch], seconds: np.ndarray) -> float:
    """Seconds of rows for every second of sound."""
    return sum(batch.rows * batch.samples for batch in batches) / RATE / float(seconds.sum())


def speech(clips: int, seed: int) -> np.ndarray:
    """Lengths as of recordings of speech: 1 to 25 s, most of them short."""
    return np.clip(np.exp(np.random.default_rng(seed).normal(np.log(7.5), 0.75, clips)), 1.0, 25.0)


@pytest.mark.parametrize("seed", range(5))
def test_ten_clips_two_programs_a_hundred_four(seed: int) -> None:
    few, many = speech(10, seed), speech(100, seed)
    assert len(programs(run(planner(), few))) <= 2
    batches = run(planner(), many)
    assert len(programs(batches)) <= 4
    assert padded(batches, many) < 1.55


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("platform", sorted(COSTS))
def test_ten_thousand_clips_of_any_length_need_eight(platform: str, known: bool) -> None:
    rng = np.random.default_rng(7)
    mixed = np.concatenate([rng.uniform(0.0, 3.0, 2000), rng.uniform(0.0, 30.0, 8000)])
    for seconds, most in ((mixed, 1.35), (rng.permutation(mixed), 1.25), (np.sort(mixed), 1.6)):
        batches = run(planner(platform, seconds=20.0 if platform == "cpu" else 1200.0), seconds, 2400.0, known)
        assert len(programs(batches)) <= MOST_PROGRAMS
        if platform == "cpu":  # others compute faster than they compile: padding is cheaper there
            assert padded(batches, seconds) < most


def test_a_larger_job_is_padded_less() -> None:
    jobs = [speech(clips, 3) for clips in (10, 100, 1000)]
    assert [most_programs(len(job)) for job in jobs] == [2, 4, 8]
    shares = [padded(run(planner(), job), job) for job in jobs]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1.25


def test_the_plan_depends_on_lengths_alone() -> None:
    seconds = speech(300, 1)
    assert run(planner(), seconds) == run(planner(), seconds)


def test_no_plan_of_two_shapes_is_cheaper() -> None:
    """Against all ways to run a few clips in one or two shapes of one row, counted by hand."""
    chosen = planner(seconds=1.0)
    seconds = np.array([1.5, 4.4, 7.0, 18.0, 19.0])
    costs = dataclasses.asdict(COSTS["cpu"])

    def cost(lengths: list[float]) -> float:
        held = [min(length for length in lengths if length >= each) for each in seconds]
        batch = costs["batch"] * 150
        return costs["program"] * len(lengths) + sum(
            batch + (costs["length"] + costs["work"] * 150) * length for length in held
        )

    steps = [rung / RATE for rung in ladder(RATE, 30 * RATE)]
    candidates = [[step] for step in steps if step >= 19] + [
        [small, large] for small in steps for large in steps if 1.5 <= small < large >= 19
    ]
    best = min(cost(lengths) for lengths in candidates)
    batches = run(chosen, seconds)
    assert cost(sorted({batch.samples / RATE for batch in batches})) == pytest.approx(best)


def test_rows_that_would_be_empty_take_shorter_windows() -> None:
    batches = run(planner(seconds=40.0), np.array([9.0, 9.5, 10.0, 1.0]))
    assert [(batch.rows, batch.samples, len(batch.windows)) for batch in batches] == [(4, 10 * RATE, 4)]


def test_devices_share_a_batch_evenly() -> None:
    batches = run(planner(multiple=4), np.full(7, 2.0))
    assert [(batch.rows, len(batch.windows)) for batch in batches] == [(4, 3), (4, 4)]


def test_silence_counts_into_the_length() -> None:
    (batch,) = planner(padding=round(1.8 * RATE)).plan(windows_of([11.0]), share=1.0)
    assert batch.samples == 16 * RATE


def test_the_ladder_rises_by_a_quarter_and_ends_with_the_longest() -> None:
    for shortest, longest in ((16000, 480000), (1000, 57_600_000), (16000, 16000), (32000, 16000)):
        rungs = ladder(shortest, longest)
        assert rungs[0] == shortest and rungs[-1] == max(longest, shortest)
        assert all(1.0 < after / before <= 1.29 for before, after in zip(rungs, rungs[1:], strict=False))
        # Silence comes on top, so that clips in round numbers leave no room.
        assert ladder(shortest, longest, 28800) == [rung + 28800 for rung in rungs]


def test_nothing_is_planned_for_nothing() -> None:
    chosen = planner()
    assert chosen.plan([]) == []
    assert len(chosen.plan(windows_of([3.0]))) == 1


@pytest.mark.parametrize("platform", sorted(COSTS))
@pytest.mark.parametrize("known", [True, False])
def test_all_programs_that_a_job_may_need_are_known_before(platform: str, known: bool) -> None:
    rng = np.random.default_rng(3)
    devices, seconds = (1, 20.0) if platform == "cpu" else (4, 1200.0)
    for clips in (1, 2, 7, 60, 400):
        given = rng.choice([0.4, 2.9, 3.0, 5.0, 17.0, 29.0], rng.integers(1, 4), replace=False)
        chosen = planner(platform, multiple=devices, seconds=seconds, padding=RATE // 2)
        wanted = chosen.shapes([chosen.rung(int(each * RATE)) for each in given], clips)
        assert len(wanted) == len(set(wanted)) and wanted[0] == (devices, 30 * RATE)
        for job in range(6):
            heard = rng.choice(given, clips) if job else np.sort(rng.choice(given, clips))
            made = run(chosen, heard, 40.0, known)
            assert programs(made) <= set(wanted), (clips, given)
            chosen = planner(platform, multiple=devices, seconds=seconds, padding=RATE // 2)


def test_the_likeliest_programs_come_first() -> None:
    chosen = planner(seconds=30.0)
    assert [(rows, samples / RATE) for rows, samples in chosen.shapes(chosen.rungs)[:4]] == [
        (1, 30.0), (1, 25.0), (1, 20.0), (1, 16.0)
    ]  # fmt: skip
    assert len(chosen.shapes(chosen.rungs)) == 28
    assert len(chosen.shapes(chosen.rungs, 1)) == len(chosen.rungs)
    assert len(chosen.shapes(chosen.rungs, 2)) == len(chosen.shapes(chosen.rungs, 4)) == 25
    wide = planner("tpu", seconds=1200.0)
    assert [rows for rows, samples in wide.shapes([RATE])[:3]] == [1, 4, 16]
