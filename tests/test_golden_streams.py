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
from golden_models import CLIPS, Golden, read_arrays
from jaxasr import store
from jaxasr.recognizer import Recognizer
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
