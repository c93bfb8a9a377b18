"""Parity of the Paraformer that lies in the repository with FunASR: what a checkout proves by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxasr
from conftest import DATA
from golden_models import abstract_model, quick_jit, read_arrays
from jaxasr import audio, store
from test_golden_paraformer import FBANK, encoder_trace, head_trace, limit, off, padded, valid_part

CLIP = DATA / "espeak_sentence.wav"
TEXT = "ick ick一thver小's he lo to ver"  # by FunASR's AutoModel.generate
# What FunASR has stored of layers that it counts from 0 in each of its three stacks.
COMPARED = {"feats", "enc_block0", "enc_block3", "enc_out", "alphas", "token_num", "acoustic_embeds"}
COMPARED |= {"dec_decoders_0", "dec_decoders2_1", "logits"}


def test_every_layer_on_stored_frames(bundled_paraformer: Path) -> None:
    """Features from the sound; from the stored ones all else, beside padding that must have no effect."""
    config, params, _ = store.load(bundled_paraformer)
    expected = read_arrays(DATA / "paraformer-tiny" / "expected.npz")
    frames, lengths = padded([expected["feats"]], len(expected["feats"]) + 3)
    encoded, _ = padded([expected["enc_out"]], frames.shape[1])
    samples = audio.load(CLIP)

    @quick_jit
    def run(params: dict[str, Any], frames: jax.Array, encoded: jax.Array, lengths: jax.Array) -> Any:
        model = abstract_model(config).fill(params)
        computed, counts = model.features(samples[None], jnp.array([len(samples)]))
        seen = {"feats": computed} | encoder_trace(model.encoder, frames, lengths)
        return seen | head_trace(model.parallel, encoded, lengths), counts

    seen, counts = run(params, frames, encoded, lengths)
    assert counts.tolist() == lengths.tolist()
    tokens = len(expected["ids"])
    for name in COMPARED:
        ours = valid_part(name, seen[name][0], lengths[0], tokens)
        # Features are made of sound, whose filterbank differs in bins near the floor.
        assert off(ours, expected[name]) <= (FBANK if name == "feats" else limit(name)), name
    assert seen["logits"][0, :tokens].argmax(-1).tolist() == expected["ids"].tolist()


def test_its_ids_and_its_text(bundled_paraformer: Path) -> None:
    ids = read_arrays(DATA / "paraformer-tiny" / "expected.npz")["ids"]
    assert not np.isin(ids, (0, 1, 2)).any()
    with jaxasr.load_model(bundled_paraformer) as recognizer:
        (transcript,) = recognizer.transcribe([CLIP])
    assert transcript.token_ids == ids.tolist() and transcript.text == TEXT
