"""The one corpus, recipe and model of all tests that train, so that they share a compiled step between processes.

What is compiled is a function of the recipe (its steps, data and learning rate left out), the vocabulary's size and the
shape of a batch: a test that changes none of them adds no program.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from jaxasr.configuration import from_mapping
from jaxasr.manifests import read_manifest
from jaxasr.model_config import ModelConfig
from jaxasr.text.encoding import TextEncoder
from jaxasr.text.tokens import TokenTable
from jaxasr.training.data import Corpus, check
from jaxasr.training.loop import Trainer, new_parameters
from jaxasr.training.recipe import Recipe
from jaxasr.training.vocabulary import with_vocabulary

RATE = 16000
TOKENS = TokenTable(("<blk>", "<unk>", "▁", "A", "B"))
TONES = {"A": 400.0, "B": 1800.0}  # Hz
# Nothing that hides a tone: masks over frequencies and loud noise may.
RECIPE_TEXT = """
steps: 20
model:
  name: tones
  encoder: {kind: zipformer, num_layers: [1], downsampling: [2], encoder_dim: [16], feedforward_dim: [16],
    num_heads: [2], query_head_dim: [8], value_head_dim: [4], pos_head_dim: [4], conv_kernel: [7],
    embed_channels: [4, 4, 4]}
  features: {kind: kaldi}
  text: {kind: sherpa_onnx, recognizer: offline_transducer}
  transducer: {vocabulary_size: 5, predictor: {kind: stateless, dim: 16}, joiner_dim: 16}
  ctc: {vocabulary_size: 5}
vocabulary: {kind: characters}
data: {bucket_seconds: [2], batch_seconds: 8}
curriculum: {join_below: 0.6, join_most: 2, gap_seconds: [0.05, 0.2], gentle_steps: [3, 15]}
augmentation: {noise_probability: 0, reverberation_probability: 0, frequency_masks: 0, time_mask_frames: 10}
optimizer: {learning_rate: 0.01, warmup_steps: 5}
dropout: 0.1
checkpoint_steps: 100
"""
RECIPE = from_mapping(Recipe, yaml.safe_load(RECIPE_TEXT), "tests/tones.py")
# What 600 steps on the sound as it is have made of the model; data/make_tones.py stores it.
TRAINED = Path(__file__).parent / "training" / "data" / "tones.npz"


def write_manifest(folder: Path, count: int = 12) -> Path:
    """Short tones, low ones called A and high ones B, and strings of two; the path of their manifest."""
    generator = np.random.default_rng(5)
    rows = ["path\tspeaker\ttext"]
    for index in range(count):
        text = " ".join(generator.choice(["A", "B"], 1 + index % 2))
        parts = []
        for word in text.split():
            time = np.arange(int(0.35 * RATE)) / RATE
            parts += [0.3 * np.sin(2 * np.pi * TONES[word] * time), np.zeros(RATE // 10)]
        soundfile.write(folder / f"{index}.wav", np.concatenate(parts), RATE)
        rows.append(f"{index}.wav\tx\t{text}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.tsv"


def model_config(recipe: Recipe) -> ModelConfig:
    """The recipe's model with the corpus' vocabulary."""
    assert recipe.model is not None
    return with_vocabulary(recipe.model, TOKENS)


def corpus(manifest: Path, recipe: Recipe) -> Corpus:
    """All utterances of the manifest."""
    config = model_config(recipe)
    good, bad = check(read_manifest(manifest), TextEncoder(TOKENS), config, recipe.data, recipe.curriculum)
    assert not bad
    return Corpus(good, recipe.data, recipe.curriculum, recipe.augmentation)


def trainer(manifest: Path, output: Path, recipe: Recipe, parameters: Any = None, **options: Any) -> Trainer:
    """A trainer of the recipe's model, from fresh parameters if none are given."""
    config = model_config(recipe)
    parameters = new_parameters(config, recipe.seed) if parameters is None else parameters
    return Trainer(recipe, config, parameters, TOKENS, corpus(manifest, recipe), output, **options)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other values; `curriculum` and `optimizer` may be mappings of the fields that change."""
    for name in ("curriculum", "optimizer", "augmentation"):
        if isinstance(changes.get(name), dict):
            changes[name] = dataclasses.replace(getattr(recipe, name), **changes[name])
    return dataclasses.replace(recipe, **changes)
