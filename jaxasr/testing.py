"""A small model for tests of programs that use jaxasr: it loads in a second and runs through a large model's code.

Its weights are random, so that what it hears means nothing; but it is a whole recogniser with a transducer and a CTC
head, made like any other. Two processors may round differently: a test should not compare its text with a stored one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxasr import store
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.recognizer import Recognizer
from jaxasr.text.tokens import TokenTable

_TOKENS = TokenTable(("<blk>", "<unk>", "▁A", "▁B", "C", "D", "E", "F"))


def tiny_config() -> ModelConfig:
    """The configuration of the small model, about 8,000 parameters."""
    return store.read_config(Path(__file__).with_suffix(".yaml"))


def tiny_recognizer(
    *,
    seed: int = 0,
    search: str | None = None,
    head: str | None = None,
    beam: int | None = None,
    dtype: str = "float32",
    batch_seconds: float | None = None,
    blank_penalty: float = 0.0,
    devices: Sequence[jax.Device] | None = None,
) -> Recognizer:
    """A recogniser of the small model.

    `seed`: of the random weights; equal seeds give equal weights.
    `search`, `head`, `beam`, `dtype`, `batch_seconds`, `blank_penalty`, `devices`: as `Recognizer` takes them.
    """
    config = tiny_config()
    return Recognizer(
        config,
        random_parameters(AbstractModel(config).parameters, seed),
        _TOKENS,
        search=search,
        head=head,
        beam=beam,
        dtype=dtype,
        batch_seconds=batch_seconds,
        blank_penalty=blank_penalty,
        devices=devices,
    )


def tiny_model_directory(path: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Write the small model as a model directory that `load_model` and the command line take, and return its path.

    `path`: the directory to make; it must not exist yet, else ModelError.
    `seed`: of the random weights; equal seeds give equal weights.
    """
    config = tiny_config()
    card = store.ModelCard(
        config.name, (), ("random weights, for tests",), "jaxasr.testing", "Apache-2.0", trained=True
    )
    store.save(path, config, random_parameters(AbstractModel(config).parameters, seed), _TOKENS, card)
    return Path(path)


def random_parameters(shapes: Parameters, seed: int = 0) -> Parameters:
    """Normal float32 numbers for a tree of shapes, biases included.

    Kernels get a standard deviation of one over the root of what is summed, so that activations keep their size through
    the layers; all else gets 0.3.
    """
    generator = np.random.default_rng(seed)

    def numbers(leaf: Any) -> np.ndarray:
        fan_in = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1
        scale: float = fan_in**-0.5 if fan_in > 1 else 0.3
        normal: np.ndarray = generator.standard_normal(leaf.shape)
        return (normal * scale).astype(np.float32)

    filled: Parameters = jax.tree.map(numbers, shapes)
    return filled
