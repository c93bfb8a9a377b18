"""Batches: every utterance once an epoch, whatever is drawn; rows that cannot be trained on are named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tones
from jaxasr.errors import AudioError
from jaxasr.manifests import Piece, Utterance
from jaxasr.text.encoding import TextEncoder
from jaxasr.text.tokens import TokenTable
from jaxasr.training.augmentation import AugmentationConfig
from jaxasr.training.curriculum import CurriculumConfig
from jaxasr.training.data import Corpus, DataConfig, Example, check

TOKENS = TokenTable(("<blk>", "<unk>", "▁A", "▁B"))
MODEL = tones.model_config(tones.RECIPE)
CONFIG = DataConfig(bucket_seconds=(2.0, 4.0), batch_seconds=16.0)
CURRICULUM = CurriculumConfig(join_below=1.0, join_most=4, gap_seconds=(0.05, 0.4))
AUGMENTATION = AugmentationConfig(speed=(0.8, 1.1))


def corpus(examples: list[Example], **curriculum: Any) -> Corpus:
    return Corpus(examples, CONFIG, dataclasses.replace(CURRICULUM, **curriculum), AUGMENTATION)


def example(seconds: float, count: int = 1, speaker: str = "s", number: int = 0) -> Example:
    columns = {"path": f"{number}.wav", "speaker": speaker}
    return Example(Utterance("m.tsv", (Piece(Path("x")),), "A", columns), (2,) * count, seconds)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Utterance]:
    """Twelve clips of noise, 0.3 to 3 s."""
    generator = np.random.default_rng(0)
    found = []
    for index, seconds in enumerate(np.linspace(0.3, 3.0, 12)):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(int(seconds * 16000)), 16000)
        found.append(Utterance("m.tsv", (Piece(path),), "A B", {"path": path.name, "speaker": "s"}))
    return found


@pytest.mark.parametrize("epoch", range(5))
def test_every_utterance_once(epoch: int) -> None:
    generator = np.random.default_rng(1)
    examples = [example(seconds, number=i) for i, seconds in enumerate(generator.uniform(0.2, 4.0, 200))]
    plans = corpus(examples).plan_epoch(epoch, 7)
    counts = Counter(index for plan in plans for item in plan.items for index in item.examples)
    assert counts == Counter(range(200))
    for plan in plans:
        for item in plan.items:
            spoken = sum(examples[index].seconds for index in item.examples)
            assert (spoken + sum(item.gaps)) / item.speed <= plan.seconds
            assert len(item.examples) <= CURRICULUM.join_most


def test_joined_strings_have_room_for_their_tokens() -> None:
    most = CONFIG.labels(4.0)
    examples = [example(0.2, most // 2) for _ in range(50)]
    plans = corpus(examples).plan_epoch(0, 7)
    sizes = [len(item.examples) for plan in plans for item in plan.items]
    assert sum(sizes) == 50 and max(sizes) == 2


def test_only_clips_of_one_speaker_are_joined() -> None:
    examples = [example(0.4, speaker=name) for name in "ab" * 20] + [example(0.4, speaker="") for _ in range(20)]
    for plan in corpus(examples).plan_epoch(0, 7):
        for item in plan.items:
            speakers = {examples[index].utterance.columns["speaker"] for index in item.examples}
            assert len(speakers) == 1 and (speakers != {""} or len(item.examples) == 1)


def test_repeated_words_as_often_as_asked() -> None:
    texts = [str(number % 10) for number in range(500)]
    examples = [example(0.2, number=i) for i in range(500)]
    examples = [
        dataclasses.replace(each, utterance=dataclasses.replace(each.utterance, text=text))
        for each, text in zip(examples, texts, strict=True)
    ]
    for share, low, high in ((0.0, 0.02, 0.2), (0.5, 0.45, 0.65), (1.0, 0.95, 1.0)):
        items = [item for plan in corpus(examples, repeat_share=share).plan_epoch(0, 7) for item in plan.items]
        pairs = [pair for item in items for pair in zip(item.examples, item.examples[1:], strict=False)]
        assert low <= np.mean([texts[a] == texts[b] for a, b in pairs]) <= high
        assert Counter(index for item in items for index in item.examples) == Counter(range(500))


def test_short_things_first() -> None:
    examples = [example(seconds) for seconds in np.linspace(0.2, 4.0, 100)]
    growing = corpus(examples, growth=(1.5, 2.5))
    longest = [max(plan.seconds for plan in growing.plan_epoch(epoch, 7)) for epoch in range(3)]
    assert longest == [2.0, 4.0, 4.0]
    played = [
        max(sum(examples[index].seconds for index in item.examples) / item.speed for item in plan.items)
        for plan in growing.plan_epoch(0, 7)
    ]
    assert max(played) <= 1.5


def test_batches_are_functions_of_the_seed_and_not_of_what_was_read(recordings: list[Utterance]) -> None:
    good, bad = check(recordings, TextEncoder(TOKENS), MODEL, CONFIG, CURRICULUM)
    assert not bad and len(good) == 12
    whole, forgetful = (
        Corpus(good, CONFIG, CURRICULUM, AugmentationConfig(), cache_bytes=size) for size in (1 << 30, 40_000)
    )
    plans = whole.plan_epoch(3, 5)
    first = [whole.batch(plan) for plan in plans]
    for plan, expected in reversed(list(zip(forgetful.plan_epoch(3, 5), first, strict=True))):
        for a, b in zip(forgetful.batch(plan).arrays(), expected.arrays(), strict=True):
            np.testing.assert_array_equal(a, b)
    other = whole.plan_epoch(3, 6)
    assert [plan.items for plan in other] != [plan.items for plan in plans]


def test_babble_is_made_of_the_other_clips(recordings: list[Utterance]) -> None:
    good, _ = check(recordings, TextEncoder(TOKENS), MODEL, CONFIG, CURRICULUM)
    noisy = AugmentationConfig(noise_probability=1.0, noise_snr_db=(0.0, 0.0), babble_share=1.0)
    coloured = dataclasses.replace(noisy, babble_share=0.0)
    corpora = [Corpus(good, CONFIG, CURRICULUM, each) for each in (noisy, coloured)]
    one, other = (corpus.batch(corpus.plan_epoch(0, 5)[0]) for corpus in corpora)
    assert one.plan == other.plan and not np.array_equal(one.waveforms, other.waveforms)


def test_rows_that_cannot_be_trained_on_are_named(recordings: list[Utterance]) -> None:
    by_path = {utterance.columns["path"]: utterance for utterance in recordings}
    changed = {
        "0.wav": ("A B A A A A A A", "too short"),
        "1.wav": ("  ", "text is empty"),
        "2.wav": ("A C", "no 'C"),
        "11.wav": ("A " * 40, "tokens are more than"),
    }
    rows = [dataclasses.replace(by_path[name], text=text) for name, (text, _) in changed.items()]
    missing = dataclasses.replace(recordings[3], pieces=(Piece(Path("absent.wav")),))
    good, bad = check([*rows, missing, recordings[4]], TextEncoder(TOKENS), MODEL, CONFIG, CURRICULUM)
    assert [each.utterance for each in good] == [recordings[4]]
    for (_, reason), wanted in zip(bad, [each for _, each in changed.values()] + ["absent.wav"], strict=True):
        assert wanted in reason and "\n" not in reason


def test_a_clip_must_be_long_enough_at_its_fastest(recordings: list[Utterance]) -> None:
    row = dataclasses.replace(recordings[0], text="A B A B A B A B")  # 0.4 s with gaps: eight frames
    assert len(check([row], TextEncoder(TOKENS), MODEL, CONFIG, CURRICULUM)[0]) == 1
    assert len(check([row], TextEncoder(TOKENS), MODEL, CONFIG, CURRICULUM, fastest=1.3)[0]) == 0


def test_sound_that_is_damaged_inside(recordings: list[Utterance], logged: list[str]) -> None:
    (path,) = (piece.path.with_suffix(".flac") for piece in recordings[-1].pieces)
    samples, _ = soundfile.read(path.with_suffix(".wav"))
    soundfile.write(path, samples, 16000)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 300] = bytes(300)
    path.write_bytes(content)
    damaged = Example(dataclasses.replace(recordings[-1], pieces=(Piece(path),)), (2,), 3.0)
    sound = Example(recordings[-2], (2,), 2.7)
    strict = Corpus([damaged, sound], CONFIG, CURRICULUM, AUGMENTATION)
    (plan,) = strict.plan_epoch(0, 7)
    with pytest.raises(AudioError, match=r"\.flac: .* of its sound are damaged"):
        strict.batch(plan)
    tolerant = Corpus([damaged, sound], CONFIG, CURRICULUM, AUGMENTATION, skip_bad=True)
    row = [item.examples for item in plan.items].index((0,))
    for _ in range(2):
        batch = tolerant.batch(plan)
        assert (batch.lengths[row], batch.label_lengths[row]) == (0, 0)
        assert batch.lengths[1 - row] > 0 and batch.label_lengths[1 - row] == 1
    assert len([line for line in logged if "so that the text" in line]) == 1
