"""Parity with NeMo from the audio on: features, tokens, frames, durations, texts and times of the reference models."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr
from golden_models import Golden, abstract_model, difference, quick_jit, read_arrays
from jaxasr import store
from jaxasr.search import GreedyConfig

NAMES = (
    "citrinet-tiny",
    "conformer-ctc-tiny",
    "conformer-transducer-tiny",
    "fastconformer-tdt-tiny",
    "fastconformer-streaming-tiny",
)
CLIPS = ("digits_a", "espeak_sentence", "noise", "near_silence", "short")
# Two float32 front ends. Near-constant audio is divided by a tiny deviation, which multiplies roundings.
FEATURES, NEAR_SILENCE = 2e-3, 2e-2
# Of the encoder's output, as a share of its largest magnitude: what the features' differences become. The READMEs
# beside the arrays measured 5e-3 on near_silence, 5e-2 with Citrinet's blocks, and 2e-4 elsewhere.
ENCODED, ENCODED_NEAR_SILENCE = 1e-3, {"citrinet-tiny": 5e-2}
SECONDS = {"citrinet-tiny": 0.08, "conformer-ctc-tiny": 0.04, "conformer-transducer-tiny": 0.04}


@pytest.fixture(scope="session")
def nemo(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """The reference model of a name, converted once a session."""

    @functools.cache
    def load(name: str) -> Golden:
        folder, directory = shared / "golden" / name, tmp_path_factory.mktemp("nemo") / name
        jaxasr.configure_process()
        jaxasr.convert_checkpoint(folder / "model.nemo", directory)
        config, params, tokens = store.load(directory)
        return Golden(name, folder, directory, config, jax.device_put(params), tokens)

    return load


@pytest.fixture(scope="session")
def results(
    nemo: Callable[[str], Golden], waveforms: dict[str, np.ndarray]
) -> Callable[[str], tuple[Any, Any, Any, Any, dict[str, Any]]]:
    """Of all clips as one batch: features, their lengths, encoded frames, their lengths, hypotheses by head."""

    @functools.cache
    def run(name: str) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        golden = nemo(name)
        lengths = np.array([len(waveforms[clip]) for clip in CLIPS])
        batch = np.full((len(CLIPS), lengths.max()), np.nan, np.float32)  # padding is never used
        for row, clip in enumerate(CLIPS):
            batch[row, : lengths[row]] = waveforms[clip]

        @quick_jit
        def program(params: dict[str, Any], waveforms: jax.Array, lengths: jax.Array) -> Any:
            model = abstract_model(golden.config).fill(params)
            frames, counts = model.features(waveforms, lengths)
            encoded, encoded_lengths = model.encoder(frames, counts)
            found = {
                head: model.search(encoded, encoded_lengths, GreedyConfig(head=head)) for head in golden.config.heads
            }
            return frames, counts, encoded, encoded_lengths, found

        return program(golden.params, jnp.asarray(batch), jnp.asarray(lengths))

    return run


def theirs(name: str, golden: Golden) -> dict[str, np.ndarray]:
    return read_arrays(golden.folder / "golden.npz")


@pytest.mark.parametrize("name", NAMES)
def test_features(nemo: Any, results: Any, name: str) -> None:
    frames, counts, *_ = results(name)
    stored = theirs(name, nemo(name))
    for row, clip in enumerate(CLIPS):
        count = int(stored[f"{clip}/mel_len"][0])
        assert counts[row] == count
        limit = NEAR_SILENCE if clip == "near_silence" else FEATURES
        expected = stored[f"{clip}/mel"][0].T[:count]
        np.testing.assert_allclose(frames[row, :count], expected, atol=limit, err_msg=clip)
        assert not np.asarray(frames[row, count:]).any()


@pytest.mark.parametrize("name", NAMES)
def test_encoded_frames_from_audio(nemo: Any, results: Any, name: str) -> None:
    _, _, encoded, lengths, _ = results(name)
    stored = theirs(name, nemo(name))
    for row, clip in enumerate(CLIPS):
        count = int(stored[f"{clip}/enc_len"][0])
        assert lengths[row] == count
        limit = ENCODED_NEAR_SILENCE.get(name, 5e-3) if clip == "near_silence" else ENCODED
        assert difference(encoded[row, :count], stored[f"{clip}/enc"][0].T[:count]) < limit, clip


@pytest.mark.parametrize("name", NAMES)
def test_ids_frames_and_durations(nemo: Any, results: Any, name: str) -> None:
    golden = nemo(name)
    *_, found = results(name)
    stored = theirs(name, golden)
    for head, hypotheses in found.items():
        prefix = "ctc" if head == "ctc" else "rnnt"
        for row, clip in enumerate(CLIPS):
            count = int(hypotheses.length[row, 0])
            assert np.asarray(hypotheses.tokens[row, 0, :count]).tolist() == stored[f"{clip}/{prefix}_ids"].tolist()
            assert np.asarray(hypotheses.frames[row, 0, :count]).tolist() == stored[f"{clip}/{prefix}_frames"].tolist()
            if f"{clip}/{prefix}_durations" in stored:
                durations = np.asarray(hypotheses.durations[row, 0, :count])
                assert durations.tolist() == stored[f"{clip}/{prefix}_durations"].tolist()
    assert ("transducer" in found) == any(key.endswith("rnnt_ids") for key in stored)
    assert ("ctc" in found) == any(key.endswith("ctc_ids") for key in stored)


def test_an_array_below_a_second_is_padded_where_that_is_asked_for(nemo: Any, waveforms: dict[str, np.ndarray]) -> None:
    """NeMo's `transcribe` pads arrays, not files: another text, which `shortest` of the features gives."""
    golden = nemo("citrinet-tiny")
    texts = json.loads((golden.folder / "texts.json").read_text("utf-8"))
    features = dataclasses.replace(golden.config.features, shortest=16000)
    recognizer = golden.recognizer(config=dataclasses.replace(golden.config, features=features))
    (transcript,) = recognizer.transcribe(waveforms["short"])
    assert transcript.text == texts["arrays_batch1"]["short"] != texts["files_batch1"]["short"]


