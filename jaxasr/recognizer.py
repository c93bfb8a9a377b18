"""The straight line: recordings are read, cut into batches, run through compiled programs, and spelled as text."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self, overload

import jax
import numpy as np

from jaxasr import reading
from jaxasr.audio import SAMPLE_RATE, Channels, checked_channels
from jaxasr.batching import Batch, Window, assemble
from jaxasr.devices import usual_settings
from jaxasr.errors import ConfigError, JaxasrError, ModelError
from jaxasr.inputs import AudioInput, listed
from jaxasr.longform.cutting import Cut, Cutter, QuietCutter, SpeechCutter, SpeechDetector, Uncut
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.planner import COSTS, Planner, Shape, ladder
from jaxasr.programs import Programs
from jaxasr.reading import Clip, Item
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.spoken import Speller, Spoken
from jaxasr.store import parameter_count
from jaxasr.streaming import Stream, Streams
from jaxasr.text.tokens import TokenTable
from jaxasr.transcripts import Failure, Transcript

if TYPE_CHECKING:
    from jaxasr.model import Model  # Flax, which a recognizer whose programs are kept does not need

logger = logging.getLogger("jaxasr")

# Sound in one batch, in seconds; and sound that is read ahead and sorted into batches at a time, in batches. On a CPU
# larger batches are slower, since activations leave its caches; but a batch takes weights that are integers apart once.
CPU_BATCH_SECONDS, CPU_INTEGER_BATCH_SECONDS, CPU_GROUP_BATCHES = 20.0, 40.0, 16
BATCH_SECONDS, GROUP_BATCHES = 1200.0, 4

# A recording with more sound than a batch, or than this, is heard piece by piece while it is decoded (s).
PIECE_SECONDS = 80.0

# Programs that `compile` makes if no number of rows is asked for: all on a CPU, where a batch has few rows.
MOST_COMPILED = 32

ProgressCallback = Callable[[float, float], None]


class _Hearing:
    """A transcript while its recording is cut and heard: `spoken` by the first sample of each of its `cuts`."""

    def __init__(self, name: str, channel: int | None, cutter: Cutter) -> None:
        self.name, self.channel = name, channel
        self._cutter = cutter
        self.samples = self.cuts = 0
        self.spoken: dict[int, Spoken] = {}
        self.ended = False

    @property
    def ready(self) -> bool:
        """Whether all has been heard."""
        return self.ended and len(self.spoken) == self.cuts

    def push(self, samples: np.ndarray) -> list[tuple[_Hearing, Cut]]:
        """The next samples: the cuts that are whole after them, each with this transcript."""
        self.samples += len(samples)
        return self._counted(self._cutter.push(samples))

    def finish(self) -> list[tuple[_Hearing, Cut]]:
        """The recording ends: its last cuts."""
        self.ended = True
        return self._counted(self._cutter.finish())

    def _counted(self, cuts: list[Cut]) -> list[tuple[_Hearing, Cut]]:
        self.cuts += len(cuts)
        return [(self, cut) for cut in cuts]


class Recognizer:
    """A model ready to transcribe. Threads may share it: their calls have compiled programs in common and nothing else.

    As a context manager it closes itself. `config` and `tokens` describe the model; `programs` runs it.

    It pickles: the path of its folder and its options go along, and programs are compiled anew or taken from the cache
    (of a recognizer that was made over arrays the arrays go along). Processes that are started by spawn take it so. A
    process that is forked after JAX was used cannot use JAX, nor a recognizer: it gets a ModelError that says so.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Parameters | Callable[[], Parameters],
        tokens: TokenTable,
        *,
        dtype: str = "float32",
        batch_seconds: float | None = None,
        shortest_seconds: float = 1.0,
        blank_penalty: float = 0.0,
        search: str | None = None,
        head: str | None = None,
        beam: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        parameters: int | None = None,
        vad: Literal["none", "energy"] | SpeechDetector = "energy",
    ) -> None:
        """Make a recognizer over parameters; `load_model` makes one from a name or a path. Raises ConfigError.

        `config`: what the model is.
        `params`: nested dictionary of arrays as `store.load` gives it, or a function that reads one. The function is
            called in a thread of the recognizer, which compiles meanwhile and waits for the thread in `close`.
        `tokens`: the vocabulary.
        `dtype`: float32, bfloat16 or float16.
        `batch_seconds`: sound in one batch, padding included; by default 20 on a CPU (40 for quantized weights), and
            1,200 elsewhere.
        `shortest_seconds`: shorter clips are padded to it. With a larger one fewer programs are compiled.
        `blank_penalty`: subtracted from the blank's logit.
        `search`: greedy, beam, joint or parallel, instead of the configuration's.
        `head`: the role of the head to decode with, transducer, ctc or parallel, instead of the configuration's.
        `beam`: hypotheses that a search keeps, instead of the configuration's; 1 is greedy search.
        `devices`: the local devices that share each batch, all of them by default.
        `parameters`: how many numbers `params` has, where that is known: else the model is asked.
        `vad`: what is heard of a recording: "energy", all of it, cut at quiet points where it is longer than the model
            takes; "none", all of it at once, whatever its length; or the segments that a detector of speech
            (`load_detector`) finds in it.
        """
        if isinstance(vad, str) and vad not in ("none", "energy"):
            raise ConfigError(f"vad must be 'none', 'energy' or a detector of speech, not {vad!r}")
        for name, value in (("batch_seconds", batch_seconds), ("shortest_seconds", shortest_seconds)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}")
        if config.encoder.encoded_length(config.features.frame_count(int(shortest_seconds * SAMPLE_RATE))) < 1:
            raise ConfigError(f"shortest_seconds is {shortest_seconds}, which {config.name} makes no frame of")
        self.config, self.tokens = config, tokens
        chosen = config.choose_search(search, head, beam)
        self.programs = Programs(config, params, search=chosen, dtype=dtype, devices=devices)
        self.batch_seconds = batch_seconds or self._usual_batch_seconds
        self.shortest_seconds = shortest_seconds
        self.blank_penalty = float(blank_penalty)
        self._parameters, self._vad = parameters, vad
        self._speller = Speller(config, tokens, chosen)

    @property
    def _usual_batch_seconds(self) -> float:
        if self._platform != "cpu":
            return BATCH_SECONDS
        return CPU_BATCH_SECONDS if self.config.quantization is None else CPU_INTEGER_BATCH_SECONDS

    @property
    def model(self) -> Model:
        """The Flax module over the parameters, to call it or its parts (features, encoder, heads) by hand."""
        return self.programs.abstract_model.fill(self.programs.params)

    @overload
    def transcribe(
        self,
        sources: Iterable[AudioInput] | AudioInput,
        *,
        sample_rate: float | None = None,
        on_error: Literal["raise"] = "raise",
        progress: ProgressCallback | None = None,
        read_ahead: int | None = None,
        channels: Channels = "mix",
    ) -> Iterator[Transcript]: ...
    @overload
    def transcribe(
        self,
        sources: Iterable[AudioInput] | AudioInput,
        *,
        sample_rate: float | None = None,
        on_error: Literal["yield"],
        progress: ProgressCallback | None = None,
        read_ahead: int | None = None,
        channels: Channels = "mix",
    ) -> Iterator[Transcript | Failure]: ...
    def transcribe(
        self,
        sources: Iterable[AudioInput] | AudioInput,
        *,
        sample_rate: float | None = None,
        on_error: Literal["raise", "yield"] = "raise",
        progress: ProgressCallback | None = None,
        read_ahead: int | None = None,
        channels: Channels = "mix",
    ) -> Iterator[Transcript | Failure]:
        """Transcripts of recordings, one by one in their order: as many as there are inputs, whatever these are.

        Recordings are read and decoded in threads while the device works on those that were read before. An iterable
        may be live, such as a generator that waits for a queue or for the answer to the transcript before: when it
        lets us wait, what has come is transcribed at once. Nothing waits for it when the iterator is closed or
        dropped, nor at the end of the process.

        `sources`: a file (its path, "-" for standard input, its bytes, or an open binary file), an array of samples
            (of numpy, JAX, PyTorch or any other library that numpy or DLPack can read, also of bfloat16; several
            channels lie on the shorter axis), a mapping with `array` and `sampling_rate` as the package `datasets`
            gives it, or any iterable of these, a list for one. An array is always one recording.
        `sample_rate`: of arrays, in Hz; 16,000 by default. Files and mappings state their own.
        `on_error`: "raise" raises the AudioError of a recording that cannot be read; "yield" gives a Failure in the
            recording's place and goes on.
        `progress`: called with (seconds done, seconds read so far) after every batch.
        `read_ahead`: how many inputs may be taken from the iterable beyond the one whose transcript is next. With 0 an
            input is taken, in the caller's thread, after the transcript of the one before is out; by default as many
            as keep the device busy.
        `channels`: which of a recording's channels are heard: "mix", their mean; a number from 1 on; or "each", with
            which a recording gives consecutive transcripts with their `channel`.
        """
        if on_error not in ("raise", "yield"):
            raise ConfigError(f"on_error must be 'raise' or 'yield', not {on_error!r}")
        if read_ahead is not None and (isinstance(read_ahead, bool) or not read_ahead >= 0):
            raise ConfigError(f"read_ahead must be a number of inputs, not {read_ahead!r}")
        inputs = listed(sources)
        group_batches = CPU_GROUP_BATCHES if self._platform == "cpu" else GROUP_BATCHES
        groups = reading.read_ahead(
            inputs,
            sample_rate,
            group_samples=group_batches * self.batch_seconds * SAMPLE_RATE,
            smallest=int(self.shortest_seconds * SAMPLE_RATE),
            most=read_ahead,
            stop_at_failure=on_error == "raise",
            channels=checked_channels(channels),
            piece_samples=int(max(self.batch_seconds, PIECE_SECONDS) * SAMPLE_RATE),
        )
        return self._transcribe(groups, on_error, progress, len(inputs) if isinstance(inputs, (list, tuple)) else None)

    def compile(self, seconds: float | Sequence[float] | None = None, rows: int | None = None) -> None:
        """Compile programs before they are needed; later processes find them in the cache folder.

        A job of such clips waits for no compiler afterwards.

        `seconds`: clips of up to so many seconds; of several numbers: clips of just these; of any length if unset.
        `rows`: clips that a job has at most. If unset there may be any number of them, but no more than MOST_COMPILED
            programs are made, the likeliest.
        """
        for shape in self.expected(seconds, rows)[0]:
            self.programs.compile(*shape)

    def expected(
        self, seconds: float | Sequence[float] | None = None, rows: int | None = None
    ) -> tuple[list[Shape], list[Shape]]:
        """Shapes (rows, samples) that `compile` makes programs of, the likeliest first; and those it leaves out.

        `seconds`: as `compile` takes it.
        `rows`: as `compile` takes it.
        """
        planner = self._planner()
        if rows is not None and (isinstance(rows, bool) or rows < 1):
            raise ConfigError(f"rows must be a number of clips, not {rows!r}")
        shapes = planner.shapes(self._rungs(planner, seconds), rows)
        most = MOST_COMPILED if rows is None else len(shapes)
        return shapes[:most], shapes[most:]

    def clip_seconds(self, samples: int) -> float:
        """The longest clip that programs of so many samples take, in seconds.

        `samples`: the second number of a shape, as `expected` gives it.
        """
        return (samples - sum(self.silence)) / SAMPLE_RATE

    def stream(self) -> Stream:
        """A stream of its own: `feed` it samples as they come, look at its `partial`, and `finish` it.

        Raises ConfigError where the model cannot take a stream. Of many streams at once `streams` is faster.
        """
        return self.streams(1).open()

    def streams(self, slots: int) -> Streams:
        """Room for streams, which one compiled program takes a step of together.

        `slots`: how many streams there may be at a time.

        Raises ConfigError where the model, or its search, cannot take a stream.
        """
        return Streams(self.programs, self._speller, slots=slots, blank_penalty=self.blank_penalty)

    def close(self) -> None:
        """Let go of parameters and programs, after the parameters have been read; nothing can be transcribed then.

        A process should not end while a model is still being read (`load_model(lazy=True)`, and no transcript yet).
        """
        self.programs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transcribe(
        self,
        groups: Generator[list[Item], None, None],
        on_error: str,
        progress: ProgressCallback | None,
        inputs: int | None,
    ) -> Iterator[Transcript | Failure]:
        planner = self._planner()
        done = known = 0.0
        read = 0
        with contextlib.closing(groups):
            for group in groups:
                read += len(group)
                share = min(read / inputs, 1.0) if inputs else None
                waiting: collections.deque[_Hearing | Failure] = collections.deque()
                for cuts, last in self._rounds(group, waiting):
                    yield from self._ready(waiting, on_error)
                    known += sum(len(cut.samples) for _, cut in cuts) / SAMPLE_RATE
                    windows = [Window(number, 0, len(cut.samples)) for number, (_, cut) in enumerate(cuts)]
                    if windows and self._vad == "none":
                        planner.reach(max(window.stop for window in windows))
                    for batch, hypotheses in self._run(planner.plan(windows, share=share if last else None), cuts):
                        self._keep_best(batch, hypotheses, cuts)
                        done += sum(window.stop - window.start for window in batch.windows) / SAMPLE_RATE
                        if progress is not None:
                            progress(done, known)
                        yield from self._ready(waiting, on_error)
                yield from self._ready(waiting, on_error)

    def _rounds(
        self, group: list[Item], waiting: collections.deque[_Hearing | Failure]
    ) -> Iterator[tuple[list[tuple[_Hearing, Cut]], bool]]:
        """What of a group is heard together, and whether it is the last of the group.

        Of a recording that is still being read, which is the group's last one, that is what has been decoded. The
        results to come are added to `waiting`, in their order.
        """
        cuts: list[tuple[_Hearing, Cut]] = []
        for item in group:
            if isinstance(item, Failure):
                waiting.append(item)
            elif isinstance(item, Clip):
                hearing = _Hearing(item.name, item.channel, self._cutter())
                waiting.append(hearing)
                cuts += hearing.push(item.samples)
                cuts += self._finish(hearing)
            else:
                hearings = [_Hearing(item.name, channel, self._cutter()) for channel in item.channels]
                waiting += hearings
                try:
                    for channels in item.pieces:
                        for hearing, samples in zip(hearings, channels, strict=True):
                            cuts += hearing.push(samples)
                        del channels, samples  # while the next ones are decoded, there need not be these
                        yield cuts, False
                        cuts.clear()
                except JaxasrError as error:
                    for _ in hearings:
                        waiting.pop()
                    waiting.append(Failure(item.name, error))
                    continue
                for hearing in hearings:
                    cuts += self._finish(hearing)
        yield cuts, True

    def _cutter(self) -> Cutter:
        """What cuts one recording."""
        longest = int(self.config.audio.longest * SAMPLE_RATE)
        if self._vad == "none":
            return Uncut()
        if self._vad == "energy":
            return QuietCutter(longest, SAMPLE_RATE)
        return SpeechCutter(self._vad.finder(), longest, SAMPLE_RATE)

    def _finish(self, hearing: _Hearing) -> list[tuple[_Hearing, Cut]]:
        """The last cuts of a recording, of which a line tells where it was cut because of its length alone."""
        cuts = hearing.finish()
        if self._vad == "energy" and hearing.cuts > 1:
            logger.warning(
                "%s: %.0f s are longer than this model's %.0f s: cut at quiet points into %d windows",
                hearing.name or "array", hearing.samples / SAMPLE_RATE, self.config.audio.longest, hearing.cuts,
            )  # fmt: skip
        return cuts

    def _ready(self, waiting: collections.deque[_Hearing | Failure], on_error: str) -> Iterator[Transcript | Failure]:
        """Results of the first ones that wait, as far as all of them has been heard."""
        while waiting and (isinstance(waiting[0], Failure) or waiting[0].ready):
            item = waiting.popleft()
            if isinstance(item, _Hearing):
                yield self._transcript(item)
            elif on_error == "raise":
                raise item.error
            else:
                yield item

    @property
    def _platform(self) -> str:
        return str(self.programs.devices[0].platform)

    def _planner(self) -> Planner:
        """For one job: the same one for the same recordings, whatever ran before."""
        silence = sum(self.silence)
        if self._parameters is None:
            self._parameters = parameter_count(self.programs.abstract_model.parameters)
        return Planner(
            ladder(int(self.shortest_seconds * SAMPLE_RATE), int(self.config.audio.longest * SAMPLE_RATE), silence),
            most_samples=self.batch_seconds * SAMPLE_RATE,
            multiple=len(self.programs.devices),
            padding=silence,
            costs=COSTS.get(self._platform, COSTS["gpu"]),
            parameters=self._parameters,
            rate=SAMPLE_RATE,
        )

    def _rungs(self, planner: Planner, seconds: float | Sequence[float] | None) -> list[int]:
        """Rungs of the planner that hold clips of these lengths, as `compile` takes them."""
        if seconds is None:
            return planner.rungs
        try:
            given = [float(each) for each in np.ravel(seconds)]
        except (TypeError, ValueError):
            given = []
        if isinstance(seconds, bool) or not given or not all(0 < each < math.inf for each in given):
            raise ConfigError(f"seconds must be the length of a clip or several, not {seconds!r}")
        longest = int(self.config.audio.longest * SAMPLE_RATE)
        rungs = [planner.rung(min(math.ceil(each * SAMPLE_RATE), longest)) for each in given]
        # Of a clip that is longer than the model takes windows are cut, which may have any length.
        if np.ndim(seconds) == 0 or max(given) * SAMPLE_RATE > longest:
            rungs = [rung for rung in planner.rungs if rung <= max(rungs)]
        return rungs

    @property
    def silence(self) -> tuple[int, int]:
        """Samples of silence before and after every window."""
        audio = self.config.audio
        return round(audio.silence_before * SAMPLE_RATE), round(audio.silence_after * SAMPLE_RATE)

    def _run(self, batches: list[Batch], cuts: list[tuple[_Hearing, Cut]]) -> Iterator[tuple[Batch, Hypotheses]]:
        """Every batch with its hypotheses; the next is prepared, and its program compiled, while the device works.

        The second program is compiled beside the first.
        """
        before, after = self.silence
        samples = [cut.samples for _, cut in cuts]
        running: tuple[Batch, Hypotheses] | None = None
        shapes = [(batch.rows, batch.samples) for batch in batches]
        stop = self.programs.compile_ahead(shape for shape in shapes if shape != shapes[0])
        try:
            for batch in batches:
                waveforms, lengths = assemble(batch, samples, before=before, after=after)
                started = batch, self.programs.run(waveforms, lengths, self.blank_penalty)
                if running is not None:
                    yield running
                running = started
            if running is not None:
                yield running
        finally:
            stop.set()

    def _keep_best(self, batch: Batch, hypotheses: Hypotheses, cuts: list[tuple[_Hearing, Cut]]) -> None:
        """Keep the best hypothesis of each cut of a batch. Raises ModelError if activations overflowed."""
        with usual_settings():
            ids, frames, durations, log_probs, lengths, scores = (each[:, 0] for each in jax.device_get(hypotheses))
        for row, window in enumerate(batch.windows):
            # After an overflow the score is NaN although the tokens are valid ids.
            if not np.isfinite(scores[row]):
                raise ModelError(
                    f"{self.config.name} leaves the range of {self.programs.policy.weights}: "
                    "take float32 or bfloat16 as dtype"
                )
            hearing, cut = cuts[window.clip]
            best = [each[row, : lengths[row]] for each in (ids, frames, durations, log_probs)]
            hearing.spoken[cut.start] = self._speller.spoken(best, cut.start / SAMPLE_RATE)

    def _transcript(self, hearing: _Hearing) -> Transcript:
        parts = [hearing.spoken[start] for start in sorted(hearing.spoken)]
        duration = hearing.samples / SAMPLE_RATE
        return self._speller.transcript(parts, audio=hearing.name, duration=duration, channel=hearing.channel)
