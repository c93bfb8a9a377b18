"""Optimizers and learning rates: AdamW put together from optax, and ScaledAdam with Eden, the Zipformer's own recipe.

ScaledAdam (Yao et al. 2023, arXiv 2310.11230, section 3.5) makes each tensor's step proportional to the tensor's
root-mean-square, and learns that size besides, as if a tensor were a scale times a direction.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Before a full period of gradient norms exists, the clipping limit is set at these steps, widened by _EARLY_WIDTH
# because norms still change quickly. Both as in icefall's optim.py.
_EARLY_STEPS = (10, 20, 40)
_EARLY_WIDTH = 2.0
# The largest relative change of a tensor's size in one size update. As in icefall's optim.py.
_LARGEST_RESIZE = 0.1


def adamw(learning_rate: optax.Schedule, weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """AdamW after clipping to a global norm; only kernels and embeddings decay, not biases, norms and scales."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=_decaying),
    )


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int, final_share: float) -> optax.Schedule:
    """A straight rise to `peak`, then half a cosine down to `final_share` of it at `total_steps`."""
    warmup = min(warmup_steps, total_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total_steps, peak * final_share)


def _decaying(parameters: dict[str, Any]) -> dict[str, Any]:
    """True for every leaf that is called kernel or embedding."""
    return {
        name: _decaying(value) if isinstance(value, dict) else name in ("kernel", "embedding")
        for name, value in parameters.items()
    }


def eden(
    base: float,
    steps_scale: float,
    epochs_scale: float,
    steps_per_epoch: float,
    warmup_steps: float = 500,
    warmup_start: float = 0.5,
) -> optax.Schedule:
    """Eden: falls like one over the roots of step and epoch, late in either; `base` about 0.045 with `scaled_adam`.

    base * (1 + (step / steps_scale)²)^-¼ * (1 + (epoch / epochs_scale)²)^-¼ * warm-up, a line from `warmup_start` to 1.
    Epochs are whole ones, from 0, of `steps_per_epoch` steps: icefall's `Eden` whose batch is the step and whose epoch
    is set when an epoch begins. icefall's loop counts its first batch as 1, optax' steps begin at 0.
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        # Half a step, since XLA may divide by multiplying with a rounded reciprocal.
        epoch = jnp.floor((step + 0.5) / steps_per_epoch)
        decay = (1 + (step / steps_scale) ** 2) ** -0.25 * (1 + (epoch / epochs_scale) ** 2) ** -0.25
        warm = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
        return base * decay * (warmup_start + (1 - warmup_start) * warm)

    return schedule


class TensorState(NamedTuple):
    """What ScaledAdam keeps of one tensor, float32. Single numbers use the first two alone."""

    momentum: jax.Array  # moving mean of the tensor's steps, its shape
    squares: jax.Array  # moving mean of its squared gradients, its shape
    rms: jax.Array  # (), its size, measured every size_update_period steps
    size_gradients: jax.Array  # (size_update_period,), the last gradients of the loss by the logarithm of its size
    size_squares: jax.Array  # (), moving mean of their squares


class ClippingState(NamedTuple):
    """The last gradient norms (clipping_update_period,), weighted by the tensors' sizes, and the limit they set, ()."""

    norms: jax.Array
    limit: jax.Array


class ScaledAdamState(NamedTuple):
    """State of `scaled_adam`; `tensors` is the tree of parameters with a TensorState for each, `count` () int32."""

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
    tensors: Any
    clipping: ClippingState | None


