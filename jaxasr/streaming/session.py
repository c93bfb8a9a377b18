"""Streams as people use them: samples in, the text so far and at last the transcript out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from jaxasr.audio import SAMPLE_RATE
from jaxasr.errors import AudioError, ConfigError, ModelError
from jaxasr.pieces import StreamPiece, StreamPlan
from jaxasr.programs import Programs
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.spoken import Speller, Spoken
from jaxasr.streaming.stepping import Stepping, Turn
from jaxasr.transcripts import Transcript


class Streams:
    """Slots for streams of one model, which one compiled program takes a step of together. Threads may share it.

    Made by `Recognizer.streams`. `slots`: how many streams can be open at a time. `seconds_per_step`: sound by which
    one step moves a stream on.
    """

    def __init__(self, programs: Programs, speller: Speller, *, slots: int, blank_penalty: float = 0.0) -> None:
        """Raises ConfigError where the model or its search cannot take a stream."""
        if isinstance(slots, bool) or slots < 1:
            raise ConfigError(f"slots must be a number of streams, not {slots!r}")
        self._config, self._speller, self._blank_penalty = programs.config, speller, blank_penalty
        self._plan = StreamPlan(programs.config)
        self._stepping = Stepping(programs, self._plan, slots)
        self._state = self._stepping.begin()
        self._slots: list[Stream | None] = [None] * slots
        self._lock = threading.RLock()

    @property
    def slots(self) -> int:
        return len(self._slots)

    @property
    def seconds_per_step(self) -> float:
        return (self._plan.start(1) - self._plan.start(0)) / SAMPLE_RATE

    def open(self) -> Stream:
        """A stream of which nothing has been heard, in a free slot. Raises ConfigError where there is none."""
        with self._lock:
            if None not in self._slots:
                raise ConfigError(f"all {self.slots} slots hold streams: finish or close one, or take more slots")
            stream = Stream(self)
            self._slots[self._slots.index(None)] = stream
            return stream

    def feed(self, pieces: Iterable[tuple[Stream, np.ndarray]]) -> None:
        """Samples of several streams at once, as `Stream.feed` takes those of one, so that steps are taken together."""
        with self._lock:
            fed = [(stream, _checked(samples)) for stream, samples in pieces]
            for stream, samples in fed:
                self._slot(stream)
                stream._append(samples)
            self._run([stream for stream, _ in fed])

    def finish(self, streams: Sequence[Stream]) -> list[Transcript]:
        """The transcripts of several streams that have ended; their slots are free then."""
        with self._lock:
            for stream in streams:
                self._slot(stream)
                stream._end()
            self._run(streams)
            for stream in streams:
                self.close(stream)
            return [stream.partial for stream in streams]

    def close(self, stream: Stream) -> None:
        """Free a stream's slot, whatever has been heard of it. A stream that has none is left alone."""
        with self._lock:
            if stream in self._slots:
                self._slots[self._slots.index(stream)] = None

    def _slot(self, stream: Stream) -> int:
        if stream not in self._slots:
            raise ConfigError("the stream is finished or closed, or another recognizer's: open a new one")
        return self._slots.index(stream)

    def _run(self, streams: Sequence[Stream]) -> None:
        """Steps until none of these streams has one left; of the others those that have one go along."""
        while any(stream._has_step for stream in streams):
            self._step()

    def _step(self) -> None:
        piece = self._plan.empty(self._stepping.rows)
        turn = Turn(*np.zeros((2, self._stepping.rows), bool))
        going = [(row, each) for row, each in enumerate(self._slots) if each is not None and each._has_step]
        for row, stream in going:
            turn.active[row], turn.fresh[row] = True, stream._steps == 0
            stream._fill(piece, row)
        self._state, settled, rest = self._stepping.run(self._state, piece, turn, self._blank_penalty)
        for row, stream in going:
            stream._take(_row(settled, row), _row(rest, row))
        overflown = [stream for _, stream in going if not stream._is_finite]
        for stream in overflown:
            self.close(stream)
        if overflown:
            raise ModelError(f"{self._config.name} leaves the range of its numbers: take float32 as dtype")


