"""The training loop: steps on a mesh of devices, averaged weights, checkpoints that resume bit for bit, a log."""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasr import store
from jaxasr.caches import programs_kept
from jaxasr.devices import Policy, policy
from jaxasr.errors import AudioError, ConfigError, TrainingError, listing
from jaxasr.evaluation import Errors
from jaxasr.model import AbstractModel, Model, merged, named_parameters
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.text.tokens import TokenTable
from jaxasr.training.data import Corpus, TrainingBatch, prefetch
from jaxasr.training.objective import batch_losses, require_losses, total_loss
from jaxasr.training.recipe import Recipe
from jaxasr.training.runs import Log, RunFolder, State, identify, stop_requests


@dataclasses.dataclass(frozen=True)
class Progress:
    """One step of a run.

    `step` counts from 1 to `steps`, `epoch` from 0. `losses`: the loss of each head by its role, in nats per token;
    `loss` is their weighted sum. `gradient_norm`: before clipping. `audio_seconds`: the sound that this process has
    trained on, in `seconds`.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    audio_seconds: float
    seconds: float

    def row(self) -> dict[str, float]:
        """The line of the log: all values but `steps`, with each head's loss under its role."""
        row: dict[str, float] = {}
        for name, value in dataclasses.asdict(self).items():
            row.update(value if name == "losses" else {name: value})
        del row["steps"]
        return row


@dataclasses.dataclass(frozen=True)
class Step:
    """What one update of the weights depends on besides its arrays. Equal steps share their compiled programs.

    `recipe` holds nothing that may differ between such steps: it comes from `Recipe.of_a_step`.
    """

    config: ModelConfig
    recipe: Recipe
    policy: Policy

    def optimizer(self, learning_rate: jax.Array | float) -> optax.GradientTransformation:
        """The optimizer at one learning rate."""
        return self.recipe.optimizer.build(lambda _: learning_rate)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def update(step: Step, state: State, learning_rate: jax.Array, *batch: jax.Array) -> tuple[State, dict[str, Any]]:
    """One update of the weights: the new state, and `loss`, `losses` and `gradient_norm` of the batch.

    The batch is waveforms (B, S), lengths (B,), labels (B, U), label_lengths (B,). The state given is used up.
    The learning rate () is an argument, since its schedule would make the program one of a run's length.
    """
    recipe, done = step.recipe, state["step"]
    key = jax.random.fold_in(jax.random.key(recipe.seed), done)
    strength = recipe.curriculum.strength(done)
    abstract_model = AbstractModel(step.config)

    trained, others = abstract_model.split(state["parameters"])

    def objective(trained: Parameters) -> tuple[jax.Array, tuple[dict[str, jax.Array], Parameters]]:
        model = abstract_model.fill(step.policy.cast(merged(trained, others)))
        sums = batch_losses(model, recipe, *batch, key=key, dtype=step.policy.activations, strength=strength)
        losses = sums.per_token()
        return total_loss(recipe, losses), (losses, named_parameters(model, nnx.BatchStat))

    (loss, (losses, statistics)), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
    optimizer = step.optimizer(learning_rate)
    changes, optimizer_state = optimizer.update(gradients, state["optimizer"], trained)
    parameters = merged(optax.apply_updates(trained, changes), others, statistics)
    # The averaging decay ramps up, so early weights are forgotten quickly. A mean of constants is exactly the constant.
    decay = jnp.minimum(recipe.average, (1.0 + done) / (10.0 + done))
    averaged = jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), state["averaged"], parameters)
    new = {"step": done + 1, "parameters": parameters, "averaged": averaged, "optimizer": optimizer_state}
    return new, {"loss": loss, "losses": losses, "gradient_norm": optax.tree.norm(gradients)}


