"""`jaxasr train`: a recipe and manifests to a model, or a model fine-tuned."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

import jaxasr
from jaxasr.cli.evaluate import conditions
from jaxasr.cli.progress import handed_on, say

if TYPE_CHECKING:
    from jaxasr.training.loop import Progress

EXAMPLE = (
    "Example: jaxasr train embedded --data an4/manifest.tsv --data fsdd/manifest.tsv --where split=train --output run/"
)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A yaml file, or the name of a recipe of jaxasr's.")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="MANIFEST", help="Transcribed recordings; repeat for more.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Checkpoints, log and model go here.")],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only rows of --data with this value; repeat for more."),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="MANIFEST", help="Recordings whose word error rate is logged now and then."),
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
    """Train a recogniser on your own recordings. Ctrl-C leaves a checkpoint that --resume goes on from."""
    if held_out_where and not held_out:
        raise typer.BadParameter("--held-out-where needs --held-out")
    jaxasr.configure_process()
    chosen, tested = conditions(where or []), conditions(held_out_where or [])
    with _meter() as report:
        result = jaxasr.train(
            recipe,
            data,
            output,
            where=chosen,
            held_out=held_out or [],
            held_out_where=tested,
            init=init,
            resume=resume,
            skip_bad=skip_bad,
            steps=steps,
            report=report,
        )
    print(handed_on(result.model))


@contextlib.contextmanager
def _meter() -> Iterator[Callable[[Progress], None]]:
    """A bar where there is a terminal, else a line now and then: step, loss, seconds of sound a second."""
    if not sys.stderr.isatty():

        def tell(progress: Progress) -> None:
            if progress.step % 50 == 0 or progress.step == progress.steps:
                say(_line(progress))

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[line]}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("training", total=None, line="compiling")
        yield lambda progress: bar.update(task, completed=progress.step, total=progress.steps, line=_line(progress))


def _line(progress: Progress) -> str:
    factor = progress.audio_seconds / max(progress.seconds, 1e-9)
    return f"step {progress.step}, epoch {progress.epoch}: loss {progress.loss:.3f}, {factor:.0f}x real time"
