"""The training objective: a batch's loss at each head of a model, by the head's role, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxasr.errors import ConfigError
from jaxasr.heads.ctc import CTC
from jaxasr.heads.parallel import Parallel
from jaxasr.heads.transducer import Transducer
from jaxasr.layers.dropout import Dropout
from jaxasr.model import Model
from jaxasr.model_config import ModelConfig
from jaxasr.training.augmentation import spec_augment
from jaxasr.training.losses import choose_frames_at_once, ctc_loss, transducer_loss
from jaxasr.training.parallel import parallel_loss, random_order
from jaxasr.training.recipe import Recipe


class Targets(NamedTuple):
    """What the loss of a head compares: encoded (B, T, D) of lengths (B,), and labels (B, U) of lengths (B,).

    `key`: of what a loss draws at random, where it does.
    """

    encoded: jax.Array
    encoded_lengths: jax.Array
    labels: jax.Array
    label_lengths: jax.Array
    key: jax.Array | None = None


class Losses(NamedTuple):
    """Losses of a batch in nats, summed over its rows, by the role of the head: each ().

    `tokens` (): the labels of all rows, and one more for the end of each row that is not empty.
    """

    sums: dict[str, jax.Array]
    tokens: jax.Array

    def per_token(self) -> dict[str, jax.Array]:
        """The losses by role, divided by the number of tokens."""
        return {role: loss / jnp.maximum(self.tokens, 1.0) for role, loss in self.sums.items()}


def _transducer(head: Transducer, targets: Targets, recipe: Recipe) -> jax.Array:
    """The loss of each row: (B,)."""
    encoded, encoded_lengths, labels, label_lengths, _ = targets
    rows, frames, _ = encoded.shape
    frames_at_once = choose_frames_at_once(
        rows, frames, labels.shape[1], head.config.vocabulary_size, recipe.joiner_bytes
    )
    return transducer_loss(
        head.combine,
        head.project(encoded),
        head.predict(labels),
        labels,
        encoded_lengths,
        label_lengths,
        blank_id=head.blank_id,
        frames_at_once=frames_at_once,
    )


def _ctc(head: CTC, targets: Targets, recipe: Recipe) -> jax.Array:
    """The loss of each row: (B,)."""
    encoded, encoded_lengths, labels, label_lengths, _ = targets
    return ctc_loss(head(encoded), labels, encoded_lengths, label_lengths, blank_id=head.config.blank_id)


def _parallel(head: Parallel, targets: Targets, recipe: Recipe) -> jax.Array:
    """The loss of each row: (B,)."""
    order = None
    if targets.key is not None:
        order = random_order(targets.key, targets.label_lengths + 1, targets.labels.shape[1] + 1)
    return parallel_loss(head, *targets[:4], smoothing=recipe.label_smoothing, sampled=recipe.sampled, order=order)


# The roles of the heads that can be trained, each with its loss: (head, targets, recipe) -> (B,) float32.
HEAD_LOSSES: dict[str, Callable[..., jax.Array]] = {
    "transducer": _transducer,
    "ctc": _ctc,
    "parallel": _parallel,
}


def require_losses(config: ModelConfig) -> None:
    """ConfigError where a head of the model has no loss here."""
    if lacking := [role for role in config.heads if role not in HEAD_LOSSES]:
        raise ConfigError(f"{config.name}: jaxasr has no loss for a {lacking[0]} head: train another model")
    if config.parallel is not None and (config.parallel.chunks or config.parallel.predictor.peaks):
        what = "chunks" if config.parallel.chunks else "a second head of its predictor"
        raise ConfigError(f"{config.name}: jaxasr has no loss for {what}: train a model without")
    if config.transducer is not None and config.transducer.durations:
        raise ConfigError(
            f"{config.name}: its transducer predicts durations (TDT), for which jaxasr has no loss: train it without "
            "durations, or with a ctc head alone"
        )


def batch_losses(
    model: Model,
    recipe: Recipe,
    waveforms: jax.Array,
    lengths: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
    *,
    key: jax.Array | None,
    dtype: jnp.dtype,
    strength: jax.Array | float = 1.0,
) -> Losses:
    """The losses of a batch at every head.

    waveforms (B, S) float32 of lengths (B,) in samples, labels (B, U) of lengths (B,); rows of length 0 cost nothing.
    `key` decides the recipe's masks and dropout, which have `strength` in 0..1; without a key there are none, and batch
    norms take their stored statistics instead of moving them in `model`. `dtype` is the type of the encoder's
    activations.
    """
    frames, frame_lengths = model.features(waveforms, lengths)
    dropout = loss_key = None
    if key is not None:
        model.set_attributes(use_running_average=False, raise_if_not_found=False)  # of batch norms
        mask_key, dropout_key = jax.random.split(key)
        loss_key = jax.random.fold_in(key, 1)
        frames = spec_augment(recipe.augmentation, frames, frame_lengths, mask_key, strength)
        if recipe.dropout:
            dropout = Dropout(jnp.asarray(recipe.dropout * strength), dropout_key)
    encoded, _ = model.encoder(frames.astype(dtype), frame_lengths, dropout)
    # All encoded frames are trained on, also those that a search would not be given.
    encoded_lengths = model.config.encoder.encoded_length(frame_lengths)
    used = lengths > 0
    targets = Targets(encoded, jnp.where(used, encoded_lengths, 0), labels, label_lengths, loss_key)
    sums = {}
    for role, head_loss in HEAD_LOSSES.items():
        head = getattr(model, role)
        if head is not None:
            sums[role] = jnp.where(used, head_loss(head, targets, recipe), 0.0).sum()
    return Losses(sums, tokens=jnp.where(used, label_lengths + 1, 0).sum().astype(jnp.float32))


def total_loss(recipe: Recipe, losses: Mapping[str, jax.Array]) -> jax.Array:
    """The weighted sum of the heads' losses: (). CTC counts `ctc_weight` beside another head; all else counts 1."""
    if len(losses) == 1:
        (only,) = losses.values()
        return only
    weights = {"ctc": recipe.ctc_weight}
    return sum((weights.get(role, 1.0) * loss for role, loss in losses.items()), start=jnp.zeros(()))
