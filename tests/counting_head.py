"""A transducer head for tests of searches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, BLANK = 9, 2


class CountingHead:
    """Logits depend on the frame, the last token and the number of tokens; the state has leaves of all ranks.

    A search must carry each leaf by rows, whatever its shape: predictors differ in what they remember.
    """

    blank_id = BLANK
    length_offset = 2

    def __init__(
        self, seed: int, silent_ids: tuple[int, ...] = (), durations: tuple[int, ...] = (), max_symbols: int = 1
    ) -> None:
        self.silent_ids, self.durations, self.max_symbols = silent_ids, durations, max_symbols
        rng = np.random.default_rng(seed)
        self.by_token = rng.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)
        self.by_count = rng.standard_normal((120, VOCABULARY)).astype(np.float32)

    def project(self, encoded: jax.Array) -> jax.Array:
        return 2 * encoded

    def initial_state(self, batch: int) -> Any:
        return {
            "last": jnp.full((batch,), BLANK, jnp.int32),
            "count": jnp.zeros((batch, 1), jnp.int32),
            "cells": jnp.zeros((batch, 3, 2, VOCABULARY), jnp.float32),
        }

    def advance(self, state: Any, tokens: jax.Array) -> Any:
        return {
            "last": tokens,
            "count": state["count"] + 1,
            "cells": state["cells"] + jnp.asarray(self.by_token)[tokens][:, None, None, :] / 6,
        }

    def join(self, projected: jax.Array, state: Any) -> jax.Array:
        counted = jnp.asarray(self.by_count)[state["count"][:, 0]]
        of_tokens = jnp.asarray(self.by_token)[state["last"]] + counted + state["cells"].sum(axis=(1, 2))
        return projected + jnp.pad(of_tokens, ((0, 0), (0, len(self.durations))))


class LogProbs:
    """A CTC head whose encoded frames are log-probabilities already."""

    vocabulary_size = VOCABULARY
    token_frames = "own"

    def __init__(self, blank_id: int = BLANK) -> None:
        self.blank_id = blank_id

    def __call__(self, encoded: jax.Array) -> jax.Array:
        return jnp.asarray(encoded)
