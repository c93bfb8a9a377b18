"""The transducer head: a predictor of one of the kinds in heads/predictors.py, and a joiner.

Source: icefall, egs/librispeech/ASR/zipformer, joiner.py; NVIDIA NeMo, nemo/collections/asr/modules/rnnt.py, RNNTJoint;
Graves, 2012, arXiv 1211.3711. Durations beside the tokens: Xu et al., 2023, arXiv 2304.06795 (TDT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr.heads.configs import PREDICTORS, TransducerConfig
from jaxasr.layers.linear import Linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


class Transducer(nnx.Module):
    """Predictor and joiner. The state is the predictor's own and the projected output of each row.

    A search calls `project` once on all encoded frames, then `initial_state`, `advance` and `join` in its loop.
    """

    def __init__(self, config: TransducerConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.predictor = PREDICTORS.make(config.predictor, config.vocabulary_size, config.blank_id, rngs=rngs)
        self.encoder_proj = Linear(encoder_dim, config.joiner_dim, rngs=rngs)
        self.predictor_proj = Linear(config.predictor.output_dim, config.joiner_dim, rngs=rngs)
        self.output = Linear(config.joiner_dim, config.vocabulary_size + len(config.durations), rngs=rngs)

    @property
    def blank_id(self) -> int:
        """The id of the blank."""
        return self.config.blank_id

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Ids that a search takes for blank."""
        return self.config.silent_ids

    @property
    def durations(self) -> tuple[int, ...]:
        """Frames that a token may span, in the order of the joiner's further outputs."""
        return self.config.durations

    @property
    def max_symbols(self) -> int:
        """Tokens that one encoded frame may emit."""
        return self.config.max_symbols

    @property
    def length_offset(self) -> int:
        """What a beam search adds to a hypothesis' number of tokens when it divides scores by lengths."""
        return self.predictor.length_offset

    def project(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T J"]:
        """encoded (B, T, D) -> (B, T, J), the encoder's projection into the joiner."""
        return self.encoder_proj(encoded)

    def initial_state(self, batch: int) -> tuple[Any, Float[Array, "{batch} J"]]:
        """Nothing said yet: the predictor's state, and its projected output (B, J)."""
        return self._project(self.predictor.start(batch))

    def advance(
        self, state: tuple[Any, Float[Array, "B J"]], tokens: Int[Array, " B"]
    ) -> tuple[Any, Float[Array, "B J"]]:
        """tokens (B,) were said: the state after them."""
        return self._project(self.predictor.step(state[0], tokens))

    def join(self, projected: Float[Array, "B J"], state: tuple[Any, Float[Array, "B J"]]) -> Float[Array, "B V"]:
        """One frame of `project`, (B, J), with each row's state: logits (B, vocabulary + durations) float32."""
        return self.combine(projected, state[1])

    def predict(self, labels: Int[Array, "B U"]) -> Float[Array, "B U+1 J"]:
        """The predictor's projections after none, one, ... all of labels (B, U), for training: (B, U + 1, J)."""
        outputs = self.predictor(labels)
        batch, count, _ = outputs.shape
        return self.predictor_proj(outputs.reshape(batch * count, -1)).reshape(batch, count, -1)

    def combine(
        self, projected: Float[Array, "*#batch J"], predicted: Float[Array, "*#batch J"]
    ) -> Float[Array, "... V"]:
        """The joiner on projections (..., J) of encoder and predictor, which may broadcast: logits (..., V) float32."""
        return self.output(ACTIVATIONS[self.config.activation](projected + predicted)).astype(jnp.float32)

    def _project(self, predicted: tuple[Any, Float[Array, "B P"]]) -> tuple[Any, Float[Array, "B J"]]:
        state, output = predicted
        return state, self.predictor_proj(output)
