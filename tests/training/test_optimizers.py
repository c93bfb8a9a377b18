"""ScaledAdam and Eden against icefall's own, and what the optimizers promise.

data/scaled_adam.npz was made by data/make_scaled_adam.py, which runs icefall's optim.py in PyTorch.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxasr.training.optimizers import adamw, eden, scaled_adam, warmup_cosine

Arrays = dict[str, np.ndarray]
STORED = Path(__file__).parent / "data" / "scaled_adam.npz"
CLIPPING_PERIOD = 16


@pytest.fixture(scope="module")
def icefall() -> Arrays:
    with np.load(STORED) as file:
        return dict(file)


def named(arrays: Arrays, kind: str) -> dict[str, jax.Array]:
    """The arrays of one kind, by tensor."""
    return {key.removeprefix(kind): jnp.asarray(value) for key, value in arrays.items() if key.startswith(kind)}


@functools.cache
def recipe(clipping_scale: float | None = 2.0) -> optax.GradientTransformation:
    """The optimizer of the stored run."""
    schedule = eden(0.05, steps_scale=40, epochs_scale=2, steps_per_epoch=7, warmup_steps=12)
    return scaled_adam(schedule, clipping_scale=clipping_scale, clipping_update_period=CLIPPING_PERIOD)


@functools.partial(jax.jit, static_argnums=0)
def run(
    optimizer: optax.GradientTransformation, parameters: Any, gradients: Any, state: Any = None
) -> tuple[Any, Any, Any]:
    """All steps in one program: parameters after each, the last state, and the state after each."""

    def step(carry: tuple[Any, Any], gradient: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        parameters, state = carry
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        return (parameters, state), (parameters, state)

    state = optimizer.init(parameters) if state is None else state
    (_, last), (values, states) = jax.lax.scan(step, (parameters, state), gradients)
    return values, last, states


def test_scaled_adam_goes_where_icefalls_goes(icefall: Arrays) -> None:
    gradients = named(icefall, "gradients/")
    values, last, states = run(recipe(), named(icefall, "start/"), gradients)
    limits = np.where(np.isnan(icefall["limits"]), np.inf, icefall["limits"])
    np.testing.assert_allclose(states.clipping.limit, limits, rtol=1e-5)
    assert len(set(limits)) == 5, "none, early, and three whole periods"
    for name, expected in named(icefall, "values/").items():
        # Single entries cross zero: what counts is the size of their tensor.
        rms = np.sqrt(np.mean(np.reshape(expected, (len(expected), -1)) ** 2, axis=1))
        error = np.abs(np.reshape(values[name] - expected, (len(expected), -1))).max(axis=1)
        assert np.all(error <= 1e-5 * rms), name
    assert int(last.count) == len(limits)


def test_the_stored_run_meets_every_branch(icefall: Arrays) -> None:
    """A parity test proves as much as its run goes through."""
    gradients, start = named(icefall, "gradients/"), named(icefall, "start/")
    values, last, states = run(recipe(), start, gradients)
    clipped = np.asarray(states.clipping.norms).max(axis=1) > np.asarray(states.clipping.limit)
    assert clipped.any() and not np.isfinite(last.clipping.norms).all()
    assert float(np.abs(values["bounded"]).max()) == 10.0 > float(start["bounded"][0, 0]), "held at the largest value"
    rms = {name: np.asarray(states.tensors[name].rms) for name in start}
    assert rms["large"][0] > 3.0 and rms["large"][-1] < rms["large"][0], "shrinks from above the largest size"
    assert rms["small"][0] < 1e-5 < float(jnp.abs(values["small"]).max()), "grows from below the smallest"
    assert rms["zero"][0] == 0.0 < rms["zero"][-1]
    free, _, _ = run(recipe(clipping_scale=None), start, {name: each[:40] for name, each in gradients.items()})
    assert not np.allclose(free["matrix"][39], values["matrix"][39], rtol=1e-3), "clipping matters"


@pytest.mark.parametrize("cast", [int, np.float32, jnp.int32])
def test_eden_is_icefalls(icefall: Arrays, cast: Any) -> None:
    schedule = eden(0.045, steps_scale=7500, epochs_scale=3.5, steps_per_epoch=4975)
    rates = [float(schedule(cast(step))) for step in icefall["eden"][:, 0]]
    np.testing.assert_allclose(rates, 0.045 * icefall["eden"][:, 2], rtol=1e-5)


def test_eden_of_the_stored_run(icefall: Arrays) -> None:
    schedule = jax.jit(eden(0.05, steps_scale=40, epochs_scale=2, steps_per_epoch=7, warmup_steps=12))
    rates = [float(schedule(step)) for step in range(len(icefall["rates"]))]
    np.testing.assert_allclose(rates, icefall["rates"], rtol=1e-5)


def test_eden_warms_up_from_its_start_or_not_at_all() -> None:
    assert float(eden(1.0, 1e9, 1e9, 10, warmup_steps=100, warmup_start=0.25)(0)) == 0.25
    assert float(eden(1.0, 1e9, 1e9, 10, warmup_steps=100, warmup_start=0.25)(50)) == pytest.approx(0.625)
    assert float(eden(1.0, 1e9, 1e9, 10, warmup_steps=0)(0)) == 1.0


def test_eden_begins_epochs_on_time() -> None:
    """Steps per epoch that no float divides evenly, on the compiled way too."""
    for length in (3, 7, 49, 4975, 12345):
        schedule = jax.jit(eden(1.0, 1e9, 1e-3, length, warmup_steps=0))
        steps = np.array([n * length + offset for n in range(1, 60) for offset in (-1, 0)])
        epochs = (np.asarray(jax.vmap(schedule)(steps), np.float64) ** -4 - 1) ** 0.5 * 1e-3
        np.testing.assert_allclose(epochs, steps // length, atol=1e-3 * 60)


def test_steps_follow_the_tensors_size_and_not_the_gradients() -> None:
    generator = np.random.default_rng(0)
    start = generator.standard_normal((6, 5)).astype(np.float32)
    gradients = generator.standard_normal((9, 6, 5)).astype(np.float32)
    optimizer = scaled_adam(0.01, clipping_scale=None, param_max_rms=1e3)
    plain, _, _ = run(optimizer, {"kernel": start}, {"kernel": gradients})
    louder, _, _ = run(optimizer, {"kernel": start}, {"kernel": 1000 * gradients})
    larger, _, _ = run(optimizer, {"kernel": 64 * start}, {"kernel": gradients})
    np.testing.assert_allclose(louder["kernel"], plain["kernel"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(larger["kernel"], 64 * plain["kernel"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 25])
def test_a_gradient_that_is_not_finite_is_a_zero_gradient(icefall: Arrays, value: float, at: int) -> None:
    start = named(icefall, "start/")
    gradients = {
        name: jnp.nan_to_num(each[:36], posinf=1.0, neginf=1.0) for name, each in named(icefall, "gradients/").items()
    }
    broken = dict(gradients, matrix=gradients["matrix"].at[at, 1, 2].set(value))
    silent = {name: each.at[at].set(0.0) for name, each in gradients.items()}
    values, last, states = run(recipe(), start, broken)
    expected, _, _ = run(recipe(), start, silent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((values, last.tensors)))
    for name in start:  # later limits differ: one norm of the period is another
        np.testing.assert_array_equal(values[name][: at + 1], expected[name][: at + 1])
    assert np.isfinite(last.clipping.limit)


def test_a_period_of_gradients_that_are_not_finite_leaves_the_limit(icefall: Arrays) -> None:
    gradients = {name: jnp.concatenate([each[:17], each[:32]]) for name, each in named(icefall, "gradients/").items()}
    gradients["vector"] = gradients["vector"].at[17:33].set(jnp.nan)
    _, _, states = run(recipe(), named(icefall, "start/"), gradients)
    limits = np.asarray(states.clipping.limit)
    assert np.isfinite(limits[16]) and limits[32] == limits[16] and np.isfinite(limits[48])


@pytest.mark.parametrize("period", [1, 5, 10, 20, 100])
def test_limits_of_any_period(period: int) -> None:
    """The limit against the definition: twice the median of the last norms, four times while they are few."""
    norms = np.abs(np.random.default_rng(period).standard_normal(130)).astype(np.float32) + 0.1
    optimizer = scaled_adam(0.0, clipping_update_period=period, scalar_lr_scale=1.0)
    _, _, states = run(optimizer, {"scale": jnp.ones(())}, {"scale": norms})
    limit, limits = np.inf, []
    for step in range(130):
        if step in (10, 20, 40) and step < period:
            limit = 4 * np.sort(norms[1 : step + 1])[step // 4 * 2]
        elif step and step % period == 0:
            limit = 2 * np.sort(norms[step - period + 1 : step + 1])[min(period // 4 * 2, period - 1)]
        limits.append(limit)
    np.testing.assert_allclose(states.clipping.limit, limits, rtol=1e-6)


@pytest.mark.parametrize("clipping_scale", [2.0, None])
def test_a_checkpoint_goes_on_bit_for_bit(icefall: Arrays, clipping_scale: float | None, tmp_path: Path) -> None:
    optimizer, start = recipe(clipping_scale), {"encoder": named(icefall, "start/")}
    first, second = (
        {"encoder": {n: each[a:b] for n, each in named(icefall, "gradients/").items()}} for a, b in ((0, 18), (18, 36))
    )
    values, state, _ = run(optimizer, start, first)
    halfway = jax.tree.map(lambda each: each[-1], values)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"optimizer": state})
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda: {"optimizer": optimizer.init(start)})
        restored = checkpointer.restore(tmp_path / "state", abstract)["optimizer"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    expected, _, _ = run(optimizer, halfway, second, state)
    resumed, _, _ = run(optimizer, halfway, second, restored)
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)


def test_state_can_be_donated(icefall: Arrays) -> None:
    """No two arrays of a fresh state share memory."""
    parameters, gradients = (
        named(icefall, "start/"),
        {name: each[0] for name, each in named(icefall, "gradients/").items()},
    )
    optimizer = recipe()
    update = jax.jit(lambda state: optimizer.update(gradients, state, parameters)[1], donate_argnums=0)
    assert int(update(update(optimizer.init(parameters))).count) == 2


def test_narrow_parameters_and_gradients_keep_a_float32_state() -> None:
    parameters = {"kernel": jnp.ones((3, 2), jnp.bfloat16), "log_scale": jnp.ones((), jnp.bfloat16)}
    optimizer = scaled_adam(0.01)
    updates, state = optimizer.update(parameters, optimizer.init(parameters), parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert optax.apply_updates(parameters, updates)["kernel"].dtype == jnp.bfloat16


def test_scaled_adam_asks_for_the_parameters() -> None:
    optimizer = scaled_adam(0.01)
    gradients = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="parameters"):
        optimizer.update(gradients, optimizer.init(gradients))


def test_scaled_adam_learns() -> None:
    """A quadratic of three scales, whose solution has other sizes than the start."""
    generator = np.random.default_rng(1)
    target = {"kernel": generator.standard_normal((4, 4)) * 0.3, "bias": generator.standard_normal(4), "scale": 0.8}
    target = jax.tree.map(lambda each: jnp.asarray(each, jnp.float32), target)
    parameters = jax.tree.map(lambda each: jnp.full(each.shape, 0.05, jnp.float32), target)
    optimizer = scaled_adam(eden(0.05, 300, 1e9, 1e9, warmup_steps=20))

    def loss(parameters: Any) -> jax.Array:
        return sum(jnp.sum((parameters[name] - target[name]) ** 2) for name in target)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        parameters, state = carry
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value

    _, values = jax.jit(lambda *start: jax.lax.scan(step, start, None, length=600))(
        parameters, optimizer.init(parameters)
    )
    assert float(values[-1]) < 1e-3 * float(values[0])


def test_adamw_decays_kernels_and_embeddings_alone() -> None:
    layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    parameters = {
        "layers": {"0": layer},
        "embedding": jnp.ones((3, 2)),
        "log_scale": jnp.ones(()),
        "kernel": {"b": jnp.ones(1)},
    }
    optimizer = adamw(lambda step: 0.1, weight_decay=0.5, clip_norm=1.0)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    after = optax.apply_updates(parameters, updates)
    np.testing.assert_allclose(after["layers"]["0"]["kernel"], 0.95)
    np.testing.assert_allclose(after["embedding"], 0.95)
    for same in (after["layers"]["0"]["bias"], after["log_scale"], after["kernel"]["b"]):
        np.testing.assert_array_equal(same, 1.0)


def test_adamw_clips_to_the_global_norm() -> None:
    """Two steps, the first with a large gradient: its share of the means is that of a gradient of norm 1."""
    optimizer = adamw(lambda step: 0.1, weight_decay=0.0, clip_norm=1.0)
    parameters = {"bias": jnp.zeros(2)}

    def after(*gradients: list[float]) -> np.ndarray:
        state, values = optimizer.init(parameters), parameters
        for gradient in gradients:
            updates, state = optimizer.update({"bias": jnp.array(gradient)}, state, values)
            values = optax.apply_updates(values, updates)
        return np.asarray(values["bias"])

    np.testing.assert_allclose(after([300.0, 400.0], [0.1, 0.2]), after([0.6, 0.8], [0.1, 0.2]), rtol=1e-5)
    assert not np.allclose(after([0.3, 0.4], [0.1, 0.2]), after([0.6, 0.8], [0.1, 0.2]), rtol=1e-3)


def test_warmup_cosine() -> None:
    schedule = warmup_cosine(2.0, warmup_steps=10, total_steps=110, final_share=0.1)
    assert [float(schedule(step)) for step in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
    middle = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert [float(schedule(step)) for step in (60, 110, 500)] == pytest.approx([middle, 0.2, 0.2])


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_runs_shorter_than_their_warmup(total: int) -> None:
    schedule = warmup_cosine(1.0, warmup_steps=500, total_steps=total, final_share=0.02)
    rates = [float(schedule(step)) for step in range(total + 1)]
    assert max(rates) == pytest.approx(1.0) and rates[-1] == pytest.approx(0.02)
