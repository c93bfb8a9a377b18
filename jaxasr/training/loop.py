"""The training loop: steps on a mesh of devices, averaged weights, checkpoints that resume bit for bit, a log."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.devices import policy
from jaxasr.errors import AudioError, ConfigError, TrainingError
from jaxasr.evaluation import Errors
from jaxasr.features.kaldi import fbank
from jaxasr.files import reason, writing_file
from jaxasr.layers.dropout import Dropout
from jaxasr.model import Model, ModelConfig, Skeleton, named_parameters
from jaxasr.text.tokens import TokenTable
from jaxasr.training.augmentation import spec_augment
from jaxasr.training.data import Corpus, TrainingBatch, prefetch
from jaxasr.training.losses import choose_frames_at_once, ctc_loss, transducer_loss
from jaxasr.training.recipe import Recipe

Parameters = dict[str, Any]
CHECKPOINTS, LOG, MODEL, RUN = "checkpoints", "log.jsonl", "model", "run.json"
KEPT = 2
# What of a recipe may change when a run is resumed; all else decides what a step sees.
_FREE = ("steps", "checkpoint_steps", "evaluate_steps", "optimizer", "average", "joiner_bytes", "stored")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a step tells: its number (from 1), the epoch, losses per token in nats, and what was done so far."""

    step: int
    epoch: int
    loss: float
    transducer: float
    ctc: float
    learning_rate: float
    gradient_norm: float
    audio_seconds: float
    seconds: float


def new_parameters(config: ModelConfig, seed: int) -> Parameters:
    """Fresh parameters of a model, nested by name."""
    return named_parameters(Model(config, rngs=nnx.Rngs(seed)))


def with_vocabulary(config: ModelConfig, tokens: TokenTable) -> ModelConfig:
    """The configuration for a vocabulary's size, blank and unknown."""
    size, blank = len(tokens), tokens.blank_id or 0
    transducer, ctc = (
        dataclasses.replace(head, vocabulary_size=size, blank_id=blank) if head is not None else None
        for head in (config.transducer, config.ctc)
    )
    text = dataclasses.replace(config.text, unknown_id=tokens.unk_id)
    return dataclasses.replace(config, transducer=transducer, ctc=ctc, text=text)


