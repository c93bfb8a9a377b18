"""The losses against sums over all alignments, against float64 in numpy, and against the memory that they promise."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasr.training import losses
from jaxasr.training.losses import (
    choose_frames_at_once,
    ctc_loss,
    joiner_bytes,
    joiner_log_probs,
    lattice_bytes,
    lattice_loss,
    transducer_loss,
)
from quick_compilation import as_for_users


class Problem(NamedTuple):
    """Arguments of `transducer_loss` after its joiner."""

    projected: np.ndarray  # (B, T, J)
    predicted: np.ndarray  # (B, U + 1, J)
    labels: np.ndarray  # (B, U)
    frame_lengths: np.ndarray  # (B,)
    label_lengths: np.ndarray  # (B,)


def problem(
    frame_lengths: list[int], label_lengths: list[int], vocabulary: int, *, width: int | None = None, seed: int = 0
) -> Problem:
    """Random rows of these lengths, padded to the longest with what padding might be; 0 is the blank."""
    generator = np.random.default_rng(seed)
    rows, frames, labels = len(frame_lengths), max(frame_lengths), max(label_lengths)
    projected = 2 * generator.standard_normal((rows, frames, width or vocabulary))
    predicted = 2 * generator.standard_normal((rows, labels + 1, width or vocabulary))
    return Problem(
        projected.astype(np.float32),
        predicted.astype(np.float32),
        generator.integers(1, vocabulary, (rows, labels)).astype(np.int32),
        np.array(frame_lengths, np.int32),
        np.array(label_lengths, np.int32),
    )


def add(projected: jax.Array, predicted: jax.Array) -> jax.Array:
    """The joiner whose inputs' gradients are sums of its logits' gradients."""
    return projected + predicted


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def row_log_probs(given: Problem, row: int) -> np.ndarray:
    """float64 log-probabilities (T, U + 1, V) of a row without its padding, under `add`."""
    frames, labels = given.frame_lengths[row], given.label_lengths[row]
    projected, predicted = given.projected[row, :frames], given.predicted[row, : labels + 1]
    return log_softmax(projected.astype(np.float64)[:, None] + predicted.astype(np.float64)[None])


def all_alignments(log_probs: np.ndarray, labels: np.ndarray, blank: int) -> float:
    """Minus the log of the sum over every way of emitting the labels at frames that do not go back."""
    frames, count = len(log_probs), len(labels)
    total = -np.inf
    for emitting in itertools.combinations_with_replacement(range(frames), count):
        score, position = 0.0, 0
        for frame in range(frames):
            while position < count and emitting[position] == frame:
                score += log_probs[frame, position, labels[position]]
                position += 1
            score += log_probs[frame, position, blank]
        total = np.logaddexp(total, score)
    return -total


def forward_backward(log_probs: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Graves' equations written out, float64: the loss and its gradient by the logits (T, U + 1, V)."""
    frames, positions, _ = log_probs.shape
    alpha = np.full((frames, positions), -np.inf)
    alpha[0, 0] = 0.0
    for t, u in itertools.product(range(frames), range(positions)):
        if t:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t - 1, u] + log_probs[t - 1, u, 0])
        if u:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]])
    beta = np.full((frames + 1, positions + 1), -np.inf)
    beta[frames, positions - 1] = 0.0
    gradient = np.zeros_like(log_probs)
    likelihood = alpha[-1, -1] + log_probs[-1, -1, 0]
    for t, u in itertools.product(reversed(range(frames)), reversed(range(positions))):
        blank = log_probs[t, u, 0] + beta[t + 1, u]
        emit = log_probs[t, u, labels[u]] + beta[t, u + 1] if u < positions - 1 else -np.inf
        beta[t, u] = np.logaddexp(blank, emit)
        for token, arc in ((0, blank), (labels[u] if u < positions - 1 else 0, emit)):
            share = np.exp(alpha[t, u] + arc - likelihood)
            gradient[t, u] += share * np.exp(log_probs[t, u])
            gradient[t, u, token] -= share
    return -likelihood, gradient


