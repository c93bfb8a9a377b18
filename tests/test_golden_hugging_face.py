"""Parity with Transformers on the models of tests/data/transformers-tiny."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import soundfile

import jaxasr
from conftest import DATA
from golden_models import END_TO_END, Golden, abstract_model, difference, quick_jit, read_arrays
from jaxasr import store
from jaxasr.convert.formats.safetensors import read_safetensors
from jaxasr.layers.positions import relative_positions

NAMES = ("ctc", "tdt", "rnnt")
PIECES = {"long": slice(None), "short": slice(20000, 25600), "second": slice(8000, 24000)}
# Two float32 front ends, as with NeMo's own features.
FEATURES = 2e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """The model of a name: `ctc` is float32 in one file, `tdt` bfloat16, `rnnt` float16 in shards."""

    @functools.cache
    def load(name: str) -> Golden:
        folder, directory = DATA / "transformers-tiny" / name, tmp_path_factory.mktemp("models") / name
        jaxasr.configure_process()
        jaxasr.convert_checkpoint(folder, directory)
        config, params, tokens = store.load(directory)
        return Golden(name, folder, directory, config, jax.device_put(params), tokens)

    return load


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return np.asarray(soundfile.read(DATA / "espeak_sentence.wav", dtype="float32")[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_module_from_the_audio_on(models: Callable[[str], Golden], recording: np.ndarray, name: str) -> None:
    """Features, the front end, layers and log-probabilities of two pieces in one batch, whose padding is never used."""
    golden = models(name)
    stored, texts = read_arrays(golden.folder / "expected.npz"), golden.json("expected")
    pieces = ("short", "second")
    lengths = np.array([len(recording[PIECES[piece]]) for piece in pieces])
    batch = np.full((2, lengths.max()), np.nan, np.float32)
    for row, piece in enumerate(pieces):
        batch[row, : lengths[row]] = recording[PIECES[piece]]

    @quick_jit
    def program(params: dict[str, Any], waveforms: jax.Array, lengths: jax.Array) -> dict[str, Any]:
        model: Any = abstract_model(golden.config).fill(params)
        frames, counts = model.features(waveforms, lengths)
        encoder = model.encoder
        found = {"features": frames, "subsampled": encoder.subsample(frames, counts)}
        valid = encoder.config.encoded_length(counts)
        x = encoder._scaled(found["subsampled"])
        positions, mask = relative_positions(x.shape[1], 0, encoder.config.dim), encoder.mask(valid, x.shape[1])
        for number, layer in enumerate(encoder.layers):
            x = found[f"layer{number}"] = layer(x, mask, positions, valid)
        if model.ctc is not None:
            found["log_probs"] = model.ctc(x)
        return found | {"counts": counts, "valid": valid}

    ours = program(golden.params, jnp.asarray(batch), jnp.asarray(lengths))
    for row, piece in enumerate(pieces):
        assert int(ours["counts"][row]) == texts[piece]["frames_of_features"]
        assert int(ours["valid"][row]) == texts[piece]["encoded_frames"]
    seen = set()
    for key, expected in stored.items():
        piece, _, module = key.partition("/")
        found = ours[module][pieces.index(piece), : len(expected)]
        if module == "features":
            np.testing.assert_allclose(found, expected, atol=FEATURES)
        else:
            assert difference(found, expected) < END_TO_END, key
        seen.add(module)
    assert seen == {"features", "subsampled", "layer0", "layer1"} | ({"log_probs"} if name == "ctc" else set())


@pytest.mark.parametrize("name", NAMES)
def test_ids_times_and_texts(models: Callable[[str], Golden], recording: np.ndarray, name: str) -> None:
    golden = models(name)
    expected = golden.json("expected")
    recognizer = golden.recognizer(shortest_seconds=5.0)
    sounds = [recording[samples] for samples in PIECES.values()]
    for piece, transcript in zip(PIECES, recognizer.transcribe(sounds, sample_rate=16000), strict=True):
        said = expected[piece]
        assert transcript.token_ids == said["ids"], piece
        np.testing.assert_allclose(transcript.timestamps, np.array(said["frames"]) * 0.08, atol=1e-4)
        assert transcript.text == said["text"]
    if name == "tdt":
        assert 0 in expected["long"]["durations"]


@pytest.mark.parametrize("name", NAMES)
def test_any_ids_are_spelt_as_transformers_decodes_them(models: Callable[[str], Golden], name: str) -> None:
    golden = models(name)
    from jaxasr.text import SPELLINGS

    spelling = SPELLINGS.make(golden.config.text)
    head = next(iter(golden.config.heads.values()))
    for case in golden.json("expected")["spelt"]:
        ids = case["ids"]
        if name == "ctc":  # its `decode` drops repetitions and blanks, as the search does
            ids = [token for number, token in enumerate(ids) if number == 0 or ids[number - 1] != token]
        ids = [token for token in ids if token != head.blank_id]
        assert spelling([golden.tokens[token] for token in ids])[0] == case["text"]


def test_what_is_stored_in_sixteen_bits_is_exact(models: Callable[[str], Golden]) -> None:
    golden = models("tdt")
    theirs = read_safetensors(golden.folder / "model.safetensors")
    ours = store.flatten(golden.params)
    stored = theirs["encoder.layers.1.feed_forward1.linear1.weight"]
    assert stored.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(ours["encoder.layers.1.feed_forward1.in_proj.kernel"], stored.T.astype(np.float32))
    pair = [theirs[f"decoder.lstm.bias_{part}_l1"].astype(np.float32) for part in ("ih", "hh")]
    np.testing.assert_array_equal(ours["transducer.predictor.layers.1.input.bias"], pair[0] + pair[1])
