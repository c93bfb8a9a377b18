"""Which programs a job runs in: padding takes time, and so does every program that has to be compiled or fetched."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaxasr.batching import Batch, Window

# Programs of one job, whatever its lengths; a small job has fewer.
MOST_PROGRAMS, FEWEST_PROGRAMS = 8, 2
# Of them so many at most are kept for windows that are longer than those so far: one an octave.
MOST_RESERVED = 4
# Lengths of batches stand in the ratios of ISO 3's series R10: ten steps to ten times the length.
SERIES = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
# Row counts are powers of it: few of them, so that later jobs meet programs that are there.
ROW_STEP = 4

Shape = tuple[int, int]  # rows, samples


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a kind of device takes, in seconds.

    `program`: a program, between what it takes to compile and to fetch from the cache. `length`: every second of a
    batch, however many its rows, since a search goes frame by frame. For a million parameters, `batch`: every batch,
    which reads them from memory; `work`: every second of every row.
    """

    program: float
    length: float
    batch: float
    work: float


# By JAX's name of the platform. The CPU's were measured on two busy cores. A v5e's program compiles in 39 s; all else
# of GPU and TPU is estimated.
COSTS = {
    "cpu": Costs(program=1.0, length=0.001, batch=3e-4, work=1.2e-4),
    "gpu": Costs(program=10.0, length=0.003, batch=5e-6, work=5e-7),
    "tpu": Costs(program=30.0, length=0.003, batch=5e-6, work=5e-7),
}


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Windows of neighbouring lengths that run at one length: `count` of them, in batches of these `rows`."""

    samples: int
    rows: tuple[int, ...]
    count: int


@dataclasses.dataclass(frozen=True)
class _Part:
    """The cheapest way for the shorter windows: seconds, the stretches, and the shapes that are new."""

    seconds: float
    stretches: tuple[_Stretch, ...] = ()
    new: frozenset[Shape] = frozenset()


def ladder(shortest: int, longest: int, silence: int = 0) -> list[int]:
    """Lengths that batches may have, in samples: `silence`, and as much sound as clips in round numbers have.

    Sound of `shortest` times the numbers of SERIES, and `longest` at the end.
    """
    rungs, decade = [], shortest
    while decade < longest:
        rungs += [round(decade * step) for step in SERIES]
        decade *= 10
    return [silence + rung for rung in (*(rung for rung in rungs if rung < longest), max(longest, shortest))]


def most_programs(windows: int) -> int:
    """How many programs a job of so many windows may have: twice as many for ten times the windows."""
    return max(min(int(2 ** math.log10(max(windows, 1))), MOST_PROGRAMS), FEWEST_PROGRAMS)


class Planner:
    """Sorts the windows of one job, group by group, into batches of few shapes.

    What it chooses depends on the lengths that it has been given and on nothing else, so that a job has the same
    batches, and thus the same results to the last bit, whether its programs are in the cache or not.
    """

    def __init__(
        self,
        rungs: Sequence[int],
        *,
        most_samples: float,
        multiple: int,
        padding: int,
        costs: Costs,
        parameters: int,
        rate: int,
    ) -> None:
        """`rungs`: lengths that batches may have, in samples, the last for the longest window.

        `most_samples`: what a batch may hold, padding included; one row of every device it holds always. `multiple`:
        devices that share a batch. `padding`: samples of silence that every window gets.
        `parameters`: of the model. `rate`: samples a second.
        """
        self.rungs = list(rungs)
        self._most_samples, self._multiple, self._costs, self._rate = most_samples, multiple, costs, rate
        self._batch, self._work = (cost * parameters / 1e6 for cost in (costs.batch, costs.work / multiple))
        self._padding = padding
        self._heard: Counter[int] = Counter()  # windows of the job so far, by the rung that holds them
        self._used: set[Shape] = set()

    def plan(self, windows: Iterable[Window], *, share: float | None = None) -> list[Batch]:
        """Batches of a group, the shortest first.

        `share`: the part of the job that has been heard, this group included, where it is known; 1 at the end.

        A program is taken once the job, as far as it is known, is quicker with it: the part that has been heard stands
        for the whole.
        """
        ordered = sorted(windows, key=lambda window: window.stop - window.start)
        lengths = [self.rung(window.stop - window.start) for window in ordered]
        self._heard.update(lengths)
        job = {rung: math.ceil(count / (share or 1.0)) for rung, count in self._heard.items()}
        most = most_programs(sum(job.values()))
        if lengths[-1:] > [max((samples for _, samples in self._used), default=0)]:
            most = max(most, len(self._used) + 1)  # for the longest window there may be, at worst
        shapes = self._used | self._cheapest(job, self._used, self._costs.program, most, more=share != 1.0).new
        stretches = self._cheapest(Counter(lengths), shapes).stretches
        batches = list(self._fill(stretches, ordered))
        self._used.update((batch.rows, batch.samples) for batch in batches)
        return batches[::-1]

    def reach(self, samples: int) -> None:
        """Add longer rungs, until one holds a window of so many samples."""
        while self.rungs[-1] < samples + self._padding:
            self.rungs.append(round(self.rungs[-1] * SERIES[1]))

    def rung(self, samples: int) -> int:
        """The shortest rung that holds a window of so many samples and its silence."""
        return next(rung for rung in self.rungs if rung >= samples + self._padding)

    def shapes(self, rungs: Iterable[int], most: int | None = None) -> list[Shape]:
        """What batches of a job may have whose windows are held by these `rungs`, the likeliest first.

        `most`: windows that a job has at most; any number if None.

        It is all of them, the longest rung's included, to which a job of unknown length falls back. The likeliest are
        those of the longest, which hold every window, and then those of one window a device.
        """
        top = self.rungs[-1]
        found = []
        for rung in {*rungs, top}:
            counts = self._row_counts(rung)
            enough = len(counts) if most is None else sum(count < most for count in counts) + 1
            found += [(rows, rung) for rows in counts[:enough]]
        return sorted(found, key=lambda shape: (shape[1] != top, shape[0] != self._multiple, -shape[1], shape[0]))

    def _cheapest(
        self, counts: Mapping[int, int], free: set[Shape], price: float = 0.0, most: int = 0, more: bool = False
    ) -> _Part:
        """The stretches of least cost for so many windows by rung, in at most `most` shapes, the `free` among them.

        By dynamic programming over the rungs that have windows: a stretch of them runs at the longest's length, or at
        the next one that is free. Every new shape has its `price` (s). Where `more` windows may come, new shapes leave
        room for longer ones: corpora are often sorted.
        """
        rungs, top = sorted(counts), self.rungs[-1]
        free_lengths = sorted({samples for _, samples in free})
        parts: list[dict[int, _Part]] = [{0: _Part(0.0)}]  # the cheapest before each stop, by the number of new shapes
        for stop in range(1, len(rungs) + 1):
            own = rungs[stop - 1]
            lengths = sorted({own, top, next((length for length in free_lengths if length > own), own)})
            found: dict[int, _Part] = {}
            for samples, rows in ((length, rows) for length in lengths for rows in self._choices(length)):
                missing = frozenset((each, samples) for each in rows) - free
                if missing and not self._fits(samples, free | missing, most, more):
                    continue
                for start in range(stop):
                    count = sum(counts[rung] for rung in rungs[start:stop])
                    seconds = self._run(samples, rows, count) + price * len(missing)
                    for before in parts[start].values():
                        new = before.new | missing
                        key, total = len(new), before.seconds + seconds
                        if key in found and found[key].seconds <= total:
                            continue
                        if missing and not self._fits(samples, free | new, most, more):
                            continue
                        found[key] = _Part(total, (*before.stretches, _Stretch(samples, rows, count)), new)
            parts.append(found)
        return min(parts[-1].values(), key=lambda part: part.seconds)

    def _fits(self, samples: int, shapes: set[Shape], most: int, more: bool) -> bool:
        """Whether there are at most `most` shapes, and room for longer ones than `samples` where `more` may come."""
        reserve = min(math.ceil(math.log2(self.rungs[-1] / samples)), MOST_RESERVED, most - 1) if more else 0
        return len(shapes) <= most and sum(length <= samples for _, length in shapes) + reserve <= most

    def _row_counts(self, samples: int) -> list[int]:
        counts = [self._multiple]
        while counts[-1] * ROW_STEP * samples <= self._most_samples:
            counts.append(counts[-1] * ROW_STEP)
        return counts

    def _choices(self, samples: int) -> list[tuple[int, ...]]:
        """One or two row counts, the larger first."""
        counts = self._row_counts(samples)
        pairs = [(large, small) for large in counts for small in counts if small < large]
        return [*((count,) for count in counts), *pairs]

    def _seconds(self, rows: int, samples: int) -> float:
        """A batch of this shape."""
        return self._batch + (self._costs.length + self._work * rows) * samples / self._rate

    def _split(self, samples: int, rows: tuple[int, ...], count: int) -> tuple[int, int]:
        """Large and small batches that so many windows take: full large ones, then what is cheapest for the rest."""
        large, small = rows[0], rows[-1]
        full, rest = divmod(count, large)
        smaller = math.ceil(rest / small)
        if smaller * self._seconds(small, samples) < self._seconds(large, samples):
            return full, smaller
        return full + (rest > 0), 0

    def _run(self, samples: int, rows: tuple[int, ...], count: int) -> float:
        full, smaller = self._split(samples, rows, count)
        return full * self._seconds(rows[0], samples) + smaller * self._seconds(rows[-1], samples)

    def _fill(self, stretches: Sequence[_Stretch], windows: list[Window]) -> Iterator[Batch]:
        """Batches from the longest down; rows that would be empty take the next shorter windows."""
        left = list(windows)
        shorter = len(windows)
        for stretch in reversed(stretches):
            shorter -= stretch.count
            full, smaller = self._split(stretch.samples, stretch.rows, max(len(left) - shorter, 0))
            for rows in [stretch.rows[0]] * full + [stretch.rows[-1]] * smaller:
                taken, left = left[-rows:], left[:-rows]
                yield Batch(tuple(taken), rows, stretch.samples)