class Stream:
    """A recording that is heard while it goes on. Made by `Recognizer.stream` or `Streams.open`.

    As a context manager it closes itself: a stream that is neither finished nor closed keeps its slot.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._plan, config = streams._plan, streams._config
        self._silence_after = round(config.audio.silence_after * SAMPLE_RATE)
        silence_before = round(config.audio.silence_before * SAMPLE_RATE)
        self._waiting = [np.zeros((silence_before,), np.float32)]  # samples from number `_begin` on
        self._begin = 0
        self._known = silence_before  # samples that have come, silence included
        self._heard = 0  # samples that were fed
        self._steps = 0
        self._total: int | None = None  # steps, once it has ended
        self._settled: list[Spoken] = []  # of each `feed` that has settled something, the end belonging to the last
        self._called = False  # whether the last of these is of the call that goes on
        self._rest = streams._speller.spoken([np.zeros((0,))] * 4)
        self._is_finite = True

    def feed(self, samples: np.ndarray) -> None:
        """Go on with samples (n,), floats in -1..1 at 16 kHz, any number of them; steps that are due are taken.

        Raises AudioError for what is no such array, and for NaN and infinity; ConfigError after the end.
        """
        self._streams.feed([(self, samples)])

    @property
    def partial(self) -> Transcript:
        """What has been said so far. Later tokens are added; a search with several hypotheses may change the last."""
        parts = [*self._settled, self._rest]
        return self._streams._speller.transcript(parts, audio="", duration=self._heard / SAMPLE_RATE)

    def finish(self) -> Transcript:
        """The transcript of all that was fed, after the silence that the model wants at the end. Frees the slot."""
        return self._streams.finish([self])[0]

    def close(self) -> None:
        """Free the slot without a transcript."""
        self._streams.close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _has_step(self) -> bool:
        due = self._plan.ready(self._known) if self._total is None else self._total
        return self._steps < due

    def _append(self, samples: np.ndarray) -> None:
        self._called = False
        if len(samples):
            self._waiting.append(samples)
            self._known += len(samples)
            self._heard += len(samples)

    def _end(self) -> None:
        self._waiting.append(np.zeros((self._silence_after,), np.float32))
        self._known += self._silence_after
        self._total = self._plan.total(self._known) if self._heard else 0

    def _fill(self, piece: StreamPiece, row: int) -> None:
        """Put the next step into a row, and let go of samples that no later step takes."""
        start = max(self._plan.start(self._steps), 0)
        samples = np.concatenate(self._waiting)[start - self._begin :]
        self._waiting, self._begin = [samples], start
        self._plan.fill(piece, row, self._steps, samples, self._known, self._total is not None)
        self._steps += 1

    def _take(self, settled: tuple[np.ndarray, ...], rest: tuple[np.ndarray, ...]) -> None:
        """What a step has found."""
        speller = self._streams._speller
        if len(settled[0]):
            found = speller.spoken(settled)
            self._settled.append(self._settled.pop().followed_by(found) if self._called else found)
            self._called = True
        self._rest = speller.spoken(rest)
        self._is_finite = bool(np.isfinite(settled[3]).all() and np.isfinite(rest[3]).all())


def _checked(samples: np.ndarray) -> np.ndarray:
    """A copy of samples (n,) as float32: the caller may use its array again."""
    given = np.asarray(samples)
    if given.ndim != 1 or given.dtype.kind != "f":
        raise AudioError(
            f"a stream is fed arrays (samples,) of floats in -1..1 at 16 kHz, not {given.dtype} of shape {given.shape}"
        )
    copied = np.array(given, np.float32)
    if not np.isfinite(copied).all():
        raise AudioError("a stream was fed NaN or infinity, which is no sound")
    return copied


def _row(found: Hypotheses, row: int) -> tuple[np.ndarray, ...]:
    """ids, frames, durations and log-probabilities (L,) of a slot's hypothesis."""
    count = int(found.length[row, 0])
    return tuple(np.asarray(leaf[row, 0, :count]) for leaf in found[:4])
