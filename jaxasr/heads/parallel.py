"""The parallel head: a predictor that counts the tokens, and a decoder that says all of them at once.

Gao et al., 2022, arXiv 2206.08317 (Paraformer), as FunASR publishes it (models/paraformer/decoder.py). Every token sees
its neighbours' vectors on both sides and all encoded frames. A batch gives what its single utterances give. Of a stream
a token sees those before it, and the encoded frames of its window and of some before (forward_chunk there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxasr.arrays import length_mask, zero_beyond
from jaxasr.heads.cif import CIF, Carried, Fired
from jaxasr.heads.parallel_config import ParallelConfig
from jaxasr.heads.publisher_times import Steps, steps_exchanged
from jaxasr.heads.running_sums import fire_places
from jaxasr.layers.attention import attend, extend_cache
from jaxasr.layers.linear import Linear
from jaxasr.layers.memory import Memory
from jaxasr.layers.norms import LayerNorm
from jaxasr.layers.repeated import run_layer, run_step
from jaxasr.quant.ranges import ranges_over

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

EPSILON = 1e-12  # of all norms


class ParallelState(NamedTuple):
    """What a stream has left in the head.

    `carried`: the open token. `first` (B,): the frame of the stream with which the next window begins, negative where
    that does not exist. Of the decoder, `begun` (B,) where a token was decoded: `history` (B, layers, kernel - 1, D),
    inputs of the memories; `keys`, `values` (B, layers, N, D) of encoded frames, the last `cached` (B,) being there.
    """

    carried: Carried
    first: Int[Array, " B"]
    begun: Bool[Array, " B"]
    history: Float[Array, "B layers K D"]
    keys: Float[Array, "B layers N D"]
    values: Float[Array, "B layers N D"]
    cached: Int[Array, " B"]


class Parallel(nnx.Module):
    """Encoded frames to tokens: `fire`, then `decode`.

    `embedding` (V, D) is the training's: its sampler puts the vectors of true tokens among those that were found.
    """

    def __init__(self, config: ParallelConfig, encoder_dim: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.encoder_dim = config, encoder_dim
        self.predictor = CIF(config.predictor, encoder_dim, rngs=rngs)
        size = (config.vocabulary_size, encoder_dim)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), size, jnp.float32) * 0.02)
        self.layers = nnx.List([Layer(config, encoder_dim, rngs=rngs) for _ in range(config.num_layers)])
        self.memory_layers = nnx.List(
            [MemoryLayer(config, encoder_dim, 0, rngs=rngs) for _ in range(config.memory_layers)]
        )
        self.final_layers = nnx.List(
            [NormedFeedForward(config, encoder_dim, rngs=rngs) for _ in range(config.final_layers)]
        )
        self.norm = LayerNorm(encoder_dim, EPSILON, rngs=rngs)
        self.output = Linear(encoder_dim, config.vocabulary_size, rngs=rngs)

    @property
    def blank_id(self) -> int:
        """The id of the blank, which is no token."""
        return self.config.blank_id

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Further ids that are no tokens."""
        return self.config.silent_ids

    def fire(self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Fired:
        """The tokens' vectors, not yet decoded: encoded (B, T, D), lengths (B,) -> at most T tokens a row.

        `frames` are the second head's, where there is one, and at most the last of the row; `steps` place the tokens
        where times are the publisher's.
        """
        config, rows = self.config, encoded.shape[1]
        if config.padding == "isolated":
            encoded = zero_beyond(encoded, lengths)
        last = jnp.maximum(lengths - 1, 0)[:, None]
        if config.chunks is not None:
            encoded = jnp.where(config.chunks.inside(rows)[:, None], encoded, 0)
            fired = self.predictor(encoded, lengths, config.chunks.new(rows))
            return fired._replace(frames=config.chunks.frame(jnp.minimum(fired.frames, last)))
        fired = self.predictor(encoded, lengths)
        frames, steps = fired.frames, steps_exchanged(fired.weights, fired.running, lengths)
        if config.predictor.peaks is not None:
            peaks, upsampling = self.predictor.peaks(encoded, lengths, fired.counts), config.predictor.peaks.upsampling
            frames = fire_places(peaks.running, rows) // upsampling
            steps = Steps(peaks.weights, peaks.running, lengths * upsampling)
        if config.times == "publisher":
            return fired._replace(steps=steps)
        return fired._replace(frames=jnp.minimum(frames, last))

    def fire_known(
        self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], counts: Int[Array, " B"], most: int
    ) -> tuple[Fired, Float[Array, " B"]]:
        """The vectors of `counts` (B,) tokens, at most `most`, for training; and how many the predictor counts (B,).

        Of whole utterances only: ValueError where frames come in chunks.
        """
        if self.config.chunks is not None:
            raise ValueError("a parallel head is trained on whole utterances: leave out chunks")
        if self.config.padding == "isolated":
            encoded = zero_beyond(encoded, lengths)
        return self.predictor.known(encoded, lengths, counts, most)

    def decode(self, fired: Fired, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B L V"]:
        """Logits (B, L, V) float32 of the tokens that `fire` found, by all that was encoded."""
        x = fired.vectors.astype(encoded.dtype)
        mask, sees = self.masks(fired, lengths, encoded.shape[1])
        encoded = zero_beyond(encoded, lengths)  # no token sees it, and zeros widen no range
        for layer in self.layers:
            x = run_layer(layer, x, mask, encoded, sees)
        for memory_layer in self.memory_layers:
            x = run_layer(memory_layer, x, mask)
        return self._logits(x, mask)

    def masks(
        self, fired: Fired, lengths: Int[Array, " B"], rows: int
    ) -> tuple[Bool[Array, "B L"], Bool[Array, "B _ T"]]:
        """Which positions are tokens (B, L), and which encoded rows each of them sees (B, 1 or L, T)."""
        size = fired.vectors.shape[1]
        sees = length_mask(lengths, rows)[:, None]
        if self.config.chunks is not None:
            sees = sees & self.config.chunks.decoder_mask(fire_places(fired.running, size), rows)
        return length_mask(fired.counts, size), sees

    def initial_state(self, batch: int, dtype: DTypeLike = jnp.float32) -> ParallelState:
        """The state before the first window of a stream."""
        config, window = self.config, self.config.sliding
        cache = (batch, config.num_layers, window.decoder_cache, self.encoder_dim)
        layers = config.num_layers + len(self._streamed_memory_layers())
        return ParallelState(
            carried=self.predictor.initial_state(batch),
            first=jnp.full((batch,), -window.kept, jnp.int32),
            begun=jnp.zeros((batch,), bool),
            history=jnp.zeros((batch, layers, config.kernel - 1, self.encoder_dim), dtype),
            keys=jnp.zeros(cache, dtype),
            values=jnp.zeros(cache, dtype),
            cached=jnp.zeros((batch,), jnp.int32),
        )

    def fire_step(
        self, state: ParallelState, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> tuple[ParallelState, Fired]:
        """The tokens of one window, not yet decoded: encoded (B, window.size, D), lengths (B,), final (B,).

        `frames` count from the beginning of the stream.
        """
        window = self.config.sliding
        places = jnp.arange(encoded.shape[1])
        counted = (places >= window.past) & ((places < window.past + window.current) | final[:, None])
        counted &= length_mask(lengths, encoded.shape[1])
        carried, fired = self.predictor.step(state.carried, encoded, lengths, counted, final, window.most_tokens)
        last = jnp.maximum(lengths - 1, 0)[:, None]
        frames = jnp.maximum(state.first[:, None] + jnp.minimum(fired.frames, last), 0)
        return state._replace(carried=carried, first=state.first + window.current), fired._replace(frames=frames)

    def decode_step(
        self, state: ParallelState, fired: Fired, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> tuple[ParallelState, Float[Array, "B L V"]]:
        """Logits (B, L, V) float32 of the tokens that `fire_step` found in the window.

        The decoder's state of a row without a token stays as it is: FunASR does not run the decoder then.
        """
        window, x = self.config.sliding, fired.vectors.astype(encoded.dtype)
        filled = jnp.arange(window.decoder_cache) >= window.decoder_cache - state.cached[:, None]
        sees = jnp.concatenate([filled, length_mask(lengths, encoded.shape[1])], axis=1)[:, None]
        histories, keys, values = list[jax.Array](), list[jax.Array](), list[jax.Array]()
        for index, layer in enumerate(self.layers):
            caches = state.history[:, index], state.keys[:, index], state.values[:, index]
            x, *caches = run_step(layer, x, state.begun, fired.counts, encoded, sees, *caches)
            for made, cache in zip((histories, keys, values), caches, strict=True):
                made.append(cache)
        for index, memory_layer in enumerate(self._streamed_memory_layers(), start=len(self.layers)):
            x, history = run_step(memory_layer, x, state.begun, fired.counts, state.history[:, index])
            histories.append(history)
        said = fired.counts > 0

        def where_said(made: list[jax.Array], old: jax.Array) -> jax.Array:
            return jnp.where(said[:, None, None, None], jnp.stack(made, axis=1), old)

        cached = jnp.minimum(state.cached + lengths, window.decoder_cache)
        state = state._replace(
            begun=state.begun | said,
            history=where_said(histories, state.history),
            keys=where_said(keys, state.keys),
            values=where_said(values, state.values),
            cached=jnp.where(said, cached, state.cached),
        )
        return state, self._logits(x, length_mask(fired.counts, x.shape[1]))

    def _logits(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L V"]:
        """The last layers."""
        for final_layer in self.final_layers:
            x = run_layer(final_layer, x, mask)
        with ranges_over(mask):
            return self.output(self.norm(x)).astype(jnp.float32)

    def _streamed_memory_layers(self) -> list[MemoryLayer]:
        """FunASR leaves out one such layer alone where it decodes streams."""
        return [] if len(self.memory_layers) == 1 else list(self.memory_layers)


class NormedFeedForward(nnx.Module):
    """(B, L, D), mask (B, L) -> (B, L, D): a norm, then a feed-forward with a norm over its hidden units.

    Without a residual.
    """

    def __init__(self, config: ParallelConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(dim, EPSILON, rngs=rngs)
        self.in_proj = Linear(dim, config.feedforward_dim, rngs=rngs)
        self.hidden_norm = LayerNorm(config.feedforward_dim, EPSILON, rngs=rngs)
        self.out_proj = Linear(config.feedforward_dim, dim, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        with ranges_over(mask):
            return self.out_proj(self.hidden_norm(jax.nn.relu(self.in_proj(self.norm(x)))))


class MemoryLayer(nnx.Module):
    """A feed-forward, then a memory over neighbouring tokens; the memory's output alone is added to the input."""

    def __init__(self, config: ParallelConfig, dim: int, shift: int, *, rngs: nnx.Rngs) -> None:
        self.feed_forward = NormedFeedForward(config, dim, rngs=rngs)
        self.norm_memory = LayerNorm(dim, EPSILON, rngs=rngs)
        self.memory = Memory(dim, config.kernel, shift, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        return x + self.memory(self.norm_memory(self.feed_forward(x, mask)), mask)

    def step(
        self,
        x: Float[Array, "B L D"],
        begun: Bool[Array, " B"],
        counts: Int[Array, " B"],
        history: Float[Array, "B K D"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B K D"]]:
        """The next tokens of a stream, counts (B,) of them, after those of the history."""
        changed = self.norm_memory(self.feed_forward(x, length_mask(counts, x.shape[1])))
        history, remembered = self.memory.step(history, begun, changed, counts)
        return x + remembered, history


class Layer(nnx.Module):
    """A memory layer, then attention to the encoded frames."""

    def __init__(self, config: ParallelConfig, dim: int, *, rngs: nnx.Rngs) -> None:
        self.neighbours = MemoryLayer(config, dim, config.shift, rngs=rngs)
        self.norm_attention = LayerNorm(dim, EPSILON, rngs=rngs)
        self.attention = CrossAttention(dim, config.num_heads, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        encoded: Float[Array, "B T D"],
        sees: Bool[Array, "#B #L T"],
    ) -> Float[Array, "B L D"]:
        x = self.neighbours(x, mask)
        return x + self.attention(self.norm_attention(x), mask, encoded, sees)

    def step(
        self,
        x: Float[Array, "B L D"],
        begun: Bool[Array, " B"],
        counts: Int[Array, " B"],
        encoded: Float[Array, "B T D"],
        sees: Bool[Array, "B 1 all"],
        history: Float[Array, "B K D"],
        keys: Float[Array, "B N D"],
        values: Float[Array, "B N D"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B K D"], Float[Array, "B N D"], Float[Array, "B N D"]]:
        """The next tokens of a stream, counts (B,) of them -> (B, L, D), and the caches after them."""
        x, history = self.neighbours.step(x, begun, counts, history)
        attended, keys, values = self.attention.step(self.norm_attention(x), encoded, sees, keys, values)
        return x + attended, history, keys, values


class CrossAttention(nnx.Module):
    """(B, L, D), of which mask (B, L) exist, sees encoded (B, T, D) by a mask (B, 1 or L, T) -> (B, L, D)."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = Linear(dim, dim, rngs=rngs)
        self.key_value = Linear(dim, 2 * dim, rngs=rngs)
        self.out = Linear(dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        encoded: Float[Array, "B T D"],
        sees: Bool[Array, "#B #L T"],
    ) -> Float[Array, "B L D"]:
        key, value = jnp.split(self.key_value(encoded), 2, axis=-1)
        with ranges_over(mask):
            return self.out(attend(self.query(x), key, value, sees, self.heads))

    def step(
        self,
        x: Float[Array, "B L D"],
        encoded: Float[Array, "B T D"],
        sees: Bool[Array, "B 1 all"],
        keys: Float[Array, "B N D"],
        values: Float[Array, "B N D"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B N D"], Float[Array, "B N D"]]:
        """(B, L, D), which sees N cached frames before the window's -> (B, L, D), and the last N keys and values."""
        new_keys, new_values = jnp.split(self.key_value(encoded), 2, axis=-1)
        keys, all_keys = extend_cache(keys, new_keys)
        values, all_values = extend_cache(values, new_values)
        return self.out(attend(self.query(x), all_keys, all_values, sees, self.heads)), keys, values
