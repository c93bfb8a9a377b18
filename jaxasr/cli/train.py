"""`jaxasr train`: a recipe and manifests to a model, or a model fine-tuned."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxasr.cli.evaluate import conditions
from jaxasr.cli.progress import say
from jaxasr.errors import ConfigError

if TYPE_CHECKING:
    from jaxasr.training.loop import Progress

EXAMPLE = (
    "Example: jaxasr train embedded --data an4/manifest.tsv --data fsdd/manifest.tsv --where split=train --output run/"
)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A yaml file, or the name of a recipe of jaxasr's.")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="MANIFEST.tsv", help="Transcribed recordings; repeat for more.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Checkpoints, log and model go here.")],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only rows of --data with this value; repeat for more."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="MANIFEST.tsv", help="Recordings whose word error rate is logged now and then."),
    ] = None,
    held_out_where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only rows of --held-out with this value.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option("--init", metavar="DIR|NAME", help="Fine-tune this model, with its tokens, instead of a new one."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --output.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be trained on instead of stopping.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Updates in all, instead of the recipe's.")
    ] = None,
) -> None:
    """Train a recogniser on your own recordings; Ctrl-C leaves a checkpoint that --resume goes on from."""
    from jaxasr import loading, store
    from jaxasr.evaluation import Errors, evaluate
    from jaxasr.manifests import duration, read_manifest
    from jaxasr.process import configure_process
    from jaxasr.recognizer import Recognizer
    from jaxasr.text.encoding import Encoder
    from jaxasr.text.tokens import TokenTable
    from jaxasr.training import data as training_data
    from jaxasr.training import loop
    from jaxasr.training.recipe import read_recipe
    from jaxasr.training.vocabulary import make_vocabulary

    configure_process()
    settings = read_recipe(recipe)
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    folder = Path(output)
    if resume:
        loop.require_checkpoint(folder)
    elif loop.has_checkpoint(folder):
        raise ConfigError(f"{folder}: holds a run already; give --resume to go on with it, or another --output")
    elif (folder / loop.MODEL).exists():
        raise ConfigError(f"{folder / loop.MODEL} exists and would be written over; give another --output")
    tested_where = conditions(held_out_where or [])
    if tested_where and not held_out:
        raise typer.BadParameter("--held-out-where needs --held-out")
    chosen = conditions(where or [])
    utterances = [utterance for manifest in data for utterance in read_manifest(manifest, chosen)]
    tested = [utterance for manifest in held_out or [] for utterance in read_manifest(manifest, tested_where)]
    for utterance in tested:
        duration(utterance)  # what cannot be opened is known before the first step

    table = folder / store.TOKENS
    if init is not None:
        config, parameters, tokens = store.load(loading.locate(init))
    else:
        if settings.model is None:
            raise ConfigError(f"{recipe}: has no model; add one, or give --init MODEL")
        tokens = (
            TokenTable.read(table) if resume else make_vocabulary((u.text for u in utterances), settings.vocabulary)
        )
        config = loop.with_vocabulary(settings.model, tokens)
        parameters = loop.new_parameters(config, settings.seed)
    good, bad = training_data.check(utterances, Encoder(tokens), settings.data, settings.augmentation.speed[1])
    for _, reason in bad:
        say(reason)
    if bad and not skip_bad:
        raise ConfigError(f"{len(bad)} of {len(utterances)} rows cannot be trained on; mend them, or give --skip-bad")
    corpus = training_data.Corpus(good, settings.data)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            tokens.write(table)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); give another --output") from None

    kept: list[Recognizer] = []  # one for the whole run, so that its programs are compiled once

    def score(given: dict[str, Any]) -> Errors:
        if not kept:
            kept.append(Recognizer(config, given, tokens, devices=trainer.devices[:1]))
        kept[0].programs.replace_params(given)
        total = Errors()
        for scored in evaluate(kept[0], tested):
            if scored.error is not None:
                raise scored.error
            total += scored.errors
        return total

    trainer = loop.Trainer(
        settings,
        config,
        parameters,
        tokens,
        corpus,
        folder,
        score=score if tested else None,
        card=store.ModelCard(
            name=config.name,
            source=tuple(_fingerprint(Path(manifest)) for manifest in data),
            summary=(f"trained by `jaxasr train` for {settings.steps} steps on {len(good)} utterances",)
            + ((f"from {init}",) if init else ())
            + ((f"stored as {settings.stored}",) if settings.stored != "float32" else ()),
            origin="training on the manifests below",
            trained=True,
            licence="that of its recordings",
        ),
    )
    minutes = sum(example.seconds for example in good) / 60
    say(f"{len(good)} utterances, {minutes:.0f} minutes, {len(tokens)} tokens")
    if resume:
        say(f"going on from step {trainer.resume()}")
    with _meter(settings.steps) as report:
        trainer.train(report)
    print(folder / loop.MODEL)


def _fingerprint(path: Path) -> tuple[str, int, str]:
    content = path.read_bytes()
    return path.name, len(content), hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _meter(steps: int) -> Iterator[Callable[[Progress], None]]:
    """A bar where there is a terminal, else a line now and then: step, loss, seconds of sound a second."""
    if not sys.stderr.isatty():

        def tell(progress: Progress) -> None:
            if progress.step % 50 == 0 or progress.step == steps:
                say(_line(progress))

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[line]}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("training", total=steps, line="compiling")
        yield lambda progress: bar.update(task, completed=progress.step, line=_line(progress))


def _line(progress: Progress) -> str:
    factor = progress.audio_seconds / max(progress.seconds, 1e-9)
    return f"step {progress.step}, epoch {progress.epoch}: loss {progress.loss:.3f}, {factor:.0f}x real time"
