"""A training recipe: everything that a run is made of except its data, as a yaml file writes it."""

from __future__ import annotations

import dataclasses
import os
from importlib.resources import files
from pathlib import Path
from typing import Literal

import optax

from jaxasr.configuration import from_mapping
from jaxasr.errors import ConfigError
from jaxasr.files import read_yaml
from jaxasr.model_config import ModelConfig
from jaxasr.training.augmentation import AugmentationConfig
from jaxasr.training.curriculum import CurriculumConfig
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

    def build(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
        """The gradient transformation; `learning_rate` is a function of the step."""
        if self.kind == "scaled_adam":
            return scaled_adam(learning_rate)
        return adamw(learning_rate, self.weight_decay, self.clip_norm)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run's settings. ValueError names bad fields.

    `steps`: updates in all. `model`: what is trained, with the vocabulary's size in place of the sizes given; None
    where a run starts from a trained model. `dropout`: in training, this share of the channels that every residual
    module of the encoder adds is zeroed. `ctc_weight`: the weight of the CTC loss where there is another head beside
    it. `label_smoothing`, `sampled`: of a parallel head, the probability that its targets give to other tokens, and the
    share of wrong tokens whose number of true embeddings it is shown. `average`: the decay of the running mean of the
    weights, which is what is evaluated and stored. `joiner_bytes`: the memory that the joiner's outputs may take;
    larger outputs are computed in pieces. `compute`: the type of the kernels in a step and, except on CPUs, of the
    activations. `stored`: the type in which the model is written.
    `checkpoint_steps`, `evaluate_steps`: steps from one checkpoint, or evaluation, to the next. `seed` decides
    everything that is random.
    """

    steps: int
    model: ModelConfig | None = None
    vocabulary: VocabularyConfig = VocabularyConfig()
    data: DataConfig = DataConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    dropout: float = 0.0
    ctc_weight: float = 0.3
    label_smoothing: float = 0.1
    sampled: float = 0.75
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
        if self.seed < 0:
            raise ValueError("seed must not be negative")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must lie in 0..1, without 1")
        if not 0 <= self.average < 1:
            raise ValueError("average must lie in 0..1, without 1")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.sampled <= 1:
            raise ValueError("label_smoothing and sampled must lie in 0..1, label_smoothing without 1")
        if self.ctc_weight < 0:
            raise ValueError("ctc_weight must not be negative")

    def of_a_step(self) -> Recipe:
        """The recipe with defaults in place of all that a step, given its batch and learning rate, does not depend on.

        Steps of recipes that differ in nothing else share a compiled program.
        """
        return Recipe(
            steps=1,
            curriculum=CurriculumConfig(gentle_steps=self.curriculum.gentle_steps),
            augmentation=self.augmentation,
            optimizer=OptimizerConfig(
                kind=self.optimizer.kind,
                weight_decay=self.optimizer.weight_decay,
                clip_norm=self.optimizer.clip_norm,
            ),
            dropout=self.dropout,
            ctc_weight=self.ctc_weight,
            label_smoothing=self.label_smoothing,
            sampled=self.sampled,
            average=self.average,
            joiner_bytes=self.joiner_bytes,
            compute=self.compute,
            seed=self.seed,
        )


def read_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """A recipe from a yaml file, or by the name of one that comes with jaxasr. ConfigError names what is wrong."""
    path = Path(name_or_path)
    if not path.is_file():
        path = Path(str(files("jaxasr.configs.training") / f"{name_or_path}.yaml"))
        if not path.exists():
            raise ConfigError(f"{name_or_path}: no such recipe file, nor one of {', '.join(named_recipes())}")
    return from_mapping(Recipe, read_yaml(path), str(path))


def named_recipes() -> list[str]:
    """Names of the recipes that come with jaxasr."""
    folder = files("jaxasr.configs.training")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
