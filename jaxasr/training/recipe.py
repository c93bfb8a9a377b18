"""A training recipe: everything that a run is made of but its data, as a yaml file writes it."""

from __future__ import annotations

import dataclasses
import os
from importlib.resources import files
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import yaml

from jaxasr.configuration import from_mapping
from jaxasr.errors import ConfigError
from jaxasr.model import ModelConfig
from jaxasr.training.augmentation import AugmentationConfig
from jaxasr.training.data import DataConfig
from jaxasr.training.optimizers import adamw, eden, scaled_adam, warmup_cosine
from jaxasr.training.vocabulary import VocabularyConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """`adamw` under a cosine, or the Zipformer recipe's `scaled_adam` under Eden.

    `learning_rate` is the peak (0.001 and 0.045 if unset), reached after `warmup_steps`. AdamW decays kernels and
    embeddings by `weight_decay` and clips gradients to the norm `clip_norm`; its cosine ends at `final_share` of the
    peak. Eden falls like one over the roots of step / `eden_steps` and epoch / `eden_epochs`.
    """

    kind: Literal["adamw", "scaled_adam"] = "adamw"
    learning_rate: float | None = None
    warmup_steps: int = 500
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    final_share: float = 0.02
    eden_steps: float = 7500.0
    eden_epochs: float = 3.5

    def __post_init__(self) -> None:
        if min(self.peak, self.clip_norm, self.eden_steps, self.eden_epochs) <= 0:
            raise ValueError("learning_rate, clip_norm, eden_steps and eden_epochs must be positive")
        if min(self.warmup_steps, self.weight_decay) < 0 or not 0 <= self.final_share <= 1:
            raise ValueError("warmup_steps and weight_decay must not be negative, final_share must lie in 0..1")

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        default = 0.045 if self.kind == "scaled_adam" else 0.001
        return default if self.learning_rate is None else self.learning_rate

    def schedule(self, steps: int, steps_per_epoch: float) -> optax.Schedule:
        """The learning rate as a function of the step."""
        if self.kind == "scaled_adam":
            return eden(self.peak, self.eden_steps, self.eden_epochs, steps_per_epoch, self.warmup_steps)
        return warmup_cosine(self.peak, self.warmup_steps, steps, self.final_share)

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The optimizer."""
        if self.kind == "scaled_adam":
            return scaled_adam(schedule)
        return adamw(schedule, self.weight_decay, self.clip_norm)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run's settings.

    `model`: what is trained; its vocabulary sizes become those of the vocabulary. None where a run starts from a model.
    `steps`: updates in all. `clean_epochs`: the first ones, whose sound has no noise, room or telephone put on it.
    `dropout`: the share of what every residual module of the encoder adds that is zeroed. `gentle_steps`: SpecAugment's
    masks and dropout are nothing up to the first of these steps, counted from 1, and whole from the second on.
    `ctc_weight`: of the CTC loss beside the transducer's, of models with both heads.
    `average`: decay of the running mean of the weights that is evaluated and stored. `joiner_bytes`: what the joiner's
    outputs may take; more are computed in pieces. `compute`: the type of kernels and, but on CPUs, activations.
    `stored`: the type in which the model is written. `checkpoint_steps`, `evaluate_steps`: how often.
    """

    steps: int
    model: ModelConfig | None = None
    vocabulary: VocabularyConfig = VocabularyConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    clean_epochs: int = 0
    gentle_steps: tuple[int, ...] = (0, 0)
    dropout: float = 0.0
    ctc_weight: float = 0.3
    average: float = 0.999
    joiner_bytes: int = 1 << 28
    compute: Literal["float32", "bfloat16"] = "float32"
    stored: Literal["float32", "float16"] = "float32"
    checkpoint_steps: int = 200
    evaluate_steps: int = 400
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.checkpoint_steps, self.evaluate_steps, self.joiner_bytes) < 1:
            raise ValueError("steps, checkpoint_steps, evaluate_steps and joiner_bytes must be positive")
        if min(self.seed, self.clean_epochs) < 0:
            raise ValueError("seed and clean_epochs must not be negative")
        if len(self.gentle_steps) != 2 or not 0 <= self.gentle_steps[0] <= self.gentle_steps[1]:
            raise ValueError("gentle_steps must be two numbers of steps, the lower one first")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must lie in 0..1, without 1")
        if not 0 <= self.average < 1:
            raise ValueError("average must lie in 0..1")
        if self.ctc_weight < 0:
            raise ValueError("ctc_weight must not be negative")

    def strength(self, done: jax.Array | int) -> jax.Array:
        """How much of masks and dropout, 0..1, is in force in the step behind `done` ones: ()."""
        gentle, whole = self.gentle_steps
        step = jnp.asarray(done + 1)
        return jnp.where(step >= whole, 1.0, jnp.maximum((step - gentle) / max(whole - gentle, 1), 0.0))


def read_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """A recipe from a yaml file, or by the name of one that comes with jaxasr. ConfigError names what is wrong."""
    path = Path(name_or_path)
    if not path.is_file():
        path = Path(str(files("jaxasr.configs.training") / f"{name_or_path}.yaml"))
        if not path.exists():
            raise ConfigError(f"{name_or_path}: no such recipe file, nor one of {', '.join(named_recipes())}")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"{path} is not valid yaml") from None
    return from_mapping(Recipe, mapping, str(path))


def named_recipes() -> list[str]:
    """Names of the recipes that come with jaxasr."""
    folder = files("jaxasr.configs.training")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