@pytest.mark.parametrize("name", NAMES)
def test_transcripts(shared: Path, nemo: Any, name: str) -> None:
    """Texts as `transcribe` prints them, by either head of a hybrid, and the times of the frames."""
    golden = nemo(name)
    stored = theirs(name, golden)
    texts = json.loads((golden.folder / "texts.json").read_text("utf-8"))
    files = [shared / f"golden/audio/{clip}.wav" for clip in CLIPS]
    for head in golden.config.heads:
        expected = texts.get(f"{head}_head", texts)["files_batch1"]
        prefix = "ctc" if head == "ctc" else "rnnt"
        recognizer = golden.recognizer(head=head, shortest_seconds=5.0)
        for clip, transcript in zip(CLIPS, recognizer.transcribe(files), strict=True):
            assert transcript.text == expected[clip], clip
            assert transcript.token_ids == stored[f"{clip}/{prefix}_ids"].tolist()
            times = stored[f"{clip}/{prefix}_frames"] * SECONDS.get(name, 0.08)
            np.testing.assert_allclose(transcript.timestamps, times, atol=1e-4)
            assert len(transcript.tokens) == len(transcript.token_ids)
            durations = stored.get(f"{clip}/{prefix}_durations", np.zeros(0)) * SECONDS.get(name, 0.08)
            np.testing.assert_allclose(transcript.durations, durations, atol=1e-4)
    assert "files_batch1" in texts or {"transducer_head", "ctc_head"} <= texts.keys()


@pytest.mark.parametrize("name", ["citrinet-tiny", "conformer-ctc-tiny", "fastconformer-tdt-tiny"])
def test_times_of_a_ctc_head_as_nemo_has_them(nemo: Any, results: Any, name: str) -> None:
    """A token from the previous token's frame to its own: NeMo's timestamps, under `token_frames: previous`."""
    golden = nemo(name)
    *_, encoded, lengths, _ = results(name)
    texts = json.loads((golden.folder / "texts.json").read_text("utf-8"))
    head = dataclasses.replace(golden.config.ctc, token_frames="previous")
    model = abstract_model(dataclasses.replace(golden.config, ctc=head)).fill(golden.params)
    found = quick_jit(lambda *arrays: model.search(*arrays, GreedyConfig(head="ctc")))(encoded, lengths)
    for row, clip in enumerate(CLIPS):
        expected = texts.get("ctc_head", texts)["timestamps"][clip]["timestamp"]["char"]
        count = int(found.length[row, 0])
        begins, lasting = (np.asarray(each[row, 0]) for each in (found.frames, found.durations))
        assert begins[:count].tolist() == [token["start_offset"] for token in expected], clip
        assert (begins + lasting)[:count].tolist() == [token["end_offset"] for token in expected], clip
        assert not begins[count:].any()
