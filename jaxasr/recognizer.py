"""Audio in, transcripts out: reading ahead, batches, compiled programs, and the order restored."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasr import audio as audio_files
from jaxasr.batching import Batch, Window, assemble, cut, plan
from jaxasr.devices import Policy, policy, prepare
from jaxasr.errors import AudioError, ConfigError, JaxasrError, ModelError
from jaxasr.model import ModelConfig, Skeleton
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.text import SPELLINGS
from jaxasr.text.tokens import TokenTable

logger = logging.getLogger("jaxasr")

Source = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray
RATE = audio_files.SAMPLE_RATE
# Sound that is read ahead and sorted into batches at a time, in multiples of a batch's seconds.
GROUP_BATCHES = 4
READERS = 2


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said in one clip.

    `audio`: the file's name, or "" for an array; `duration` (s). `tokens`, `token_ids`, `timestamps` (s, the begin of
    the frame that emitted the token) and `log_probs` (of the token under the search's softmax at temperature 1) run
    side by side.
    """

    audio: str
    duration: float
    text: str
    tokens: list[str]
    token_ids: list[int]
    timestamps: list[float]
    log_probs: list[float]


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input that could not be transcribed, and why."""

    audio: str
    error: JaxasrError


@dataclasses.dataclass
class _Clip:
    """One input on its way: its samples, then the ids, frames and log-probabilities of its windows, by window."""

    name: str
    samples: np.ndarray
    windows: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


class Recognizer:
    """A model ready to transcribe. Thread-safe: calls share compiled programs and nothing else."""

    def __init__(
        self,
        config: ModelConfig,
        params: dict[str, Any] | Future[dict[str, Any]],
        tokens: TokenTable,
        *,
        dtype: str = "float32",
        batch_seconds: float | None = None,
        blank_penalty: float = 0.0,
        search: str | None = None,
        head: str | None = None,
        beam: int | None = None,
        devices: list[jax.Device] | None = None,
    ) -> None:
        """`params`: nested dictionary of arrays as `store.load` gives it, or a future of one: programs are compiled
        while it is being read. `batch_seconds`: sound in one batch. `search`, `head`, `beam`: as
        `ModelConfig.choose_search` takes them. `devices`: the local devices that share each batch, all by default.
        """
        prepare()
        if batch_seconds is not None and not batch_seconds > 0:
            raise ConfigError(f"batch_seconds must be positive, not {batch_seconds}")
        self.config, self.tokens = config, tokens
        self.search = config.choose_search(search, head, beam)
        self._spell = SPELLINGS.make(config.spelling(self.search.head))
        self.policy: Policy = policy(dtype)
        self.blank_penalty = float(blank_penalty)
        self.devices = list(devices) if devices is not None else jax.local_devices()
        self.batch_seconds = batch_seconds or (60.0 if self.devices[0].platform == "cpu" else 1200.0)
        self._before = round(config.audio.silence_before * RATE)
        self._after = round(config.audio.silence_after * RATE)
        self.skeleton = Skeleton(config)
        self._mesh = Mesh(np.array(self.devices), ("batch",))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._rows = NamedSharding(self._mesh, PartitionSpec("batch"))
        self._given, self._lock = params, threading.RLock()
        self.programs: dict[tuple[int, int], Any] = {}

    def transcribe(
        self,
        sources: Iterable[Source] | Source,
        *,
        sample_rate: int | None = None,
        on_error: Literal["raise", "yield"] = "raise",
        progress: Callable[[float, float], None] | None = None,
    ) -> Iterator[Transcript | Failure]:
        """Transcripts of files (paths, bytes, open files) and arrays, one by one in their order.

        `sample_rate` (Hz) is that of arrays, 16,000 by default. An input that cannot be read raises AudioError, or with
        on_error="yield" takes its place as a Failure. `progress` is called with (seconds done, seconds read so far).
        Sound is read and decoded in threads while the device works on what was read before.
        """
        if on_error not in ("raise", "yield"):
            raise ConfigError(f"on_error must be 'raise' or 'yield', not {on_error!r}")
        single = isinstance(sources, (str, bytes, os.PathLike, np.ndarray)) or hasattr(sources, "read")
        return self._transcribe([sources] if single else sources, sample_rate, on_error, progress)  # type: ignore[list-item]

    def run(self, waveforms: np.ndarray, lengths: np.ndarray) -> Hypotheses:
        """The compiled program on one batch: waveforms (B, S) float32 at 16 kHz, silence included, lengths (B,).

        B must be a multiple of the number of devices. The result stays on the device.
        """
        program = self.compile(*waveforms.shape)
        rows = jax.device_put((waveforms, lengths), self._rows)
        return program(self.params, *rows, np.float32(self.blank_penalty))

    def compile(self, rows: int, samples: int) -> Any:
        """The program for batches of this shape: traced and compiled once, then kept in `programs`."""
        with self._lock:
            if (rows, samples) not in self.programs:
                by_row = PartitionSpec("batch")
                mapped = jax.shard_map(
                    self._recognize,
                    mesh=self._mesh,
                    in_specs=(PartitionSpec(), by_row, by_row, PartitionSpec()),
                    out_specs=by_row,
                    check_vma=False,
                )
                lowered = jax.jit(mapped).lower(
                    self.abstract_params(),
                    jax.ShapeDtypeStruct((rows, samples), jnp.float32, sharding=self._rows),
                    jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=self._rows),
                    jax.ShapeDtypeStruct((), jnp.float32, sharding=self._replicated),
                )
                self.programs[rows, samples] = lowered.compile()
            return self.programs[rows, samples]

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """The parameters in the types of the policy, on every device."""
        with self._lock:
            given = self._given.result() if isinstance(self._given, Future) else self._given
            self._given = None
            return jax.device_put(self.policy.cast(given), self._replicated)

    def use(self, params: dict[str, Any]) -> None:
        """Go on with other parameters of the same model; compiled programs stay."""
        self.params = jax.device_put(self.policy.cast(params), self._replicated)

    def abstract_params(self) -> dict[str, Any]:
        """Shapes and types of `params`, known before the parameters are read."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._replicated),
            jax.eval_shape(self.policy.cast, self.skeleton.parameters),
        )

    def _recognize(
        self, params: dict[str, Any], waveforms: jax.Array, lengths: jax.Array, blank_penalty: jax.Array
    ) -> Hypotheses:
        model = self.skeleton.fill(params)
        encoded, encoded_lengths = model.encode(waveforms, lengths, self.policy.activations)
        return model.search(encoded, encoded_lengths, self.search, blank_penalty)

    def _transcribe(
        self,
        sources: Iterable[Source],
        sample_rate: int | None,
        on_error: str,
        progress: Callable[[float, float], None] | None,
    ) -> Iterator[Transcript | Failure]:
        done = known = 0.0
        for group in self._groups(sources, sample_rate):
            clips = [item for item in group if isinstance(item, _Clip)]
            known += sum(len(clip.samples) for clip in clips) / RATE
            for seconds in self._decode(clips):
                done += seconds
                if progress is not None:
                    progress(done, known)
            for item in group:
                if isinstance(item, Failure) and on_error == "raise":
                    raise item.error
                yield item if isinstance(item, Failure) else self._transcript(item)

    def _groups(self, sources: Iterable[Source], sample_rate: int | None) -> Iterator[list[_Clip | Failure]]:
        """Read inputs ahead of their use: while one group is decoded, the next is read."""
        budget = GROUP_BATCHES * self.batch_seconds * RATE
        inputs = iter(sources)
        pending: collections.deque[Future[_Clip | Failure]] = collections.deque()
        with ThreadPoolExecutor(READERS, thread_name_prefix="jaxasr-read") as pool:
            with ThreadPoolExecutor(1, thread_name_prefix="jaxasr-group") as collector:

                def collect() -> list[_Clip | Failure]:
                    group: list[_Clip | Failure] = []
                    size = 0
                    while size < budget:
                        while len(pending) < 2 * READERS and (source := next(inputs, None)) is not None:
                            pending.append(pool.submit(_read, source, sample_rate))
                        if not pending:
                            break
                        item = pending.popleft().result()
                        group.append(item)
                        size += len(item.samples) if isinstance(item, _Clip) else 0
                    return group

                upcoming = collector.submit(collect)
                try:
                    while group := upcoming.result():
                        upcoming = collector.submit(collect)
                        yield group
                finally:
                    for future in pending:
                        future.cancel()

    def _decode(self, clips: list[_Clip]) -> Iterator[float]:
        """Run all windows of `clips` and keep the results in them; yields the seconds of sound that each batch held."""
        longest = int(self.config.audio.longest * RATE)
        windows, numbers = [], {}
        for index, clip in enumerate(clips):
            pieces = cut(clip.samples, longest, RATE) if len(clip.samples) else []
            if len(pieces) > 1:
                logger.warning(
                    "%s: %.0f s are longer than this model's %.0f s: cut at quiet points into %d windows",
                    clip.name or "array", len(clip.samples) / RATE, self.config.audio.longest, len(pieces),
                )  # fmt: skip
            for number, (start, stop) in enumerate(pieces):
                window = Window(index, start, stop)
                windows.append(window)
                numbers[window] = number
        batches = plan(windows, self._before + self._after, RATE, self.batch_seconds, len(self.devices))
        running: collections.deque[tuple[Batch, Hypotheses]] = collections.deque()
        samples = [clip.samples for clip in clips]
        for batch in batches:
            waveforms, ends = assemble(batch, samples, self._before)
            lengths = np.where(ends > 0, ends + self._after, 0).astype(np.int32)
            running.append((batch, self.run(waveforms, lengths)))
            if len(running) > 1:  # one batch is prepared while the device works on the one before
                yield self._keep(*running.popleft(), clips, numbers)
        while running:
            yield self._keep(*running.popleft(), clips, numbers)

    def _keep(self, batch: Batch, hypotheses: Hypotheses, clips: list[_Clip], numbers: dict[Window, int]) -> float:
        # Of the best hypothesis of each row. Its score is no number where a beam met no number, though its tokens are.
        found = (hypotheses.tokens, hypotheses.frames, hypotheses.log_probs, hypotheses.length, hypotheses.score)
        ids, frames, log_probs, lengths, scores = (each[:, 0] for each in jax.device_get(found))
        seconds = 0.0
        for row, window in enumerate(batch.windows):
            count = lengths[row]
            if not np.isfinite(scores[row]):
                raise ModelError(
                    f"{self.config.name} leaves the range of {self.policy.weights}: take --dtype float32 or bfloat16"
                )
            offset = window.start / RATE - self.config.audio.silence_before
            times = np.maximum(frames[row, :count] * self.config.seconds_per_frame + offset, window.start / RATE)
            clips[window.clip].windows[numbers[window]] = (ids[row, :count], times, log_probs[row, :count])
            seconds += (window.stop - window.start) / RATE
        return seconds

    def _transcript(self, clip: _Clip) -> Transcript:
        parts = [clip.windows[number] for number in sorted(clip.windows)]
        ids = [int(i) for part in parts for i in part[0]]
        text, tokens = self._spell([self.tokens[i] for i in ids], self.tokens.byte_coding)
        return Transcript(
            audio=clip.name,
            duration=len(clip.samples) / RATE,
            text=text,
            tokens=tokens,
            token_ids=ids,
            timestamps=[round(float(t), 4) for part in parts for t in part[1]],
            log_probs=[float(p) for part in parts for p in part[2]],
        )


def _read(source: Source, sample_rate: int | None) -> _Clip | Failure:
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
    try:
        return _Clip(str(name), audio_files.load(source, sample_rate))
    except JaxasrError as error:
        return Failure(str(name), error)
    except MemoryError:
        return Failure(str(name), AudioError(f"{name or 'array'}: too long for this machine's memory: cut it up first"))
