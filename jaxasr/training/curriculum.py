"""What a run makes easier at its beginning, and how short clips become longer ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxasr.training.augmentation import AugmentationConfig


@dataclass(frozen=True)
class CurriculumConfig:
    """Joined strings of short clips, and first epochs and steps that are easier than the others. Times in seconds.

    Clips shorter than `join_below` are joined to strings of 1 to `join_most` clips of one speaker, whom a column of the
    manifest names. `gap_seconds`: the shortest and the longest pause before, between and after the clips of a string.
    `join_level_db`: the levels of these clips differ by up to so much either way. `repeat_share`: how often a joined
    clip is followed by another one of the same text, which transducers otherwise learn to hear as one. `edge_share` of
    the longer clips get such pauses at their ends as well, where the bucket has room for them.

    `growth`: the longest items of epochs 0, 1, ..., short ones first. `clean_epochs`: so many epochs at the beginning
    have no noise, room or telephone added. `gentle_steps`: SpecAugment's masks and dropout have strength 0 up to the
    first of these steps, counted from 1, and full strength from the second on. ValueError names bad fields.
    """

    join_below: float = 2.0
    join_most: int = 10
    gap_seconds: tuple[float, float] = (0.05, 0.4)
    join_level_db: float = 6.0
    repeat_share: float = 0.0
    edge_share: float = 0.5
    growth: tuple[float, ...] = ()
    clean_epochs: int = 0
    gentle_steps: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not 0 <= self.gap_seconds[0] <= self.gap_seconds[1]:
            raise ValueError("gap_seconds must be the shortest and the longest gap")
        if self.join_most < 1:
            raise ValueError("join_most must be at least 1")
        if self.join_level_db < 0:
            raise ValueError("join_level_db must not be negative")
        if not (0 <= self.edge_share <= 1 and 0 <= self.repeat_share <= 1):
            raise ValueError("edge_share and repeat_share must lie in 0..1")
        if self.clean_epochs < 0:
            raise ValueError("clean_epochs must not be negative")
        if not 0 <= self.gentle_steps[0] <= self.gentle_steps[1]:
            raise ValueError("gentle_steps must be two numbers of steps, the lower one first")

    def longest(self, epoch: int, bucket: float) -> float:
        """The longest item (s) of an epoch, counted from 0, where the largest bucket holds `bucket` seconds."""
        return min([*self.growth[epoch : epoch + 1], bucket])

    def augmentation(self, epoch: int, config: AugmentationConfig) -> AugmentationConfig:
        """What is done to the sound in an epoch, counted from 0."""
        if epoch >= self.clean_epochs:
            return config
        return dataclasses.replace(
            config, noise_probability=0.0, reverberation_probability=0.0, telephone_probability=0.0
        )

    def strength(self, done: jax.Array | int) -> jax.Array:
        """The strength, 0..1, of masks and dropout in the step after `done` steps: ()."""
        gentle, full = self.gentle_steps
        step = jnp.asarray(done + 1)
        return jnp.where(step >= full, 1.0, jnp.maximum((step - gentle) / max(full - gentle, 1), 0.0))
