"""From manifests to batches: which utterances run together, joined, changed and padded, all a function of a seed.

An epoch is planned before any sound is read: every utterance once, short ones joined to strings, each item with its own
seed. So a run that is resumed sees the very batches that it would have seen.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from jaxasr import audio
from jaxasr.errors import AudioError, ConfigError, JaxasrError
from jaxasr.manifests import Utterance, duration, read_audio
from jaxasr.model_config import ModelConfig
from jaxasr.text.encoding import TextEncoder
from jaxasr.training.augmentation import AugmentationConfig, augment
from jaxasr.training.curriculum import CurriculumConfig

RATE = audio.SAMPLE_RATE
SHORTEST = 0.05  # s; what is shorter than that holds no speech
_SLACK = 0.001  # s; what rounding to samples may add

logger = logging.getLogger("jaxasr")


@dataclass(frozen=True)
class DataConfig:
    """The shapes of batches. Times in seconds. ValueError names bad fields.

    `bucket_seconds`: the lengths that batches are padded to, in ascending order; longer utterances are left out.
    `batch_seconds`: sound in a batch, padding included. `labels_per_second`: tokens that a bucket has room for.
    """

    bucket_seconds: tuple[float, ...] = (4.0, 6.0, 8.0, 12.0, 16.0)
    batch_seconds: float = 80.0
    labels_per_second: float = 6.0

    def __post_init__(self) -> None:
        if not self.bucket_seconds or list(self.bucket_seconds) != sorted(set(self.bucket_seconds)):
            raise ValueError("bucket_seconds must ascend")
        if self.bucket_seconds[0] <= 0 or self.batch_seconds < self.bucket_seconds[-1]:
            raise ValueError("bucket_seconds must be positive and no longer than batch_seconds")
        if not np.isfinite([self.batch_seconds, *self.bucket_seconds]).all():
            raise ValueError("bucket_seconds and batch_seconds must be finite")
        if self.labels_per_second <= 0:
            raise ValueError("labels_per_second must be positive")

    def labels(self, seconds: float) -> int:
        """Tokens that a bucket has room for."""
        return int(np.ceil(seconds * self.labels_per_second)) + 4


@dataclass(frozen=True)
class Example:
    """An utterance that can be trained on, with its tokens and its length in seconds."""

    utterance: Utterance
    ids: tuple[int, ...]
    seconds: float

    @property
    def name(self) -> str:
        """The name in messages: the manifest with the utterance's id in it, or with its file."""
        return _name(self.utterance)


@dataclass(frozen=True)
class Item:
    """One row of a batch: the indices of its examples, the gaps around them (s), their speed (a factor), and a seed.

    The seed decides everything else that is random in the row.
    """

    examples: tuple[int, ...]
    gaps: tuple[float, ...]
    speed: float
    seed: int


@dataclass(frozen=True)
class BatchPlan:
    """`rows` rows of an epoch (counted from 0) that run together, padded to `seconds`; the last ones may be empty."""

    epoch: int
    items: tuple[Item, ...]
    seconds: float
    rows: int