@functools.partial(jax.jit, static_argnames=("join", "blank_id", "frames_at_once"))
def value_and_gradients(
    given: Problem,
    join: Callable[[jax.Array, jax.Array], jax.Array] = add,
    blank_id: int = 0,
    frames_at_once: int | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The losses of all rows, and the gradients by projected and predicted of their sum, row r weighted by r + 1."""

    def objective(projected: jax.Array, predicted: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = transducer_loss(join, projected, predicted, *given[2:], blank_id=blank_id, frames_at_once=frames_at_once)
        return ((1.0 + jnp.arange(len(each))) * each).sum(), each

    (_, each), gradients = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(*given[:2])
    return each, gradients


@pytest.mark.parametrize("blank", [0, 3])
def test_transducer_loss_sums_all_alignments(blank: int) -> None:
    sizes = [(1, 0), (1, 3), (5, 0), (2, 1), (3, 4), (6, 3), (4, 4), (5, 2)]
    given = problem([t for t, _ in sizes], [u for _, u in sizes], vocabulary=4, seed=blank)
    given = given._replace(labels=(given.labels + blank) % 4)  # any but the blank
    expected = [
        all_alignments(row_log_probs(given, row), given.labels[row, :labels], blank)
        for row, (_, labels) in enumerate(sizes)
    ]
    result, _ = value_and_gradients(given, blank_id=blank)
    np.testing.assert_allclose(result, expected, rtol=2e-6)


MEDIUM = problem([40, 23, 1], [12, 5, 9], vocabulary=30)


@pytest.mark.parametrize("frames_at_once", [None, 1, 3, 7, 40, 64])
def test_transducer_loss_and_gradients_in_float64(frames_at_once: int | None) -> None:
    result, gradients = value_and_gradients(MEDIUM, frames_at_once=frames_at_once)
    for row, (frames, labels) in enumerate(zip(MEDIUM.frame_lengths, MEDIUM.label_lengths, strict=True)):
        loss, gradient = forward_backward(row_log_probs(MEDIUM, row), MEDIUM.labels[row])
        np.testing.assert_allclose(result[row], loss, rtol=2e-6)
        weight = 1 + row
        np.testing.assert_allclose(gradients[0][row, :frames], weight * gradient.sum(axis=1), 1e-4, 1e-5)
        np.testing.assert_allclose(gradients[1][row, : labels + 1], weight * gradient.sum(axis=0), 1e-4, 1e-5)
        assert not gradients[0][row, frames:].any() and not gradients[1][row, labels + 1 :].any()


@pytest.mark.parametrize("frames_at_once", [1, 3, 7])
def test_frames_at_once_changes_nothing(frames_at_once: int) -> None:
    """With a joiner that has weights of its own, whose gradient gathers over the pieces."""
    kernel = np.random.default_rng(1).standard_normal((8, 30)).astype(np.float32)
    given = problem([40, 23, 1], [12, 5, 9], vocabulary=30, width=8)

    def run(frames_at_once: int | None) -> Any:
        def objective(kernel: jax.Array, projected: jax.Array, predicted: jax.Array) -> jax.Array:
            def join(a: jax.Array, b: jax.Array) -> jax.Array:
                return jnp.tanh(a + b) @ kernel

            return transducer_loss(join, projected, predicted, *given[2:], frames_at_once=frames_at_once).sum()

        return jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2)))(kernel, *given[:2])

    (whole, gradients), (value, others) = run(None), run(frames_at_once)
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(other, gradient, rtol=1e-4, atol=1e-4)


PADDINGS = {"zero": 0.0, "loud": 1e4, "infinite": np.inf, "nan": np.nan}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("frames_at_once", [None, 3])
def test_padding_changes_nothing(padding: str, frames_at_once: int | None) -> None:
    """Value and gradient, that of the joiner's weights too, bit for bit; labels that are no tokens count as padding."""
    given = problem([7, 4, 1], [3, 1, 2], vocabulary=6, width=5)
    kernel = np.random.default_rng(2).standard_normal((5, 6)).astype(np.float32)

    @jax.jit
    def run(kernel: jax.Array, given: Problem) -> Any:
        def objective(kernel: jax.Array, projected: jax.Array, predicted: jax.Array) -> jax.Array:
            def join(a: jax.Array, b: jax.Array) -> jax.Array:
                return (a + b) @ kernel

            return transducer_loss(join, projected, predicted, *given[2:], frames_at_once=frames_at_once).sum()

        return jax.value_and_grad(objective, argnums=(0, 1, 2))(kernel, *given[:2])

    padded = given._replace(projected=given.projected.copy(), predicted=given.predicted.copy())
    padded = padded._replace(labels=given.labels.copy())
    for row, (frames, labels) in enumerate(zip(given.frame_lengths, given.label_lengths, strict=True)):
        padded.projected[row, frames:] = PADDINGS[padding]
        padded.predicted[row, labels + 1 :] = PADDINGS[padding]
        padded.labels[row, labels:] = 99
    expected, result = run(kernel, given), run(kernel, padded)
    jax.tree.map(np.testing.assert_array_equal, result, expected)
    for row, (frames, labels) in enumerate(zip(given.frame_lengths, given.label_lengths, strict=True)):
        assert not result[1][1][row, frames:].any() and not result[1][2][row, labels + 1 :].any()


def test_rows_of_a_batch_are_alone() -> None:
    result, gradients = value_and_gradients(MEDIUM)
    for row, (frames, labels) in enumerate(zip(MEDIUM.frame_lengths, MEDIUM.label_lengths, strict=True)):
        single = Problem(
            MEDIUM.projected[row : row + 1, :frames],
            MEDIUM.predicted[row : row + 1, : labels + 1],
            MEDIUM.labels[row : row + 1, :labels],
            MEDIUM.frame_lengths[row : row + 1],
            MEDIUM.label_lengths[row : row + 1],
        )
        alone, own = value_and_gradients(single)
        np.testing.assert_allclose(alone, result[row : row + 1], rtol=1e-6)
        np.testing.assert_allclose((1 + row) * own[0][0], gradients[0][row, :frames], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames_at_once", [None, 2])
def test_a_row_without_frames_costs_nothing(frames_at_once: int | None) -> None:
    given = problem([4, 0, 0], [2, 2, 0], vocabulary=5)
    result, gradients = value_and_gradients(given, frames_at_once=frames_at_once)
    assert result[0] > 0 and not result[1:].any()
    assert gradients[0][0].any() and not gradients[0][1:].any() and not gradients[1][1:].any()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("frames", "labels"), [(1, 0), (1, 4), (6, 0)])
def test_the_smallest_lattices(frames: int, labels: int) -> None:
    given = problem([frames], [labels], vocabulary=5)
    result, gradients = value_and_gradients(given)
    loss, gradient = forward_backward(row_log_probs(given, 0), given.labels[0])
    np.testing.assert_allclose(result, [loss], rtol=1e-6)
    np.testing.assert_allclose(gradients[0][0], gradient.sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(gradients[1][0], gradient.sum(axis=0), atol=1e-5)


@pytest.mark.parametrize("frames_at_once", [None, 4])
def test_a_narrow_joiner_has_a_float32_loss(frames_at_once: int | None) -> None:
    def narrow(projected: jax.Array, predicted: jax.Array) -> jax.Array:
        return (projected + predicted).astype(jnp.bfloat16)

    def rounded(projected: jax.Array, predicted: jax.Array) -> jax.Array:
        return narrow(projected, predicted).astype(jnp.float32)

    result, gradients = value_and_gradients(MEDIUM, narrow, frames_at_once=frames_at_once)
    expected, wanted = value_and_gradients(MEDIUM, rounded, frames_at_once=frames_at_once)
    assert result.dtype == np.float32 and all(gradient.dtype == np.float32 for gradient in gradients)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    for gradient, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, other, atol=2e-2)  # a gradient of bfloat16 logits is bfloat16

    inputs = [jnp.asarray(each, jnp.bfloat16) for each in MEDIUM[:2]]
    assert transducer_loss(add, *inputs, *MEDIUM[2:], frames_at_once=frames_at_once).dtype == jnp.float32


def test_compiled_and_not_compiled_agree() -> None:
    arguments = (*map(jnp.asarray, MEDIUM),)
    eager = transducer_loss(add, *arguments, frames_at_once=7)
    compiled = jax.jit(functools.partial(transducer_loss, add, frames_at_once=7))(*arguments)
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)


