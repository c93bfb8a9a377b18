"""Parity of streaming Paraformers with FunASR's loop: every step of every stored run, from sound to tokens and caches.

The runs of one window are the rows of one batch, whatever pieces they were fed in: rows that have ended, and whose
state is of no use, go on beside the others.
"""

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
from golden_models import abstract_model, quick_jit, read_arrays
from jaxasr import audio, store
from jaxasr.layers.sliding import Sliding
from jaxasr.model import Model
from jaxasr.model_config import ModelConfig
from jaxasr.text.funasr import FunasrConfig, FunasrSpelling
from jaxasr.text.tokens import TokenTable

NAME = "paraformer-online-tiny"
# The limits of the reference data's README, absolute, on features that differ by up to 1e-3 in bins near the floor.
ENCODER, WEIGHTS, VECTORS, LOGITS, CACHES = 1e-4, 1e-5, 1e-4, 5e-4, 1e-4
