"""The one program of a model's streams: a step of every slot that has one, the others left as they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr.arrays import ceil_div
from jaxasr.devices import usual_settings
from jaxasr.errors import ConfigError
from jaxasr.model_config import Parameters
from jaxasr.pieces import StreamPiece, StreamPlan
from jaxasr.programs import Programs
from jaxasr.search import streaming_search
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import StreamingSearch, choose_rows

if TYPE_CHECKING:
    from jaxasr.model import Model

# Steps for whose tokens a search with several hypotheses has room until these agree on them.
UNSETTLED_STEPS = 16


class Turn(NamedTuple):
    """Which slots take a step, (slots,) bool: those that are `active`, of them the `fresh` ones begin a stream."""

    active: np.ndarray
    fresh: np.ndarray


class Stepping:
    """A model's streams in so many slots; it holds no stream's state.

    `rows`: the slots asked for, and as many more as the devices divide evenly.
    """

    def __init__(self, programs: Programs, plan: StreamPlan, slots: int) -> None:
        """ConfigError where the search cannot take a stream. Compiles the program, if it has not been."""
        self._programs = programs
        self._room = plan.encoded * (1 if programs.search.beam == 1 else UNSETTLED_STEPS)
        self.rows = rows = ceil_div(slots, len(programs.devices)) * len(programs.devices)
        with usual_settings():
            self._state = jax.eval_shape(lambda params: self._begin(params, rows), programs.abstract_params())
        nothing = plan.empty(rows), Turn(*np.zeros((2, rows), bool))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nothing)
        self._run = programs.compile_step(rows, self._advance, (self._state, *shapes))

    def begin(self) -> Any:
        """The state of slots in which no stream has begun."""
        return self._programs.put_rows(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._state))

    def run(
        self, state: Any, piece: StreamPiece, turn: Turn, blank_penalty: float
    ) -> tuple[Any, Hypotheses, Hypotheses]:
        """The state after a step, which takes the place of `state`; what is settled by it, and the best of the rest.

        Hypotheses are arrays of the host, one a slot: (slots, 1, L). Of slots that are not active nothing is settled.
        """
        state, settled, rest = self._run(state, piece, turn, blank_penalty=blank_penalty)
        with usual_settings():
            settled, rest = jax.device_get((settled, rest))
        return state, settled, rest

    def _begin(self, params: Parameters, rows: int) -> Any:
        model = self._programs.abstract_model.fill(params)
        return model.initial_state(rows, self._search(model), self._room, self._programs.policy.activations)

    def _search(self, model: Model, blank_penalty: jax.Array | float = 0.0) -> StreamingSearch[Any]:
        config = self._programs.search
        search = streaming_search(config, model.heads, blank_penalty)
        if search is None:
            name = self._programs.config.name
            raise ConfigError(f"{name}: {self._refusal(model)}")
        return search

    def _refusal(self, model: Model) -> str:
        """Why the search takes no stream, and which one does."""
        config = self._programs.search
        with contextlib.suppress(ConfigError):
            best = self._programs.config.choose_search(config.kind, beam=1)
            if streaming_search(best, model.heads) is not None:
                return f"a {config.kind} search of {config.beam} hypotheses hears the whole recording: leave out beam"
        return f"a {config.kind} search hears the whole recording: take search greedy or beam"

    def _advance(
        self, params: Parameters, state: Any, piece: StreamPiece, turn: Turn, blank_penalty: jax.Array
    ) -> tuple[Any, Hypotheses, Hypotheses]:
        model = self._programs.abstract_model.fill(params)
        search = self._search(model, blank_penalty)
        rows = piece.final.shape[0]  # of this device
        dtype = self._programs.policy.activations
        fresh = model.initial_state(rows, search, self._room, dtype)
        state = jax.tree.map(lambda new, old: choose_rows(jnp.asarray(turn.fresh), new, old), fresh, state)
        stepped, settled, rest = model.step(state, piece, search, dtype)
        state = jax.tree.map(lambda new, old: choose_rows(jnp.asarray(turn.active), new, old), stepped, state)
        settled = settled._replace(length=jnp.where(turn.active[:, None], settled.length, 0))
        return state, settled, Hypotheses(*(leaf[:, :1] for leaf in rest))
