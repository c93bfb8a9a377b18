"""`jaxasr compile`: what a model's first jobs would wait for, made before."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from jaxasr.caches import cache_folder, compilation_folder
from jaxasr.cli.options import RecognizerOptions, with_recognizer_options
from jaxasr.cli.progress import show
from jaxasr.errors import ConfigError, listing

EXAMPLE = "Example: jaxasr compile reazonspeech-k2-v2 --seconds 15"

ROWS_HELP = (
    "For jobs of at most N clips; if unset for any number, and of all programs no more than the likeliest 32 programs."
)


def _lengths(given: str | None) -> str | None:
    try:
        _numbers(given)
    except ValueError:
        raise typer.BadParameter(f"{given} is neither a number nor several with commas") from None
    return given


def _numbers(given: str | None) -> float | list[float] | None:
    if given is None:
        return None
    numbers = [float(each) for each in given.split(",")]
    return numbers if len(numbers) > 1 else numbers[0]


@with_recognizer_options
def compile(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder made by jaxasr convert or train, a published model's name, or embedded."
        ),
    ],
    seconds: Annotated[
        str | None,
        typer.Option(
            metavar="S[,S...]",
            callback=_lengths,
            help="For clips of up to S seconds; of several numbers: for clips of just these lengths; for clips of any "
            "length if unset.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help=ROWS_HELP,
        ),
    ] = None,
    *,
    options: RecognizerOptions,
) -> None:
    """Make a model's programs before they are needed. They go to the cache folder, with the model's arrays.

    That is for containers, servers and notebooks: later jobs with the same options, on the same kind of machine, wait
    for no compiler. Nothing is made twice.
    """
    with options.load() as recognizer:
        wanted, left_out = recognizer.expected(_numbers(seconds), rows)
        new = 0
        for number, (at_once, samples) in enumerate(wanted, start=1):
            longest = recognizer.clip_seconds(samples)
            many = f", {at_once} at once" if at_once > 1 else ""
            # What is being waited for stands there already while it is made.
            print(f"{number} of {len(wanted)}: clips of up to {longest:.3g} s{many}: ", end="", flush=True)
            if recognizer.programs.is_kept(at_once, samples):
                print("was there")
                continue
            begun = time.perf_counter()
            recognizer.programs.compile(at_once, samples)
            print(f"compiled in {time.perf_counter() - begun:.1f} s", flush=True)
            new += 1
        recognizer.programs.load()
        lost = sum(not recognizer.programs.is_kept(*shape) for shape in wanted) if new else 0
    show(f"{new} programs compiled, {len(wanted) - new} were there" if new else "all programs were there")
    if left_out:
        show(f"{len(left_out)} others, for jobs of many clips, are compiled when one needs them, or by --rows")
    folder = cache_folder()
    parts = [f"{part.name} {_size(part) / 1e6:,.1f}" for part in _folders(folder)]
    show(f"cache folder: {folder}, {_size(folder) / 1e6:,.1f} MB ({listing(parts)})")
    elsewhere = compilation_folder()
    if elsewhere != str(folder / "programs"):
        show(f"compiled programs: {elsewhere}, as JAX_COMPILATION_CACHE_DIR says")
    if lost:
        raise ConfigError(f"{folder}: {lost} programs could not be kept; is the disk full, or the folder read-only?")


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, at any depth; of those that vanish meanwhile none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
