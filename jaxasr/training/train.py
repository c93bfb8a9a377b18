"""`jaxasr.train`: a recipe and manifests to a model, or a model fine-tuned."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax

from jaxasr import loading, store
from jaxasr.caches import programs_kept
from jaxasr.errors import ConfigError
from jaxasr.evaluation import Errors, evaluate
from jaxasr.files import file_hash, require_utf8
from jaxasr.manifests import Utterance, duration, read_manifest
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.recognizer import Recognizer
from jaxasr.text.encoding import TextEncoder
from jaxasr.text.tokens import TokenTable
from jaxasr.training.data import Corpus, Example, check
from jaxasr.training.loop import Progress, Trainer, new_parameters
from jaxasr.training.recipe import Recipe, read_recipe
from jaxasr.training.runs import RunFolder
from jaxasr.training.vocabulary import make_vocabulary, with_vocabulary

logger = logging.getLogger("jaxasr")

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run has left.

    `model`: the model directory, which `jaxasr.load_model` takes. `steps`: updates in all, those before a resumption
    counted in. `progress`: the last step; None where a resumed run had none left. `held_out`: the errors of the last
    evaluation in this process; None where there was none. `skipped`: the utterances left out, each with the reason.
    """

    model: Path
    steps: int
    progress: Progress | None
    held_out: Errors | None
    skipped: tuple[tuple[Utterance, str], ...]