def scaled_adam(
    learning_rate: optax.Schedule | float,
    *,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    scalar_lr_scale: float = 0.1,
    scalar_max: float = 10.0,
    param_min_rms: float = 1e-5,
    param_max_rms: float = 3.0,
    size_update_period: int = 4,
    clipping_scale: float | None = 2.0,
    clipping_update_period: int = 100,
) -> optax.GradientTransformation:
    """ScaledAdam with its own clipping, as `ScaledAdam` of icefall's egs/librispeech/ASR/zipformer/optim.py.

    `scalar_lr_scale` times the learning rate moves the sizes of tensors, every `size_update_period` steps and within
    `param_min_rms` and `param_max_rms`, and tensors of a single number, which are kept within ±`scalar_max`. Gradients
    are scaled down where their norm exceeds `clipping_scale` times the median of the last `clipping_update_period`
    norms; None leaves them. Each array of the tree is one tensor: arrays that stack layers would share one size.

    Differs from icefall where a gradient is not finite and clipping is on: such a step counts as a zero gradient from
    the first step on, and a median that is not finite leaves the limit as it was. icefall drops gradients with an
    infinite norm once it has a limit, takes NaN as it is, and raises on such a median.
    """
    beta1, beta2 = betas

    def init(params: optax.Params) -> ScaledAdamState:
        def tensor(parameter: jax.Array) -> TensorState:
            return TensorState(
                momentum=jnp.zeros(parameter.shape, jnp.float32),
                squares=jnp.zeros(parameter.shape, jnp.float32),
                rms=_rms(parameter.astype(jnp.float32)),
                size_gradients=jnp.zeros((size_update_period,), jnp.float32),
                size_squares=jnp.zeros((), jnp.float32),
            )

        clipping = None
        if clipping_scale is not None:
            norms = jnp.zeros((clipping_update_period,), jnp.float32)
            clipping = ClippingState(norms, limit=jnp.full((), jnp.inf, jnp.float32))
        return ScaledAdamState(jnp.zeros((), jnp.int32), jax.tree.map(tensor, params), clipping)

    def update(
        updates: optax.Updates, state: ScaledAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaledAdamState]:
        if params is None:
            raise ValueError("scaled_adam needs the parameters: update(gradients, state, parameters)")
        count = state.count
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        gradients = jax.tree.map(lambda gradient: gradient.astype(jnp.float32), updates)
        clipping = state.clipping
        if clipping is not None and clipping_scale is not None:
            norm = _sized_norm(gradients, state.tensors, scalar_lr_scale)
            clipping = _update_clipping(clipping, norm, count, clipping_scale)
            factor = jnp.minimum(1.0, clipping.limit / (norm + 1e-20))
            factor = jnp.where(jnp.isfinite(norm), factor, 0.0)
            gradients = jax.tree.map(lambda gradient: jnp.where(factor > 0, gradient * factor, 0.0), gradients)

        def step(gradient: jax.Array, parameter: jax.Array, tensor: TensorState) -> tuple[jax.Array, TensorState]:
            parameter = parameter.astype(jnp.float32)
            squares = beta2 * tensor.squares + (1 - beta2) * gradient**2
            correction = _bias_correction(beta2, count + 1)
            corrected = jnp.where(correction < 0.99, squares / correction, squares)
            change = -rate * gradient / (jnp.sqrt(corrected) + eps)
            if parameter.size == 1:
                momentum = beta1 * tensor.momentum + (1 - beta1) * change * scalar_lr_scale
                bounded = jnp.clip(parameter + momentum, -scalar_max, scalar_max)
                return bounded - parameter, tensor._replace(momentum=momentum, squares=squares)
            tensor = tensor._replace(
                size_gradients=_replace_oldest(tensor.size_gradients, count, jnp.sum(parameter * gradient))
            )
            due = count % size_update_period == size_update_period - 1
            tensor = tensor._replace(rms=jnp.where(due, _rms(parameter), tensor.rms))
            change *= jnp.maximum(tensor.rms, param_min_rms)
            growth, size_squares = resize(tensor)
            due &= count > 0
            change += parameter * jnp.where(due, growth, 0.0)
            momentum = beta1 * tensor.momentum + (1 - beta1) * change
            size_squares = jnp.where(due, size_squares, tensor.size_squares)
            return momentum, tensor._replace(momentum=momentum, squares=squares, size_squares=size_squares)

        def resize(tensor: TensorState) -> tuple[jax.Array, jax.Array]:
            """A step of Adam in the logarithm of the tensor's size: the relative change, and the new mean square."""
            beta = beta2**size_update_period
            squares = beta * tensor.size_squares + (1 - beta) * jnp.mean(tensor.size_gradients**2)
            correction = _bias_correction(beta, (count + 1) // size_update_period)
            gradient = tensor.size_gradients.sum()
            growth = -rate * scalar_lr_scale * jnp.sqrt(correction) * gradient / (jnp.sqrt(squares) + eps)
            growth = jnp.where(tensor.rms < param_min_rms, 0.0, growth)
            growth = jnp.clip(growth, -_LARGEST_RESIZE, _LARGEST_RESIZE)
            return jnp.minimum(growth, (param_max_rms - tensor.rms) / tensor.rms), squares

        results = jax.tree.map(step, gradients, params, state.tensors)
        changes = jax.tree.map(lambda _, result: result[0], gradients, results)
        tensors = jax.tree.map(lambda _, result: result[1], gradients, results)
        return changes, ScaledAdamState(optax.safe_increment(count), tensors, clipping)

    return optax.GradientTransformation(init, update)


def _update_clipping(clipping: ClippingState, norm: jax.Array, count: jax.Array, scale: float) -> ClippingState:
    """Clipping with one more norm, and a new limit where one is due. The first step's norm is not counted."""
    period = clipping.norms.size
    norms = jnp.where(count > 0, _replace_oldest(clipping.norms, count, norm), clipping.norms)
    early = jnp.isin(count, jnp.array([step for step in _EARLY_STEPS if step < period], jnp.int32))
    known = jnp.where(early, count, period)  # norms so far: the largest, since the others are still zero
    # The median, with icefall's index.
    median = jnp.sort(norms)[period - known + jnp.minimum(known - 1, known // 4 * 2)]
    due = (early | (count % period == 0)) & (count > 0) & jnp.isfinite(median)
    limit = scale * median * jnp.where(early, _EARLY_WIDTH, 1.0)
    return ClippingState(norms, jnp.where(due, limit, clipping.limit))


def _sized_norm(gradients: Any, tensors: Any, scalar_scale: float) -> jax.Array:
    """The norm of all gradients, each weighted by what its tensor's step is proportional to: () float32."""

    def square(gradient: jax.Array, tensor: TensorState) -> jax.Array:
        return jnp.sum((gradient * (scalar_scale if gradient.size == 1 else tensor.rms)) ** 2)

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(square, gradients, tensors))))


def _replace_oldest(values: jax.Array, count: jax.Array, value: jax.Array) -> jax.Array:
    """`values` (N,), which are written in turn, with `value` in place of the oldest one."""
    return values.at[count % values.size].set(value)


def _rms(parameter: jax.Array) -> jax.Array:
    """Root of the mean square, ()."""
    return jnp.sqrt(jnp.mean(parameter**2))


def _bias_correction(beta: float, steps: jax.Array) -> jax.Array:
    """1 - beta^steps, without the cancellation that float32 would bring."""
    return -jnp.expm1(steps * math.log(beta))