def new_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Fresh parameters of a model, nested by name."""
    return named_parameters(Model(config, rngs=nnx.Rngs(seed)))


class Trainer:
    """Trains a model on a corpus in a folder of its own, where it leaves checkpoints, a log and the averaged model."""

    def __init__(
        self,
        recipe: Recipe,
        config: ModelConfig,
        parameters: Parameters,
        tokens: TokenTable,
        corpus: Corpus,
        output: Path,
        *,
        score: Callable[[Parameters], Errors] | None = None,
        card: store.ModelCard | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """`parameters` is where training starts; they are copied, in float32 whatever type they are stored in.

        `output`: the run's folder, which exists. `score` evaluates parameters on held-out utterances. `card` is the
        README of the model that is written. `devices` share each batch, all local ones if unset.
        """
        require_losses(config)
        if config.transducer is not None and config.transducer.vocabulary_size != len(tokens):
            raise ConfigError(f"the model has {config.transducer.vocabulary_size} tokens, the table {len(tokens)}")
        self.recipe, self.config, self.tokens, self.corpus = recipe, config, tokens, corpus
        self.folder = RunFolder(output)
        self.score, self.card = score, card
        self.devices = list(devices) if devices is not None else jax.local_devices()
        mesh = Mesh(np.array(self.devices), ("batch",))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec("batch"))
        # Steps per epoch, counted on the first epoch after the growth of the items' lengths.
        epoch = corpus.plan_epoch(len(corpus.curriculum.growth), recipe.seed, len(self.devices))
        # Compiled, since single operations would round otherwise than a program does.
        self._schedule = jax.jit(recipe.optimizer.schedule(recipe.steps, len(epoch)))
        self.step = Step(config, recipe.of_a_step(), policy(recipe.compute))
        self.update: Callable[..., tuple[State, dict[str, Any]]] = functools.partial(update, self.step)
        parameters = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), parameters)
        self.state: State = jax.device_put(
            {
                "step": jnp.zeros((), jnp.int32),
                "parameters": parameters,
                "averaged": jax.tree.map(jnp.array, parameters),
                "optimizer": self.step.optimizer(0.0).init(AbstractModel(config).split(parameters)[0]),
            },
            self._everywhere,
        )

    @programs_kept()
    def train(self, report: Callable[[Progress], None] | None = None) -> Parameters:
        """Run all steps that are left, write the averaged model, and return its parameters.

        A checkpoint is written every `checkpoint_steps`, at the end, where a recording cannot be read, and where Ctrl-C
        or a scheduler asks to stop: after the running step that raises KeyboardInterrupt, or calls the handler that was
        installed before. TrainingError names the batch whose loss is not finite, or what is wrong with the folder; the
        last checkpoint stays whole.
        """
        done = int(self.state["step"])
        if done > self.recipe.steps:
            raise TrainingError(f"{self.folder.path}: has done {done} steps already, more than {self.recipe.steps}")
        try:
            if done < self.recipe.steps:
                self._run(done, report)
        except (AudioError, ConfigError):  # a recording that was there when the run began
            self.save()
            raise
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise TrainingError(
                    "out of memory: lower the recipe's data.batch_seconds or joiner_bytes, and resume"
                ) from None
            raise
        self.export()
        return self.averaged

    def _run(self, done: int, report: Callable[[Progress], None] | None) -> None:
        """The steps after step `done`."""
        begun = time.monotonic()
        audio_seconds = 0.0
        with Log(self.folder, done) as log, stop_requests() as stop:
            for batch in prefetch(self.batches(done)):
                self.state, facts = self.update(self.state, *self.arguments(done, batch))
                facts = jax.tree.map(float, jax.device_get(facts))
                done += 1
                if not (math.isfinite(facts["loss"]) and math.isfinite(facts["gradient_norm"])):
                    raise TrainingError(self._not_finite(done, batch))
                audio_seconds += float(batch.lengths.sum()) / self.config.features.sample_rate
                progress = Progress(
                    step=done,
                    steps=self.recipe.steps,
                    epoch=batch.plan.epoch,
                    learning_rate=float(self._schedule(done - 1)),
                    audio_seconds=round(audio_seconds, 2),
                    seconds=round(time.monotonic() - begun, 2),
                    **facts,
                )
                log.write(progress.row())
                if report is not None:
                    report(progress)
                last = done >= self.recipe.steps
                if self.score is not None and (last or done % self.recipe.evaluate_steps == 0):
                    errors = self.score(self.averaged)
                    log.write({"step": done, "held_out_errors": errors.total, "held_out_rate": errors.rate})
                if last or stop or done % self.recipe.checkpoint_steps == 0:
                    self.save()
                if last or stop:
                    break
        if stop and done < self.recipe.steps:
            signal.raise_signal(stop[0])  # to whoever listened before
            raise KeyboardInterrupt

    @property
    def averaged(self) -> Parameters:
        """The running mean of the parameters: what is evaluated and stored."""
        averaged: Parameters = self.state["averaged"]
        return averaged

    def save(self) -> None:
        """Write a checkpoint; the one before stays until this one is whole."""
        self.folder.save(int(self.state["step"]), self.state, self._identity())

    def resume(self) -> int:
        """Go on from the newest checkpoint, and give its step; TrainingError where there is none that fits."""
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere), self.state
        )
        step, self.state = self.folder.restore(abstract, self._identity())
        return step

    def export(self) -> Path:
        """Write the averaged model to a model directory, and give its folder; what is not trained stays float32."""
        trained, others = AbstractModel(self.config).split(jax.device_get(self.averaged))
        dtype = np.dtype(self.recipe.stored)
        parameters = merged(jax.tree.map(lambda leaf: leaf.astype(dtype), trained), others)
        card = self.card or store.ModelCard(self.config.name, ())
        store.save(self.folder.model, self.config, parameters, self.tokens, card, overwrite=True)
        return self.folder.model

    def batches(self, done: int) -> Iterator[TrainingBatch]:
        """The batches of the steps after step `done`."""
        epoch = 0
        while True:
            plans = self.corpus.plan_epoch(epoch, self.recipe.seed, len(self.devices))
            for plan in plans[done:]:
                yield self.corpus.batch(plan)
            done = max(done - len(plans), 0)
            epoch += 1

    def arguments(self, done: int, batch: TrainingBatch) -> tuple[jax.Array, ...]:
        """What `update` takes after the state in the step after `done` steps; the batch's rows lie across devices."""
        learning_rate = jax.device_put(self._schedule(done), self._everywhere)
        return (learning_rate, *jax.device_put(batch.arrays(), self._rows))

    def _identity(self) -> dict[str, Any]:
        return identify(self.recipe, self.corpus.examples, len(self.devices))

    def _not_finite(self, step: int, batch: TrainingBatch) -> str:
        """The message about a batch whose loss is not finite, with the names of its rows."""
        names = [self.corpus.examples[index].name for item in batch.plan.items for index in item.examples]
        return (
            f"step {step}: the loss or its gradient is not finite; the batch holds {listing(names, 4)}; look at "
            "them, or lower the learning rate, and resume from the last checkpoint"
        )