@programs_kept()
def train(
    recipe: Recipe | StrPath,
    data: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    where: Mapping[str, Iterable[str]] | None = None,
    held_out: StrPath | Sequence[StrPath] = (),
    held_out_where: Mapping[str, Iterable[str]] | None = None,
    init: StrPath | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    steps: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train a recogniser on transcribed recordings, and write its model directory.

    `recipe`: a Recipe, a yaml file, or the name of a recipe that comes with jaxasr.
    `data`: one manifest (a tab-separated table of transcribed recordings) or several.
    `output`: the run's folder, made if missing; it gets `model/`, `log.jsonl`, `tokens.txt` and checkpoints.
    `where`: only rows of `data` whose columns have one of the values given for them.
    `held_out`: manifests whose word error rate is logged every `evaluate_steps` of the recipe, and at the end.
    `held_out_where`: as `where`, for `held_out`.
    `init`: a model directory or a published model's name to fine-tune, with its tokens, instead of a new model.
    `resume`: go on from the newest checkpoint in `output`; it ends at the weights of a run that was never stopped.
    `skip_bad`: leave out rows that cannot be trained on, instead of raising; also sound that is damaged inside, once
    it is met.
    `steps`: updates in all, instead of the recipe's.
    `devices`: the devices that share each batch; all local ones if unset.
    `report`: called after every step.

    What is trained on, and each bad row, is logged by the logger "jaxasr". In the main thread SIGINT (Ctrl-C) and
    SIGTERM end a run after the running step, with a checkpoint: KeyboardInterrupt, or whatever the handler installed
    before does. ConfigError, AudioError, ModelError and TrainingError have messages of one line.
    """
    settings = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    folder = RunFolder(Path(output))
    require_utf8(folder.path, ConfigError)
    _require_free(folder, resume)
    if held_out_where and not held_out:
        raise ConfigError("held_out_where needs held_out")
    manifests = _paths(data)
    utterances = [utterance for manifest in manifests for utterance in read_manifest(manifest, where)]
    tested = [utterance for manifest in _paths(held_out) for utterance in read_manifest(manifest, held_out_where)]
    for utterance in tested:
        duration(utterance)  # what cannot be opened is reported before the first step

    table = folder.path / store.TOKENS
    if init is not None:
        config, parameters, tokens = store.load(loading.locate(init))
        if config.quantization is not None:
            raise ConfigError(f"{config.name} is quantized, and trained is only what is float: give its float model")
    else:
        if settings.model is None:
            name = "the recipe" if isinstance(recipe, Recipe) else os.fspath(recipe)
            raise ConfigError(f"{name}: has no model; add one, or give init, a model to fine-tune")
        texts = (utterance.text for utterance in utterances)
        tokens = TokenTable.read(table) if resume else make_vocabulary(texts, settings.vocabulary)
        config = with_vocabulary(settings.model, tokens)
        parameters = new_parameters(config, settings.seed)
    good, bad = check(
        utterances, TextEncoder(tokens), config, settings.data, settings.curriculum, settings.augmentation.speed[1]
    )
    for _, reason in bad:
        logger.warning("%s", reason)
    if bad and not skip_bad:
        raise ConfigError(f"{len(bad)} of {len(utterances)} rows cannot be trained on; mend them, or give skip_bad")
    corpus = Corpus(good, settings.data, settings.curriculum, settings.augmentation, skip_bad=skip_bad)

    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            tokens.write(table)
    except OSError as error:
        raise ConfigError(f"{folder.path}: cannot be written ({error.strerror}); give another output") from None

    devices = list(devices) if devices is not None else jax.local_devices()
    score = _Score(config, tokens, tested, devices[0]) if tested else None
    trainer = Trainer(
        settings,
        config,
        parameters,
        tokens,
        corpus,
        folder.path,
        score=score,
        card=_card(settings, config, manifests, good, init),
        devices=devices,
    )
    minutes = sum(example.seconds for example in good) / 60
    logger.info("%d utterances, %.0f minutes, %d tokens", len(good), minutes, len(tokens))
    if resume:
        logger.info("going on from step %d", trainer.resume())
    last: list[Progress] = []

    def remember(progress: Progress) -> None:
        last[:] = [progress]
        if report is not None:
            report(progress)

    trainer.train(remember)
    return TrainingResult(
        folder.model,
        settings.steps,
        progress=last[0] if last else None,
        held_out=score.errors if score is not None else None,
        skipped=tuple(bad),
    )


class _Score:
    """The errors of parameters in held-out utterances; one recogniser for the whole run, so that it compiles once."""

    def __init__(
        self, config: ModelConfig, tokens: TokenTable, utterances: Sequence[Utterance], device: jax.Device
    ) -> None:
        self._config, self._tokens, self._utterances, self._device = config, tokens, utterances, device
        self._recognizer: Recognizer | None = None
        self.errors: Errors | None = None

    def __call__(self, parameters: Parameters) -> Errors:
        if self._recognizer is None:
            self._recognizer = Recognizer(self._config, parameters, self._tokens, devices=[self._device])
        self._recognizer.programs.replace_params(parameters)
        errors = Errors()
        for scored in evaluate(self._recognizer, self._utterances):
            if scored.error is not None:
                raise scored.error
            errors += scored.errors
        self.errors = errors
        return errors


def _require_free(folder: RunFolder, resume: bool) -> None:
    """Raise where a run would find no checkpoint to resume, or would write over another run or model."""
    if resume:
        folder.require_checkpoint()
    elif folder.has_checkpoint():
        raise ConfigError(f"{folder.path}: holds a run already; give resume to go on with it, or another output")
    elif folder.model.exists():
        raise ConfigError(f"{folder.model} exists and would be written over; give another output")


def _paths(given: StrPath | Sequence[StrPath]) -> list[StrPath]:
    return [given] if isinstance(given, (str, os.PathLike)) else list(given)


def _card(
    settings: Recipe,
    config: ModelConfig,
    manifests: Sequence[StrPath],
    examples: Sequence[Example],
    init: StrPath | None,
) -> store.ModelCard:
    """The README of the model."""
    summary = [f"trained by `jaxasr train` for {settings.steps} steps on {len(examples)} utterances"]
    if init is not None:
        summary.append(f"from {os.fspath(init)}")
    if settings.stored != "float32":
        summary.append(f"stored as {settings.stored}")
    return store.ModelCard(
        name=config.name,
        source=tuple((path.name, path.stat().st_size, file_hash(path)) for path in map(Path, manifests)),
        summary=tuple(summary),
        origin="training on the manifests below",
        trained=True,
        licence="that of its recordings",
    )
