"""What a search asks of a head, what the other rooms ask of a search, and the steps that searches share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp

from jaxasr.search.hypotheses import Hypotheses

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Shaped

State = TypeVar("State")


@runtime_checkable
class TransducerHead(Protocol):
    """A transducer, whatever its predictor is made of. Its state is a pytree of arrays with the batch axis first."""

    @property
    def blank_id(self) -> int: ...

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Ids taken for blank: neither emitted nor shown to the predictor."""
        ...

    @property
    def durations(self) -> tuple[int, ...]:
        """Encoded frames that a token may span, in the order of the logits after the vocabulary's; () without any."""
        ...

    @property
    def max_symbols(self) -> int:
        """Tokens that one encoded frame may emit."""
        ...

    @property
    def length_offset(self) -> int:
        """What is added to a hypothesis' number of tokens when scores are divided by lengths."""
        ...

    def project(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T J"]:
        """encoded (B, T, D) -> (B, T, J)."""
        ...

    def initial_state(self, batch: int) -> Any:
        """The state of `batch` rows that have said nothing."""
        ...

    def advance(self, state: Any, tokens: Int[Array, " B"]) -> Any:
        """The state after tokens (B,)."""
        ...

    def join(self, projected: Float[Array, "B J"], state: Any) -> Float[Array, "B outputs"]:
        """One projected frame (B, J) with each row's state: logits (B, V + durations) float32."""
        ...


@runtime_checkable
class CTCHead(Protocol):
    """A CTC head: encoded frames to log-probabilities."""

    @property
    def blank_id(self) -> int: ...

    @property
    def token_frames(self) -> str:
        """own or previous: the frame that a search gives a token."""
        ...

    @property
    def vocabulary_size(self) -> int: ...

    def __call__(self, encoded: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """encoded (B, T, D) -> log-probabilities (B, T, V) float32."""
        ...


@runtime_checkable
class Fired(Protocol):
    """The tokens' vectors (B, L, D) of a parallel head, how many (B,) there are, the frame (B, L) of each.

    `steps`: what places the tokens that are left of them, where the head's frames do not.
    """

    @property
    def vectors(self) -> Float[Array, "B L D"]: ...

    @property
    def counts(self) -> Int[Array, " B"]: ...

    @property
    def frames(self) -> Int[Array, "B L"]: ...

    @property
    def steps(self) -> Any: ...

    def first(self, size: int) -> Fired:
        """Without the positions from number `size` on, which hold no tokens."""
        ...


@runtime_checkable
class ParallelHead(Protocol):
    """A head that says all tokens of an utterance at once, from a vector for each."""

    @property
    def blank_id(self) -> int: ...

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Further ids that are no tokens."""
        ...

    @property
    def encoder_dim(self) -> int:
        """Width of the encoded frames."""
        ...

    def fire(self, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Fired:
        """encoded (B, T, D), lengths (B,) -> what is to be decoded."""
        ...

    def decode(self, fired: Any, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B L V"]:
        """Logits (B, L, V) float32 of all tokens that `fire` found."""
        ...


@runtime_checkable
class StreamedParallelHead(Protocol):
    """A head that says all tokens of a stream's window at once. Its state is a pytree with the batch axis first."""

    @property
    def blank_id(self) -> int: ...

    @property
    def silent_ids(self) -> tuple[int, ...]:
        """Further ids that are no tokens."""
        ...

    def initial_state(self, batch: int) -> Any:
        """The state before the first window."""
        ...

    def fire_step(
        self, state: Any, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> tuple[Any, Any]:
        """encoded (B, T, D), of which lengths (B,) frames exist, streams that end (B,) -> what is to be decoded.

        Frames of tokens count from the beginning of the stream.
        """
        ...

    def decode_step(
        self, state: Any, fired: Any, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> tuple[Any, Float[Array, "B L V"]]:
        """Logits (B, L, V) float32 of all tokens that `fire_step` found in the same window."""
        ...


@runtime_checkable
class HasSilence(Protocol):
    """A head whose ids are not all tokens."""

    @property
    def blank_id(self) -> int: ...

    @property
    def silent_ids(self) -> tuple[int, ...]: ...


@runtime_checkable
class Search(Protocol, Generic[State]):
    """A search over encoded frames in one piece or in many: what has been found so far is an explicit state.

    A state is a pytree of arrays with the batch axis first, so that rows can be swapped with `jnp.where`. One step over
    an utterance and several over its pieces give the same hypotheses.
    """

    def start(self, batch: int, frames: int) -> State:
        """The state before the first frame, with room for what `frames` encoded frames can say."""
        ...

    def step(self, state: State, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> State:
        """Search one more piece: encoded (B, T, D), of which the first lengths (B,) frames of a row count."""
        ...

    def finish(self, state: State) -> Hypotheses:
        """What has been found, best first; the state may go on afterwards."""
        ...


@runtime_checkable
class StreamingSearch(Search[State], Protocol):
    """A search whose state has one size however long a stream lasts: what is settled leaves it after each piece."""

    def advance(
        self, state: State, encoded: Float[Array, "B T D"], lengths: Int[Array, " B"], final: Bool[Array, " B"]
    ) -> tuple[State, Hypotheses]:
        """One more piece: the state without what is settled, and the settled tokens as one hypothesis a row (N = 1).

        encoded (B, T, D), of which lengths (B,) frames count; final (B,) where a row's stream ends with this piece.
        Frames are counted from the stream's beginning. `finish` gives what is not settled, its best hypothesis going on
        from all that was.
        """
        ...


def search_whole(search: Search[Any], encoded: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Hypotheses:
    """The hypotheses of whole utterances: encoded (B, T, D), lengths (B,) in frames."""
    return search.finish(search.step(search.start(*encoded.shape[:2]), encoded, lengths))


def penalise_blank(
    logits: Float[Array, "*rows V"], blank_id: int, penalty: Float[Array, ""] | float
) -> Float[Array, "*rows V"]:
    """Logits or log-probabilities (..., V) with the penalty taken off the blank's."""
    return logits - jnp.where(jnp.arange(logits.shape[-1]) == blank_id, penalty, 0.0)


def is_token(tokens: Int[Array, "*rows"], head: HasSilence) -> Bool[Array, "*rows"]:
    """Which ids (...) a search emits: neither the blank nor a silent one."""
    emitted = tokens != head.blank_id
    for silent in head.silent_ids:
        emitted &= tokens != silent
    return emitted


def choose_rows(
    chosen: Bool[Array, " B"], new: Shaped[Array, "B ..."], old: Shaped[Array, "B ..."]
) -> Shaped[Array, "B ..."]:
    """Rows of `new` where chosen (B,), rows of `old` elsewhere; both (B, ...)."""
    return jnp.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def first_maximum(values: Float[Array, "*rows V"]) -> tuple[Int[Array, "*rows"], Float[Array, "*rows"]]:
    """The first index of the maximum over the last axis, and the maximum: (..., V) -> (...) int32, (...).

    Written as a maximum and a comparison: on CPU this is an order of magnitude faster than `jnp.argmax`.
    """
    best = values.max(axis=-1)
    positions = jnp.arange(values.shape[-1], dtype=jnp.int32)
    # Where nothing compares equal, NaN, the last index keeps the result inside the vocabulary.
    return jnp.where(values == best[..., None], positions, values.shape[-1] - 1).min(axis=-1), best