@dataclass(frozen=True)
class TrainingBatch:
    """Arrays of a batch: waveforms (B, S), lengths (B,) in samples, labels (B, U), label_lengths (B,)."""

    waveforms: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    label_lengths: np.ndarray
    plan: BatchPlan

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The four arrays, in the order in which a step takes them."""
        return self.waveforms, self.lengths, self.labels, self.label_lengths


class Corpus:
    """Checked utterances, planned to batches epoch by epoch.

    Their sound is kept in memory as 16-bit integers, up to `cache_bytes`. Sound that turns out to be damaged raises
    AudioError; with `skip_bad` its rows stay empty instead, and the logger "jaxasr" names it once.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: DataConfig,
        curriculum: CurriculumConfig,
        augmentation: AugmentationConfig,
        *,
        cache_bytes: int = 2 << 30,
        skip_bad: bool = False,
    ) -> None:
        if not examples:
            raise ConfigError("no utterance is left to train on")
        self.examples = list(examples)
        self.config, self.curriculum, self.augmentation = config, curriculum, augmentation
        self._cache: dict[int, np.ndarray] = {}
        self._room = cache_bytes
        self._skip_bad = skip_bad
        self._reported: set[str] = set()

    def plan_epoch(self, epoch: int, seed: int, multiple: int = 1) -> list[BatchPlan]:
        """The batches of an epoch (counted from 0); their rows are a multiple of `multiple`."""
        generator = np.random.default_rng((seed, epoch))
        longest = self.curriculum.longest(epoch, self.config.bucket_seconds[-1])
        buckets: dict[float, list[Item]] = {}
        for item, seconds, labels in self._items(generator, longest):
            for bucket in self.config.bucket_seconds:
                if seconds <= bucket and labels <= self.config.labels(bucket):
                    buckets.setdefault(bucket, []).append(item)
                    break
        plans = []
        for seconds, items in sorted(buckets.items()):
            rows = max(int(self.config.batch_seconds / seconds) // multiple, 1) * multiple
            order = generator.permutation(len(items))
            for start in range(0, len(items), rows):
                chosen = tuple(items[i] for i in order[start : start + rows])
                plans.append(BatchPlan(epoch, chosen, seconds, rows))
        if not plans:
            raise ConfigError(f"no utterance is as short as the {longest:g} s that epoch {epoch} begins with")
        return [plans[i] for i in generator.permutation(len(plans))]

    def batch(self, plan: BatchPlan) -> TrainingBatch:
        """Read, join and change the sound of a planned batch; rows that are left over have length 0."""
        samples = round(plan.seconds * RATE)
        waveforms = np.zeros((plan.rows, samples), np.float32)
        lengths, label_lengths = np.zeros((plan.rows,), np.int32), np.zeros((plan.rows,), np.int32)
        labels = np.zeros((plan.rows, self.config.labels(plan.seconds)), np.int32)
        augmentation = self.curriculum.augmentation(plan.epoch, self.augmentation)
        for row, item in enumerate(plan.items):
            try:
                sound = self._sound(item, augmentation)[:samples]
            except AudioError as error:
                self._skip(error)
                continue
            ids = [number for index in item.examples for number in self.examples[index].ids]
            waveforms[row, : len(sound)], lengths[row] = sound, len(sound)
            labels[row, : len(ids)], label_lengths[row] = ids, len(ids)
        return TrainingBatch(waveforms, lengths, labels, label_lengths, plan)

    def _items(self, generator: np.random.Generator, longest: float) -> Iterator[tuple[Item, float, int]]:
        """Items of an epoch with their lengths in seconds and tokens."""
        config, curriculum, speeds = self.config, self.curriculum, self.augmentation.speed
        most = config.labels(config.bucket_seconds[-1])
        shorts: dict[tuple[str, str], list[int]] = {}
        groups: list[list[int]] = []
        for index, example in enumerate(self.examples):
            speaker = example.utterance.columns.get("speaker", "")
            if example.seconds < curriculum.join_below and speaker:
                shorts.setdefault((example.utterance.manifest, speaker), []).append(index)
            else:
                groups.append([index])
        for members in shorts.values():
            order = [members[i] for i in generator.permutation(len(members))]
            while order:
                count = int(generator.integers(1, curriculum.join_most + 1))
                group: list[int] = []
                room = longest * speeds[0] - curriculum.gap_seconds[1]
                labels = 0
                while order and len(group) < count:
                    if group and curriculum.repeat_share and generator.random() < curriculum.repeat_share:
                        self._bring_forward(order, self.examples[group[-1]].utterance.text)
                    room -= self.examples[order[-1]].seconds + curriculum.gap_seconds[1]
                    labels += len(self.examples[order[-1]].ids)
                    if group and (room < 0 or labels > most):
                        break
                    group.append(order.pop())
                groups.append(group)
        for group in groups:
            # Drawn whether used or not, so that an item's draws do not depend on the items before it.
            gaps = generator.uniform(*curriculum.gap_seconds, len(group) + 1)
            edges = generator.random() < curriculum.edge_share
            speed, seed = float(generator.uniform(*speeds)), int(generator.integers(1 << 62))
            spoken = sum(self.examples[index].seconds for index in group)
            single = len(group) == 1 and spoken >= curriculum.join_below
            if single and (not edges or (spoken + gaps.sum()) / speed + _SLACK > longest):
                gaps = np.zeros_like(gaps)
            if single and longest == config.bucket_seconds[-1]:
                # Not slower than what the last bucket holds.
                speed = max(speed, spoken / (longest - 2 * _SLACK))
            seconds = (spoken + gaps.sum()) / speed + _SLACK
            labels = sum(len(self.examples[index].ids) for index in group)
            if seconds <= longest:
                yield Item(tuple(group), tuple(map(float, gaps)), speed, seed), float(seconds), labels

    def _bring_forward(self, order: list[int], text: str) -> None:
        """Put the last example of this text, if there is one, at the end of `order`."""
        for place in range(len(order) - 1, -1, -1):
            if self.examples[order[place]].utterance.text == text:
                order.append(order.pop(place))
                return

    def _sound(self, item: Item, augmentation: AugmentationConfig) -> np.ndarray:
        generator = np.random.default_rng(item.seed)
        level = self.curriculum.join_level_db if len(item.examples) > 1 else 0.0
        # Half of the gaps are digital silence, half have the faint noise of a quiet line.
        floor = 10 ** (generator.uniform(-90, -55) / 20) if generator.random() < 0.5 else 0.0

        def gap(seconds: float) -> np.ndarray:
            return (floor * generator.standard_normal(round(seconds * RATE))).astype(np.float32)

        parts = [gap(item.gaps[0])]
        for index, seconds in zip(item.examples, item.gaps[1:], strict=True):
            gain = 10 ** (generator.uniform(-level, level) / 20)
            parts += [gain * self._clip(index), gap(seconds)]
        sound = np.clip(np.concatenate(parts), -1, 1).astype(np.float32)
        augmentation = dataclasses.replace(augmentation, speed=(item.speed, item.speed))
        return augment(sound, augmentation, generator, others=_Clips(self))

    def _skip(self, error: AudioError) -> None:
        if not self._skip_bad:
            raise error
        if str(error) not in self._reported:
            self._reported.add(str(error))
            logger.warning("%s", error)

    def _clip(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index].astype(np.float32) / 32767
        samples = audio.load(*read_audio(self.examples[index].utterance, intact=True))
        # Rounded whether kept or not: what is kept depends on where a run began.
        rounded: np.ndarray = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        if rounded.nbytes <= self._room:
            self._room -= rounded.nbytes
            self._cache[index] = rounded
        return rounded.astype(np.float32) / 32767


class _Clips(Sequence[np.ndarray]):
    """A corpus' sound, of which babble reads only the voices that it draws."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus.examples)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        try:
            return self._corpus._clip(index)
        except AudioError as error:
            self._corpus._skip(error)
            return np.zeros(0, np.float32)


def check(
    utterances: Sequence[Utterance],
    encoder: TextEncoder,
    model: ModelConfig,
    config: DataConfig,
    curriculum: CurriculumConfig,
    fastest: float = 1.0,
) -> tuple[list[Example], list[tuple[Utterance, str]]]:
    """Utterances that can be trained on, and the others with the reason of each, which names file and remedy.

    `encoder` makes tokens of texts. `model` decides how many encoded frames a clip has. `fastest`: the highest speed
    (a factor) at which clips will be played.
    """
    most = config.labels(config.bucket_seconds[-1])
    good: list[Example] = []
    bad: list[tuple[Utterance, str]] = []
    for utterance in utterances:
        try:
            seconds = duration(utterance, intact=True)
        except JaxasrError as error:
            bad.append((utterance, str(error)))
            continue
        name = _name(utterance)
        ids, missing = encoder(utterance.text)
        # Joined or not, a short clip always gets gaps around it.
        padded = seconds + (2 * curriculum.gap_seconds[0] if seconds < curriculum.join_below else 0)
        needed = len(ids) + sum(a == b for a, b in zip(ids, ids[1:], strict=False))
        if not utterance.text.strip():
            bad.append((utterance, f"{name}: the text is empty; write what is said or take the row out"))
        elif missing:
            bad.append((utterance, f"{name}: the vocabulary has no {missing!r}; correct the text or the vocabulary"))
        elif len(ids) > most:
            bad.append((utterance, f"{name}: {len(ids)} tokens are more than {most}; raise data.labels_per_second"))
        elif seconds < SHORTEST or encoded_frames(model, padded / fastest) < needed:
            bad.append(
                (utterance, f"{name}: {seconds:.2f} s are too short for {len(ids)} tokens; check start, samples")
            )
        elif seconds > config.bucket_seconds[-1]:
            longest = config.bucket_seconds[-1]
            bad.append((utterance, f"{name}: {seconds:.1f} s are longer than bucket_seconds' {longest:g} s; cut it up"))
        else:
            good.append(Example(utterance, tuple(ids), seconds))
    return good, bad


def _name(utterance: Utterance) -> str:
    return f"{utterance.manifest}: {utterance.columns.get('utt') or utterance.columns['path']}"


def encoded_frames(model: ModelConfig, seconds: float) -> int:
    """Encoded frames that a model makes of a clip: what must hold the clip's tokens."""
    return model.encoder.encoded_length(model.features.frame_count(int(seconds * model.features.sample_rate)))


Prepared = TypeVar("Prepared")


def prefetch(batches: Iterator[Prepared], ahead: int = 3) -> Iterator[Prepared]:
    """The same batches, up to `ahead` of them made in a thread while the device works; errors are raised here."""
    ready: queue.Queue[Prepared | BaseException | None] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: Prepared | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # belongs to whoever waits for the batch
            put(error)

    thread = threading.Thread(target=work, name="jaxasr-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
