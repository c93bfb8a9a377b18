"""The transducer and CTC losses, in float32 whatever type the network computes in.

The transducer loss is Graves' (2012, arXiv 1211.3711): minus the log-probability of all alignments of a text, summed
over a lattice of T frames and U + 1 positions by a recursion in log space. The recursion walks along anti-diagonals, so
that its steps are vectors; its gradient is the usual one of forward and backward variables.

Only two log-probabilities of each lattice point matter, the blank's and the next token's. `joiner_log_probs` computes
them for a few frames at a time and again in the backward pass, so that the joiner's outputs (B, T, U + 1, V) never
exist as a whole. `lattice_bytes` and `joiner_bytes` say how large the arrays are that do exist.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxasr.arrays import LOG_ZERO, ceil_div, length_mask, zero_beyond

Joiner = Callable[[jax.Array, jax.Array], jax.Array]

CTC_LOG_ZERO = -1e5  # optax' logarithm of nothing


def transducer_loss(
    join: Joiner,
    projected: jax.Array,
    predicted: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    blank_id: int = 0,
    frames_at_once: int | None = None,
) -> jax.Array:
    """Minus the log-likelihood of each text: (B,) float32, in nats.

    `join(projected (B, t, 1, J), predicted (B, 1, U + 1, J))` gives logits (B, t, U + 1, V). projected (B, T, J):
    projections of the encoded frames; predicted (B, U + 1, J): projections of the predictor's output after 0 to U
    tokens. labels (B, U) int32, frame_lengths and label_lengths (B,). `frames_at_once`: as in `joiner_log_probs`.
    Padding changes nothing and gets no gradient, also where it is NaN or no token. A row without frames has loss 0 and
    no gradient. Logits of -inf forbid a token; a text that they make impossible has loss infinity and no gradient.
    """
    # The lattice leaves padding out, but a gradient of zero times NaN would still reach the joiner's weights.
    projected = zero_beyond(projected, frame_lengths)
    predicted = zero_beyond(predicted, label_lengths + 1)
    labels = zero_beyond(labels, label_lengths)
    blank, emit = joiner_log_probs(join, projected, predicted, labels, blank_id=blank_id, frames_at_once=frames_at_once)
    return lattice_loss(blank, emit, frame_lengths, label_lengths)


def joiner_log_probs(
    join: Joiner,
    projected: jax.Array,
    predicted: jax.Array,
    labels: jax.Array,
    *,
    blank_id: int = 0,
    frames_at_once: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of blank (B, T, U + 1) and of each position's next token (B, T, U), float32.

    `frames_at_once` frames go through the joiner together and are computed anew in the backward pass; None takes all of
    them and keeps what they need. Arguments as in `transducer_loss`.
    """

    def some_frames(projected: jax.Array, predicted: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = join(projected[:, :, None], predicted[:, None]).astype(jnp.float32)  # (B, t, U + 1, V)
        # A point that forbids everything has no softmax, and its gradient would be zero times infinity.
        closed = jnp.isneginf(lax.stop_gradient(logits).max(axis=-1))
        logits = jnp.where(closed[..., None], 0.0, logits)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.broadcast_to(labels[:, None, :, None], (*logits.shape[:2], labels.shape[1], 1))
        emit = jnp.take_along_axis(logits[:, :, :-1], chosen, axis=-1)[..., 0]
        blank, emit = logits[..., blank_id] - total, emit - total[:, :, :-1]
        return jnp.where(closed, -jnp.inf, blank), jnp.where(closed[:, :, :-1], -jnp.inf, emit)

    batch, frames, width = projected.shape
    if frames_at_once is None or frames_at_once >= frames:
        return some_frames(projected, predicted)
    chunks = ceil_div(frames, frames_at_once)
    padded = jnp.pad(projected, ((0, 0), (0, chunks * frames_at_once - frames), (0, 0)))
    pieces = padded.reshape(batch, chunks, frames_at_once, width).swapaxes(0, 1)
    recomputed = jax.checkpoint(some_frames, prevent_cse=False)
    _, (blank, emit) = lax.scan(lambda _, piece: (None, recomputed(piece, predicted)), None, pieces)
    blank, emit = (each.swapaxes(0, 1).reshape(batch, -1, each.shape[-1])[:, :frames] for each in (blank, emit))
    return blank, emit


@jax.custom_vjp
def lattice_loss(blank: jax.Array, emit: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array) -> jax.Array:
    """Minus the log of the sum over all alignments: (B,) float32.

    blank (B, T, U + 1), emit (B, T, U): log-probabilities at frame t after u tokens, -inf where a step is impossible.
    An alignment emits at most all tokens at one frame, and ends with the blank at frame frame_lengths - 1 after
    label_lengths tokens. A row without a possible alignment has loss infinity and no gradient.
    """
    return _lattice_forward(blank, emit, frame_lengths, label_lengths)[0]


def _lattice_forward(
    blank: jax.Array, emit: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    positions = blank.shape[2]
    blank_by_step, emit_by_step = _to_diagonals(blank), _to_diagonals(_pad_emit(emit))  # (T + U, B, U + 1)
    start = jnp.where(jnp.arange(positions) == 0, 0.0, LOG_ZERO)
    start = jnp.broadcast_to(start, blank_by_step.shape[1:]).astype(jnp.float32)

    def step(alpha: jax.Array, log_probs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        after_blank, after_emit = alpha + log_probs[0], alpha + log_probs[1]
        after_emit = jnp.pad(after_emit, ((0, 0), (1, 0)), constant_values=LOG_ZERO)[:, :-1]  # one position further
        following = jnp.logaddexp(after_blank, after_emit)
        return following, alpha

    _, alphas = lax.scan(step, start, (blank_by_step, emit_by_step))  # (T + U, B, U + 1): before each step
    rows = jnp.arange(blank.shape[0])
    last_step = jnp.maximum(frame_lengths + label_lengths - 1, 0)
    last_frame = jnp.maximum(frame_lengths - 1, 0)
    log_likelihood = alphas[last_step, rows, label_lengths] + blank[rows, last_frame, label_lengths]
    loss = jnp.where(_possible(log_likelihood), -log_likelihood, jnp.inf)
    loss = jnp.where(frame_lengths > 0, loss, 0.0)
    return loss, (alphas, blank, emit, frame_lengths, label_lengths, log_likelihood)


def _lattice_backward(saved: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    """The posterior of each arc, the probability that an alignment takes it, by forward and backward variables."""
    alphas, blank, emit, frame_lengths, label_lengths, log_likelihood = saved
    batch, frames, positions = blank.shape
    end = frame_lengths + label_lengths  # arcs of a whole alignment
    position = jnp.arange(positions)
    at_end = position[None, :] == label_lengths[:, None]  # (B, U + 1)
    possible = _possible(log_likelihood)[:, None]

    def step(
        beta: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        number, alpha, blanks, emits = inputs
        # beta is that of the next step; beyond the end of a row it is impossible.
        beta = jnp.where((number + 1 == end)[:, None] & at_end, 0.0, beta)
        after_emit = jnp.pad(beta, ((0, 0), (0, 1)), constant_values=LOG_ZERO)[:, 1:]
        through_blank, through_emit = blanks + beta, emits + after_emit
        posteriors = (
            jnp.exp(alpha + through_blank - log_likelihood[:, None]),
            jnp.exp(alpha + through_emit - log_likelihood[:, None]),
        )
        frame = number - position[None, :]
        inside = (frame < frame_lengths[:, None]) & (position[None, :] <= label_lengths[:, None])
        beta = jnp.where(inside, jnp.logaddexp(through_blank, through_emit), LOG_ZERO)
        counted = inside & possible
        of_blank, of_emit = (jnp.where(counted, posterior, 0.0) for posterior in posteriors)
        return beta, (of_blank, of_emit)

    start = jnp.full((batch, positions), LOG_ZERO, jnp.float32)
    inputs = (jnp.arange(len(alphas)), alphas, _to_diagonals(blank), _to_diagonals(_pad_emit(emit)))
    _, posteriors = lax.scan(step, start, inputs, reverse=True)
    weight = -jnp.where(frame_lengths > 0, cotangent, 0.0)[:, None, None]
    dblank, demit = (weight * _from_diagonals(posterior, frames) for posterior in posteriors)
    return dblank, demit[:, :, :-1], None, None


lattice_loss.defvjp(_lattice_forward, _lattice_backward)


def _possible(log_likelihood: jax.Array) -> jax.Array:
    """False where every alignment takes a step of probability zero; a NaN stays one."""
    return ~(log_likelihood < 0.5 * LOG_ZERO)


def _pad_emit(emit: jax.Array) -> jax.Array:
    """After the last position no token follows: (B, T, U) -> (B, T, U + 1)."""
    return jnp.pad(emit, ((0, 0), (0, 0), (0, 1)), constant_values=LOG_ZERO)


def _to_diagonals(points: jax.Array) -> jax.Array:
    """(B, T, U + 1) -> (T + U, B, U + 1): entry (d, b, u) is point (d - u, u), impossible where there is none.

    Column u must be shifted by u places. Columns that are padded by one entry more than fits, written one after another
    and read back at their right length, are so shifted.
    """
    batch, frames, positions = points.shape
    diagonals = frames + positions - 1
    columns = points.transpose(0, 2, 1)  # (B, U + 1, T)
    columns = jnp.pad(columns, ((0, 0), (0, 0), (0, positions)), constant_values=LOG_ZERO)
    shifted = columns.reshape(batch, -1)[:, : positions * diagonals].reshape(batch, positions, diagonals)
    return shifted.transpose(2, 0, 1)


def _from_diagonals(values: jax.Array, frames: int) -> jax.Array:
    """The inverse of `_to_diagonals`: (T + U, B, U + 1) -> (B, T, U + 1)."""
    diagonals, batch, positions = values.shape
    rows = values.transpose(1, 2, 0).reshape(batch, -1)
    rows = jnp.pad(rows, ((0, 0), (0, positions)), constant_values=LOG_ZERO)
    columns = rows.reshape(batch, positions, diagonals + 1)[:, :, :frames]
    return columns.transpose(0, 2, 1)


def ctc_loss(
    log_probs: jax.Array,
    labels: jax.Array,
    frame_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    blank_id: int = 0,
) -> jax.Array:
    """Optax' CTC loss of each row: log_probs (B, T, V), labels (B, U), lengths (B,) -> (B,) float32, in nats.

    Padding changes nothing, also where it is NaN. A text that is too long for its frames, or that needs a token whose
    log-probability is -inf, costs about 1e5, optax' logarithm of nothing, for each such step. A row with a frame in
    which everything is -inf costs infinity and has no gradient.
    """
    log_probs = zero_beyond(log_probs.astype(jnp.float32), frame_lengths)
    closed = jnp.isneginf(log_probs).all(axis=-1).any(axis=1)  # (B,)
    # Optax multiplies by zero what is not asked for, and zero times infinity is no number.
    log_probs = jnp.where(jnp.isneginf(log_probs), CTC_LOG_ZERO, log_probs)
    labels = zero_beyond(labels, label_lengths)
    frame_padding = 1.0 - length_mask(frame_lengths, log_probs.shape[1]).astype(jnp.float32)
    label_padding = 1.0 - length_mask(label_lengths, labels.shape[1]).astype(jnp.float32)
    # Optax picks log-probabilities by a product with ones and zeros, which accelerators would round to bfloat16.
    with jax.default_matmul_precision("highest"):
        loss: jax.Array = optax.ctc_loss(log_probs, frame_padding, labels, label_padding, blank_id=blank_id)
    return jnp.where(closed, jnp.inf, loss)


def joiner_bytes(batch: int, frames: int, labels: int, vocabulary: int, frames_at_once: int | None = None) -> int:
    """Bytes of the largest array of the loss, float32 logits (B, t, U + 1, V)."""
    return 4 * batch * min(frames, frames_at_once or frames) * (labels + 1) * vocabulary


def lattice_bytes(batch: int, frames: int, labels: int) -> int:
    """Bytes that the lattice keeps for its gradient: two log-probabilities and the forward variable of each point."""
    points = batch * frames * (labels + 1)
    return 4 * (2 * points + batch * (frames + labels) * (labels + 1))


def choose_frames_at_once(batch: int, frames: int, labels: int, vocabulary: int, budget: int) -> int | None:
    """The most frames, a power of two, whose logits fit `budget` bytes; None where all of them do."""
    if joiner_bytes(batch, frames, labels, vocabulary) <= budget:
        return None
    fitting = max(budget // joiner_bytes(batch, 1, labels, vocabulary), 1)
    return 1 << (fitting.bit_length() - 1)