def test_certain_and_impossible_steps_stay_finite() -> None:
    """Logits as far apart as float32 networks ever make them."""
    given = problem([30, 30], [10, 4], vocabulary=6)
    given = given._replace(projected=300 * given.projected)
    result, gradients = value_and_gradients(given)
    assert np.isfinite(result).all() and all(np.isfinite(gradient).all() for gradient in gradients)
    expected = [forward_backward(row_log_probs(given, row), given.labels[row])[0] for row in range(2)]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def plain_loss(blank: jax.Array, emit: jax.Array, frame_lengths: jax.Array, label_lengths: jax.Array) -> jax.Array:
    """`lattice_loss` with the gradient that JAX derives from its forward pass."""
    return losses._lattice_forward(blank, emit, frame_lengths, label_lengths)[0]


def lattice(batch: int, frames: int, labels: int) -> tuple[jax.Array, ...]:
    """Arguments of `lattice_loss`."""
    generator = np.random.default_rng(3)
    blank = np.log(generator.uniform(0.05, 0.95, (batch, frames, labels + 1))).astype(np.float32)
    emit = np.log1p(-np.exp(blank))[:, :, :-1]
    frame_lengths = generator.integers(frames // 2, frames + 1, batch)
    return (*map(jnp.asarray, (blank, emit, frame_lengths, generator.integers(0, labels + 1, batch))),)


def gradient_of(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    return jax.grad(lambda *arguments: loss(*arguments).sum(), argnums=(0, 1))


def test_the_lattices_gradient_is_that_of_its_forward_pass() -> None:
    arguments = lattice(3, 17, 6)
    gradients = (jax.jit(gradient_of(loss))(*arguments) for loss in (lattice_loss, plain_loss))
    for own, derived in zip(*gradients, strict=True):
        np.testing.assert_allclose(own, derived, atol=2e-5)


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """What XLA sets aside for a compiled function beside its arguments and results."""
    abstract = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arguments]
    with as_for_users():
        compiled = jax.jit(function).lower(*abstract).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def test_the_lattices_gradient_takes_less_memory_than_the_derived_one() -> None:
    """By an eighth: 6.3 against 7.2 MB with jax 0.10, though the derived one keeps less from the forward pass."""
    arguments = lattice(8, 400, 60)
    own, derived = (temporary_bytes(gradient_of(loss), *arguments) for loss in (lattice_loss, plain_loss))
    assert own < derived
    assert own < 3 * lattice_bytes(8, 400, 60), "what is kept, its diagonals, and the shares"


@pytest.mark.parametrize(("batch", "frames", "labels"), [(1, 1, 0), (4, 50, 12), (8, 400, 60)])
def test_lattice_bytes_are_what_the_gradient_keeps(batch: int, frames: int, labels: int) -> None:
    kept = jax.eval_shape(lambda *arguments: jax.vjp(lattice_loss, *arguments)[1], *lattice(batch, frames, labels))
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    promised = lattice_bytes(batch, frames, labels)
    # No token follows the last position, and some lengths are kept: (B, T) less and a few (B,) more.
    assert promised - 4 * batch * frames <= size <= promised + 64 * batch


BATCH, FRAMES, LABELS, VOCABULARY = 4, 256, 32, 256


@functools.cache
def joiner_temporaries(frames_at_once: int | None) -> int:
    """Temporary bytes of the whole loss and its gradient with a joiner of width 16."""
    given = problem([FRAMES] * BATCH, [LABELS] * BATCH, VOCABULARY, width=16)
    kernel = jnp.zeros((16, VOCABULARY))

    def objective(kernel: jax.Array, projected: jax.Array, predicted: jax.Array) -> jax.Array:
        def join(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.tanh(a + b) @ kernel

        return transducer_loss(join, projected, predicted, *given[2:], frames_at_once=frames_at_once).sum()

    return temporary_bytes(jax.grad(objective, argnums=(0, 1, 2)), kernel, *given[:2])


def test_pieces_take_a_piece_of_the_memory() -> None:
    logits = joiner_bytes(BATCH, FRAMES, LABELS, VOCABULARY)
    assert logits == 4 * BATCH * FRAMES * (LABELS + 1) * VOCABULARY
    assert joiner_temporaries(None) >= logits, "all logits exist"
    for frames_at_once in (4, 16):
        piece = joiner_bytes(BATCH, FRAMES, LABELS, VOCABULARY, frames_at_once)
        assert piece == logits * frames_at_once // FRAMES
        # A piece's logits exist a few times over while they turn into gradients, the lattice beside its diagonals.
        budget = 6 * piece + 4 * lattice_bytes(BATCH, FRAMES, LABELS)
        assert joiner_temporaries(frames_at_once) < budget < 0.5 * joiner_temporaries(None)


@pytest.mark.parametrize("budget", [1, 1000, 123_456, 10**6, 10**9])
def test_choose_frames_at_once(budget: int) -> None:
    chosen = choose_frames_at_once(2, 100, 9, 50, budget)
    if chosen is None:
        assert joiner_bytes(2, 100, 9, 50) <= budget
        return
    assert joiner_bytes(2, 100, 9, 50) > budget
    assert chosen & (chosen - 1) == 0 and chosen >= 1
    assert chosen == 1 or joiner_bytes(2, 100, 9, 50, chosen) <= budget < joiner_bytes(2, 200, 9, 50, 2 * chosen)


def test_joiner_log_probs_are_probabilities() -> None:
    blank, emit = joiner_log_probs(add, *map(jnp.asarray, MEDIUM[:3]), frames_at_once=7)
    for row in range(3):
        logits = MEDIUM.projected[row][:, None] + MEDIUM.predicted[row][None]
        expected = log_softmax(logits.astype(np.float64))
        np.testing.assert_allclose(blank[row], expected[..., 0], atol=1e-5)
        for position, label in enumerate(MEDIUM.labels[row]):
            np.testing.assert_allclose(emit[row, :, position], expected[:, position, label], atol=1e-5)


def all_paths(log_probs: np.ndarray, labels: tuple[int, ...], blank: int) -> float:
    """Minus the log of the sum over every path (T, V) that reads as the labels."""
    total = -np.inf
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        merged = [token for token, _ in itertools.groupby(path)]
        if tuple(token for token in merged if token != blank) == labels:
            total = np.logaddexp(total, sum(log_probs[frame, token] for frame, token in enumerate(path)))
    return -total


CTC_ROWS = [(5, (1, 2)), (4, (1, 1)), (5, (2, 1, 2)), (3, ()), (1, (2,)), (5, (1, 1, 1)), (2, (1, 2)), (0, ())]


def ctc_problem(blank: int) -> tuple[np.ndarray, ...]:
    """Log-probabilities (B, T, V), labels (B, U) and lengths of CTC_ROWS; `blank` changes places with 0."""
    logits = 2 * np.random.default_rng(4).standard_normal((len(CTC_ROWS), 6, 3))
    labels = np.zeros((len(CTC_ROWS), 4), np.int32)
    for row, (_, text) in enumerate(CTC_ROWS):
        labels[row, : len(text)] = [0 if token == blank else token for token in text]
    lengths = np.array([(frames, len(text)) for frames, text in CTC_ROWS], np.int32)
    return log_softmax(logits).astype(np.float32), labels, lengths[:, 0], lengths[:, 1]


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_loss_sums_all_paths(blank: int) -> None:
    log_probs, labels, frame_lengths, label_lengths = ctc_problem(blank)
    result = jax.jit(functools.partial(ctc_loss, blank_id=blank))(log_probs, labels, frame_lengths, label_lengths)
    assert result.dtype == jnp.float32
    for row, (frames, text) in enumerate(CTC_ROWS):
        text = tuple(labels[row, : len(text)].tolist())
        expected = all_paths(log_probs[row, :frames].astype(np.float64), text, blank)
        np.testing.assert_allclose(result[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
def test_ctc_padding_changes_nothing(padding: str) -> None:
    log_probs, labels, frame_lengths, label_lengths = ctc_problem(0)

    @jax.jit
    def run(log_probs: jax.Array, labels: jax.Array) -> Any:
        return jax.value_and_grad(lambda each: ctc_loss(each, labels, frame_lengths, label_lengths).sum())(log_probs)

    padded, other = log_probs.copy(), labels.copy()
    for row, (frames, count) in enumerate(zip(frame_lengths, label_lengths, strict=True)):
        padded[row, frames:] = PADDINGS[padding]
        other[row, count:] = 99
    (expected, gradient), (result, derived) = run(log_probs, labels), run(padded, other)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(derived, gradient)
    assert all(not derived[row, frames:].any() for row, frames in enumerate(frame_lengths))


def test_ctc_products_keep_float32_on_accelerators() -> None:
    program = str(jax.make_jaxpr(jax.grad(lambda *given: ctc_loss(*given).sum()))(*ctc_problem(0)))
    assert "dot_general" in program and "Precision.HIGHEST" in program
    assert "precision=None" not in program


def test_a_text_too_long_for_its_frames_costs_much_but_not_everything() -> None:
    log_probs, labels, _, label_lengths = ctc_problem(0)
    short = np.array([1, 2, 1, 3, 0, 2, 1, 0], np.int32)  # all but the empty texts do not fit
    loss = jax.jit(jax.value_and_grad(lambda each: ctc_loss(each, labels, short, label_lengths).sum()))
    value, gradient = loss(log_probs)
    assert 6e5 < float(value) < 2e6 and np.isfinite(gradient).all()


def test_what_ctc_forbids_costs_much_or_everything_and_is_a_number() -> None:
    """Log-probabilities of exactly -inf, as masks make them: unneeded, on one way of many, on all ways, everywhere."""
    log_probs, labels, frame_lengths, label_lengths = ctc_problem(0)
    log_probs[0, :, 2] = -np.inf  # (1, 2) needs a 2
    log_probs[1, 0, 0] = -np.inf  # (1, 1) in four frames may begin with 1
    log_probs[2, 2] = -np.inf
    log_probs[3, :, 1:] = -np.inf  # an empty text needs blanks only
    log_probs[5, 1, 2] = -np.inf

    @jax.jit
    def run(log_probs: jax.Array) -> Any:
        def objective(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
            each = ctc_loss(log_probs, labels, frame_lengths, label_lengths)
            return each.sum(), each

        return jax.grad(objective, has_aux=True)(log_probs)

    gradient, result = run(log_probs)
    # What forbidden tokens leave over is spread over the others, as optax takes logits.
    with np.errstate(invalid="ignore"):
        shares = log_softmax(log_probs.astype(np.float64))
    shares = np.where(np.isnan(shares), -np.inf, shares)
    expected = [all_paths(shares[row, :frames], text, 0) for row, (frames, text) in enumerate(CTC_ROWS)]
    assert expected[0] == np.inf and 0.99e5 < result[0] < 1.1e5
    assert result[2] == np.inf and not gradient[2].any()
    possible = [1, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(result[np.array(possible)], [expected[row] for row in possible], rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient).all() and all(gradient[row].any() for row in (0, 1, 5))


@pytest.mark.parametrize("frames_at_once", [None, 3])
def test_what_a_joiner_forbids_is_no_alignment(frames_at_once: int | None) -> None:
    """Logits of exactly -inf: on some alignments, on all of them, and at a point as a whole."""
    given = problem([6, 6, 6, 5], [3, 2, 2, 0], vocabulary=5)
    labels = given.labels.copy()
    labels[:3, :3] = [[1, 2, 3], [2, 3, 0], [3, 1, 0]]
    given = given._replace(labels=labels)
    given.projected[0, 1, 0] = -np.inf  # no blank at one frame: no frame can be left there
    given.projected[1, :4, 2] = -np.inf  # the first token comes late
    given.projected[2, :, 3] = -np.inf  # and here never
    given.projected[3, 2] = -np.inf
    result, gradients = value_and_gradients(given, frames_at_once=frames_at_once)
    with np.errstate(invalid="ignore"):
        expected = [
            all_alignments(np.where(np.isnan(row := row_log_probs(given, number)), -np.inf, row), text[:count], 0)
            for number, (text, count) in enumerate(zip(given.labels, given.label_lengths, strict=True))
        ]
    np.testing.assert_allclose(result, expected, rtol=2e-6)
    assert [bool(np.isinf(each)) for each in expected] == [True, False, True, True]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0][1].any() and not any(gradients[0][row].any() for row in (0, 2, 3))
