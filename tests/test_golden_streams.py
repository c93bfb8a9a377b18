"""Parity of streams with the publishers' own: what is said after each chunk, and in the end."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxasr
from golden_models import CLIPS, Golden, emitted, quick_jit, read_arrays
from jaxasr import store
from jaxasr.recognizer import Recognizer
from jaxasr.search.protocols import choose_rows, is_token
from test_golden_zipformer import check_transcripts

Arrays = dict[str, np.ndarray]

FED = 1600  # samples at a time: sherpa-onnx was given a tenth of a second
ONLINE = ("zipformer-streaming-tiny", "icefall-conformer-streaming-tiny")
CACHE_AWARE = "fastconformer-streaming-tiny"
CACHE_AWARE_CLIPS = ("digits_a", "espeak_sentence", "noise", "near_silence", "short")
GREEDY = "greedy_search"


def check_streams(golden: Golden, recognizer: Recognizer, waveforms: Arrays, run: str) -> None:
    """All clips at once, each in a slot: every partial that sherpa-onnx printed, and every transcript."""
    theirs = golden.json("sherpa_onnx")["runs"][run]
    expected = {  # by the tenths of a second that were fed; a part of one was the clip's last piece
        clip: {round(fed * 10): text for _, fed, text in theirs[clip]["partials"] if math.isclose(fed, round(fed, 1))}
        for clip in CLIPS
    }
    streams = recognizer.streams(len(CLIPS))
    opened = {clip: streams.open() for clip in CLIPS}
    compared = 0
    for start in range(0, max(map(len, waveforms.values())), FED):
        streams.feed([(opened[clip], waveforms[clip][start : start + FED]) for clip in CLIPS])
        for clip in CLIPS:
            text = expected[clip].get(start // FED + 1)
            if text is not None and start + FED < len(waveforms[clip]):  # the last piece brings the end
                assert opened[clip].partial.text == text, (clip, start)
                compared += 1
    assert compared >= 10
    check_transcripts(golden, streams.finish([opened[clip] for clip in CLIPS]), theirs)


@pytest.mark.parametrize("name", ONLINE)
def test_greedy_search(goldens: Callable[[str], Golden], waveforms: Arrays, name: str) -> None:
    """With and without silence at the end, and with a penalty on the blank."""
    golden = goldens(name)
    recognizer = golden.recognizer()
    check_streams(golden, recognizer, waveforms, GREEDY)

    penalised = golden.recognizer(blank_penalty=1.5)
    penalised.programs = recognizer.programs  # the penalty is an argument of the program
    check_streams(golden, penalised, waveforms, f"{GREEDY} blank_penalty=1.5")

    audio = dataclasses.replace(golden.config.audio, silence_after=0.0)
    without = golden.recognizer(config=dataclasses.replace(golden.config, audio=audio))
    check_streams(golden, without, waveforms, f"{GREEDY} without tail padding")


@pytest.mark.parametrize("name", ONLINE)
def test_beam_search(goldens: Callable[[str], Golden], waveforms: Arrays, name: str) -> None:
    golden = goldens(name)
    check_streams(golden, golden.recognizer(beam=4), waveforms, "modified_beam_search max_active_paths=4")


CUTS, ROWS, SLOTS = 204, 34, len(CLIPS)  # rows of a batch of whole utterances; slots as above, for one program
# A decision by less than this may go either way: what two programs make of one sound differs by up to END_TO_END.
TIE = 2e-3
SPOKEN, LAST_WORD = 35400, (37700, 44000)  # samples of digits_a: before its last digit, and within it


def whole_with_ties(golden: Golden, recognizer: Recognizer, utterances: list[np.ndarray]) -> list[tuple[Any, ...]]:
    """Of each utterance as a whole: ids, frames, and the first frame that is decided by less than TIE, if any."""
    before, after = recognizer.silence
    rows, longest = min(len(utterances), ROWS), before + max(map(len, utterances)) + after

    @quick_jit
    def run(params: dict[str, Any], waveforms: jax.Array, lengths: jax.Array) -> Any:
        model = golden.bind(params)
        encoded, counts = model.encode(waveforms, lengths)
        head: Any = model.transducer

        def decide(state: Any, frame: jax.Array) -> tuple[Any, Any]:
            logits = head.join(frame, state)
            best, ids = jax.lax.top_k(logits, 2)
            emit = is_token(ids[:, 0], head)
            advanced = head.advance(state, ids[:, 0])
            state = jax.tree.map(lambda new, old: choose_rows(emit, new, old), advanced, state)
            return state, best[:, 0] - best[:, 1]

        start = head.initial_state(len(waveforms))
        _, margins = jax.lax.scan(decide, start, head.project(encoded).swapaxes(0, 1))
        return model.search(encoded, counts), margins.T, counts

    found: list[tuple[Any, ...]] = []
    for first in range(0, len(utterances), rows):
        group = utterances[first : first + rows]
        waveforms = np.zeros((rows, longest), np.float32)
        for row, utterance in enumerate(group):
            waveforms[row, before : before + len(utterance)] = utterance
        sizes = np.array([len(each) + before + after for each in group] + [longest] * (rows - len(group)), np.int32)
        hypotheses, margins, counts = run(golden.params, waveforms, sizes)
        for row in range(len(group)):
            ids, frames, _ = emitted(hypotheses, row)
            ties = np.flatnonzero(margins[row, : counts[row]] < TIE)
            found.append((ids, frames, int(ties[0]) if len(ties) else None))
    return found


def pieces_of(utterance: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """An utterance in pieces of 1 sample to 10 s, which are 160,000."""
    sizes = np.minimum(10 ** rng.uniform(0, 5.2, len(utterance)), 160000).astype(int)
    ends = np.cumsum(sizes)
    return np.split(utterance, ends[ends < len(utterance)])


@pytest.mark.slow
def test_cut_anywhere_within_the_last_word(goldens: Callable[[str], Golden], waveforms: Arrays) -> None:
    """Streams that end within a word say what the causal model says of the whole, whatever the pieces."""
    golden = goldens(ONLINE[0])
    recognizer = golden.recognizer()
    rng = np.random.default_rng(11)
    short = waveforms["digits_a"]
    utterances = [short[SPOKEN:end] for end in rng.integers(*LAST_WORD, CUTS)]
    long = np.concatenate([waveforms["digits_b"], waveforms["espeak_sentence"], utterances[0]])
    fed = [pieces_of(each, rng) for each in utterances] + [[long[:1], long[1:160001], long[160001:]]]
    streams = recognizer.streams(SLOTS)
    said: list[list[int]] = []
    for first in range(0, len(fed), SLOTS):
        opened = [(streams.open(), pieces) for pieces in fed[first : first + SLOTS]]
        for number in range(max(len(pieces) for _, pieces in opened)):
            streams.feed([(stream, pieces[number]) for stream, pieces in opened if number < len(pieces)])
        said += [each.token_ids for each in streams.finish([stream for stream, _ in opened])]
    whole = [*whole_with_ties(golden, recognizer, utterances), *whole_with_ties(golden, recognizer, [long])]
    decided = 0
    for tokens, (ids, frames, tie) in zip(said, whole, strict=True):
        sure = len(ids) if tie is None else sum(frame < tie for frame in frames)
        assert tokens[:sure] == ids[:sure]
        if tie is None:
            assert tokens == ids
            decided += 1
    assert decided > 0.9 * CUTS
    assert len(set(map(tuple, said))) > 10


@pytest.fixture(scope="module")
def cache_aware(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder, directory = shared / "golden" / CACHE_AWARE, tmp_path_factory.mktemp("nemo") / CACHE_AWARE
    jaxasr.convert_checkpoint(folder / "model.nemo", directory)
    config, params, tokens = store.load(directory)
    return Golden(CACHE_AWARE, folder, directory, config, jax.device_put(params), tokens)


@pytest.mark.parametrize("head", ["transducer", "ctc"])
def test_cache_aware_streams(cache_aware: Golden, waveforms: Arrays, head: str) -> None:
    """After each chunk but the last NeMo's own stream has said the same; in the end its whole utterance has.

    Its stream takes one frame more than its whole utterance does, so that the last chunks differ in the original.
    """
    golden, prefix = cache_aware, "ctc" if head == "ctc" else "rnnt"
    stored = read_arrays(golden.folder / "golden.npz")
    texts = json.loads((golden.folder / "texts.json").read_text("utf-8"))["stream"]
    recognizer = golden.recognizer(head=head)
    assert golden.config.encoder.context == (20, 3)
    compared = 0
    streams = recognizer.streams(1)
    for clip in CACHE_AWARE_CLIPS:
        said: list[str] = []
        stream = streams.open()
        for start in range(0, len(waveforms[clip]), 320):
            before = stream._steps
            stream.feed(waveforms[clip][start : start + 320])
            assert stream._steps - before in (0, 1)
            if stream._steps > before:
                said.append(stream.partial.text)
        transcript = stream.finish()
        assert transcript.token_ids == stored[f"{clip}/{prefix}_ids"].tolist(), clip
        np.testing.assert_allclose(transcript.timestamps, stored[f"{clip}/{prefix}_frames"] * 0.08, atol=1e-4)
        theirs: list[Any] = texts.get(f"ctx20_3/{clip}/{prefix}", {"steps": []})["steps"]
        for ours, step in zip(said, theirs[:-1], strict=False):
            assert ours == step["text_so_far"], clip
            compared += 1
    assert compared > 10
