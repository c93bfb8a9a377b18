"""A whole recogniser as one Flax module: features, encoder, heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.encoders import ENCODERS
from jaxasr.features import FEATURES
from jaxasr.heads.ctc import CTC
from jaxasr.heads.transducer import Transducer
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.quant.tree import abstract_tree
from jaxasr.search import SEARCHES, SearchConfig
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.search.protocols import search_whole


class Model(nnx.Module):
    """Waveforms (B, S) at 16 kHz to Hypotheses; every part can also be called by itself."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.features = FEATURES.make(config.features, rngs=rngs)
        self.encoder = ENCODERS.make(config.encoder, rngs=rngs)
        width = config.encoder.output_dim
        self.transducer = Transducer(config.transducer, width, rngs=rngs) if config.transducer else None
        self.ctc = CTC(config.ctc, width, rngs=rngs) if config.ctc else None

    @property
    def heads(self) -> dict[str, Any]:
        """The head modules by their role, in the order of `ModelConfig.heads`."""
        return {role: getattr(self, role) for role in self.config.heads}

    def encode(
        self, waveforms: jax.Array, lengths: jax.Array, dtype: DTypeLike = jnp.float32
    ) -> tuple[jax.Array, jax.Array]:
        """waveforms (B, S) float32, lengths (B,) in samples -> encoded (B, T, D), lengths (B,) in frames to decode.

        `dtype` is the type of the activations inside the encoder.
        """
        frames, frame_lengths = self.features(waveforms, lengths)
        return self.encoder(frames.astype(dtype), frame_lengths)

    def search(
        self,
        encoded: jax.Array,
        lengths: jax.Array,
        search: SearchConfig | None = None,
        blank_penalty: jax.Array | float = 0.0,
    ) -> Hypotheses:
        """encoded (B, T, D), lengths (B,) -> Hypotheses of a search, the configuration's own by default.

        `blank_penalty` is taken off the blank's logit; in a joint search off the transducer's.
        """
        config = search or self.config.search
        return search_whole(SEARCHES.make(config, self.heads, blank_penalty), encoded, lengths)


class AbstractModel:
    """A model's structure without numbers: made once, then filled inside a traced function at no cost per call."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._graph, self._state = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=_AnyKey())))
        self.floats: dict[str, Any] = _named(nnx.to_pure_dict(self._state))
        """Shapes and types of every parameter before any is quantized, nested by name."""
        self.parameters: dict[str, Any] = abstract_tree(config.quantization, self.floats)
        """Shapes and types of every parameter, nested by name as `fill` takes them: quantized arrays of shapes too."""

    def fill(self, parameters: Parameters) -> Model:
        """The model over nested `parameters`, to call it or parts of it."""
        state = jax.tree.map(lambda leaf: leaf, self._state)
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(parameters))
        return nnx.merge(self._graph, state)


def named_parameters(model: Model) -> Parameters:
    """A model's parameters, nested by name as a model directory stores them and `AbstractModel.fill` takes them."""
    return _named(nnx.to_pure_dict(nnx.state(model)))


class _AnyKey(nnx.Rngs):
    """One key for all, where only shapes matter: counting keys took four fifths of the time of an abstract model."""

    def __init__(self) -> None:
        super().__init__()

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _named(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Module lists count their members with integers; paths and files hold names only."""
    return {str(key): _named(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