def losses(
    model: Model,
    recipe: Recipe,
    waveforms: jax.Array,
    lengths: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
    key: jax.Array | None,
    dtype: jnp.dtype,
    strength: jax.Array | float = 1.0,
) -> dict[str, jax.Array]:
    """The summed losses of a batch's heads, and the number of tokens (one more a row, for its end).

    `strength` in 0..1: how much of the recipe's masks and dropout is in force; without `key` there are none.
    """
    frames, frame_lengths = fbank(model.config.features, waveforms, lengths)
    dropout = None
    if key is not None:
        mask_key, dropout_key = jax.random.split(key)
        frames = spec_augment(recipe.augmentation, frames, frame_lengths, mask_key, strength)
        if recipe.dropout:
            dropout = Dropout(jnp.asarray(recipe.dropout * strength), dropout_key)
    encoded, encoded_lengths = model.encode_frames(frames, frame_lengths, dtype, dropout)
    encoded_lengths = jnp.where(lengths > 0, encoded_lengths, 0)
    result = {"tokens": jnp.where(lengths > 0, label_lengths + 1, 0).sum().astype(jnp.float32)}
    if model.transducer is not None:
        at_once = choose_frames_at_once(
            *encoded.shape[:2], labels.shape[1], model.transducer.config.vocabulary_size, recipe.joiner_bytes
        )
        result["transducer"] = transducer_loss(
            model.transducer.combine,
            model.transducer.project(encoded),
            model.transducer.predict(labels),
            labels,
            encoded_lengths,
            label_lengths,
            blank_id=model.transducer.blank_id,
            frames_at_once=at_once,
        ).sum()
    if model.ctc is not None:
        each = ctc_loss(model.ctc(encoded), labels, encoded_lengths, label_lengths, blank_id=model.ctc.config.blank_id)
        result["ctc"] = jnp.where(lengths > 0, each, 0.0).sum()
    return result


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
        devices: list[jax.Device] | None = None,
    ) -> None:
        """`score` evaluates parameters on held-out utterances. `card` is the README of the model that is written."""
        if config.transducer is not None and config.transducer.vocabulary_size != len(tokens):
            raise ConfigError(f"the model has {config.transducer.vocabulary_size} tokens, the table {len(tokens)}")
        self.recipe, self.config, self.tokens, self.corpus, self.output = recipe, config, tokens, corpus, output
        self.score, self.card = score, card
        # A copy, since steps give theirs away, and in float32 whatever the model that is tuned is stored in.
        parameters = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), parameters)
        self.policy = policy(recipe.compute)
        self.skeleton = Skeleton(config)
        self.devices = list(devices) if devices is not None else jax.local_devices()
        self._mesh = Mesh(np.array(self.devices), ("batch",))
        self._everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._rows = NamedSharding(self._mesh, PartitionSpec("batch"))
        # Of an epoch of the whole corpus, behind those that begin with short things.
        epoch = corpus.plan(len(corpus.config.growth), recipe.seed, recipe.augmentation, len(self.devices))
        self._schedule = recipe.optimizer.schedule(recipe.steps, len(epoch))
        self._optimizer = recipe.optimizer.build(self._schedule)
        self.state = jax.device_put(
            {
                "step": jnp.zeros((), jnp.int32),
                "parameters": parameters,
                "averaged": jax.tree.map(jnp.array, parameters),
                "optimizer": self._optimizer.init(parameters),
            },
            self._everywhere,
        )
        self._update = jax.jit(self._step, donate_argnums=0)

    @programs_kept()
    def train(self, report: Callable[[Progress], None] | None = None) -> Parameters:
        """Run all steps that are left and return the averaged parameters.

        Checkpoints are written every `checkpoint_steps`, at the end, where a recording cannot be read, and when Ctrl-C
        or a scheduler asks to stop, which raises KeyboardInterrupt behind the running step or calls the handler that
        stood there. TrainingError names the batch whose loss is not finite, or what went wrong with the folder; the
        last checkpoint stays whole.
        """
        done = int(self.state["step"])
        if done > self.recipe.steps:
            raise TrainingError(f"{self.output}: has done {done} steps already, more than {self.recipe.steps}")
        try:
            if done < self.recipe.steps:
                self._run(done, report)
        except (AudioError, ConfigError):  # a recording that was there when the run began
            self.save()
            raise
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise TrainingError(
                    "out of memory: lower the recipe's data.batch_seconds or joiner_bytes, and --resume"
                ) from None
            raise
        self.export()
        return self.averaged

    def _run(self, done: int, report: Callable[[Progress], None] | None) -> None:
        """The steps behind step `done`."""
        begun = time.monotonic()
        audio_seconds = 0.0
        with _Log(self.output / LOG, done) as log, _stop_requests() as stop:
            for epoch, batch in prefetch(self._batches(done)):
                self.state, facts = self._update(self.state, *jax.device_put(batch.arrays(), self._rows))
                facts = {name: float(value) for name, value in jax.device_get(facts).items()}
                done += 1
                if not (math.isfinite(facts["loss"]) and math.isfinite(facts["gradient_norm"])):
                    raise TrainingError(self._not_finite(done, batch))
                audio_seconds += float(batch.lengths.sum()) / self.config.features.sample_rate
                progress = Progress(
                    step=done,
                    epoch=epoch,
                    learning_rate=float(self._schedule(done - 1)),
                    audio_seconds=round(audio_seconds, 2),
                    seconds=round(time.monotonic() - begun, 2),
                    **facts,
                )
                log.write(dataclasses.asdict(progress))
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
        return self.state["averaged"]

    def save(self) -> None:
        """Write a checkpoint; the one before stays until this one is whole."""
        import orbax.checkpoint as ocp

        _replace(self.output / RUN, json.dumps(self._identity(), indent=1) + "\n")
        try:
            with self._checkpoints() as manager:
                manager.save(int(self.state["step"]), args=ocp.args.StandardSave(self.state))
                manager.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore raise many kinds for one cause: a folder that takes no more
            raise TrainingError(
                f"{self.output / CHECKPOINTS}: cannot be written ({reason(error)}); make room and --resume"
            ) from None

    def resume(self) -> int:
        """Go on from the newest checkpoint, and give its step; TrainingError where there is none that fits."""
        import orbax.checkpoint as ocp

        require_checkpoint(self.output)
        self._compare()
        with self._checkpoints() as manager:
            step = manager.latest_step()
            abstract = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere), self.state
            )
            try:
                self.state = manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:
                raise TrainingError(
                    f"{self.output / CHECKPOINTS}: step {step} cannot be read into this recipe's model "
                    f"({reason(error)}); use the recipe that began it"
                ) from None
        return step

    def export(self) -> Path:
        """Write the averaged model to a model directory, and give its folder."""
        dtype = np.dtype(self.recipe.stored)
        parameters = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), self.averaged)
        card = self.card or store.ModelCard(self.config.name, ())
        store.save(self.output / MODEL, self.config, parameters, self.tokens, card, overwrite=True)
        return self.output / MODEL

    def _step(self, state: dict[str, Any], *batch: jax.Array) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """One update: the new state, and what is told of it."""
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), state["step"])
        strength = self.recipe.strength(state["step"])

        def objective(parameters: Parameters) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = self.skeleton.fill(self.policy.cast(parameters))
            sums = losses(model, self.recipe, *batch, key=key, dtype=self.policy.activations, strength=strength)
            each = {name: sums[name] / jnp.maximum(sums["tokens"], 1.0) for name in sums if name != "tokens"}
            if "transducer" in each and "ctc" in each:
                total = each["transducer"] + self.recipe.ctc_weight * each["ctc"]
            else:
                (total,) = each.values()
            return total, {"loss": total, "transducer": each.get("transducer", 0.0), "ctc": each.get("ctc", 0.0)}

        gradients, facts = jax.grad(objective, has_aux=True)(state["parameters"])
        updates, optimizer = self._optimizer.update(gradients, state["optimizer"], state["parameters"])
        parameters = optax.apply_updates(state["parameters"], updates)
        # The mean forgets its first, worst members faster than later ones.
        decay = jnp.minimum(self.recipe.average, (1.0 + state["step"]) / (10.0 + state["step"]))
        averaged = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state["averaged"], parameters)
        new = {"step": state["step"] + 1, "parameters": parameters, "averaged": averaged, "optimizer": optimizer}
        return new, {**facts, "gradient_norm": optax.tree.norm(gradients)}

    def _batches(self, done: int) -> Iterator[tuple[int, TrainingBatch]]:
        """Batches from the one behind step `done` on, each with its epoch."""
        recipe, multiple = self.recipe, len(self.devices)
        epoch = 0
        while True:
            augmentation = recipe.augmentation
            if epoch < recipe.clean_epochs:
                augmentation = dataclasses.replace(
                    augmentation, noise_probability=0.0, reverberation_probability=0.0, telephone_probability=0.0
                )
            plans = self.corpus.plan(epoch, recipe.seed, augmentation, multiple)
            for plan in plans[done:]:
                yield epoch, self.corpus.batch(plan, augmentation, multiple)
            done = max(done - len(plans), 0)
            epoch += 1

    def _identity(self) -> dict[str, Any]:
        """What a run must have in common with the one that it goes on from, for its steps to see the same."""
        digest = hashlib.sha256()
        for example in self.corpus.examples:
            digest.update(f"{example.name}\t{example.seconds}\t{example.ids}\n".encode())
        recipe = _deciding(self.recipe)
        return {"recipe": recipe, "data": digest.hexdigest(), "devices": len(self.devices)}

    def _compare(self) -> None:
        try:
            before = json.loads((self.output / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # the shapes in the checkpoint decide
        now = self._identity()
        try:  # what a run of an earlier version does not name was at its default
            before["recipe"] = _deciding(from_mapping(Recipe, {"steps": 1, **before["recipe"]}, str(self.output / RUN)))
        except ConfigError:
            pass  # of another version, with what this one does not know
        changed = [f"the recipe's {key}" for key in now["recipe"] if now["recipe"][key] != before["recipe"].get(key)]
        changed += ["the data"] * (now["data"] != before["data"])
        changed += [f"the number of devices ({before['devices']})"] * (now["devices"] != before["devices"])
        if changed:
            raise TrainingError(
                f"{self.output}: {', '.join(changed)} were others when this run began; give them as they were, or "
                "begin a new run with --init on its model"
            )

    def _checkpoints(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.output / CHECKPOINTS).absolute(), options=options)

    def _not_finite(self, step: int, batch: TrainingBatch) -> str:
        """What to say of a batch with a loss that is not finite, naming its rows."""
        names = [self.corpus.examples[index].name for item in batch.plan.items for index in item.examples]
        return (
            f"step {step}: the loss or its gradient is not finite; the batch holds {', '.join(names[:4])}"
            f"{f' and {len(names) - 4} more' if len(names) > 4 else ''}; look at them, or lower the learning rate, "
            "and --resume from the last checkpoint"
        )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides what its steps see and do, as a mapping."""
    mapping = {key: value for key, value in to_mapping(recipe).items() if key not in _FREE}
    if mapping["model"] is not None:
        mapping["model"] = {key: value for key, value in mapping["model"].items() if key != "search"}
    return mapping


def has_checkpoint(output: Path) -> bool:
    """Whether a folder holds a run that can be resumed."""
    return any(entry.name.isdigit() for entry in (output / CHECKPOINTS).glob("*"))


def require_checkpoint(output: Path) -> None:
    """TrainingError where there is none."""
    if not has_checkpoint(output):
        raise TrainingError(f"{output}: holds no checkpoint to resume; leave out --resume")


def _replace(path: Path, text: str) -> None:
    """Write a file of a run, whole or not at all; TrainingError, since a ConfigError would mean a bad recording."""
    with writing_file(path, TrainingError) as write:
        write(text)


class _Log:
    """Lines of JSON, one a step and one a score; a resumed run drops those behind its checkpoint."""

    def __init__(self, path: Path, done: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and done else []
        kept = [line for line in lines if _step_of(line) <= done]
        _replace(path, "".join(f"{line}\n" for line in kept))
        try:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None

    def write(self, facts: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(facts) + "\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(
                f"{self._file.name}: cannot be written ({error.strerror}); make room and --resume"
            ) from None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # cut off in the middle
        return math.inf


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills with the signals that ask the process to stop; the second of them stops it at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
