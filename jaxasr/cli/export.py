"""`jaxasr export`: a model as a program and its arrays, which run without this package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import jaxasr
from jaxasr.cli.options import (
    ActivationsOption,
    BeamOption,
    BlankPenaltyOption,
    DtypeOption,
    HeadOption,
    PadAfterOption,
    PadBeforeOption,
    SearchOption,
)
from jaxasr.cli.progress import show
from jaxasr.errors import printable

EXAMPLE = "Example: jaxasr export model-4/ exported/ --seconds 15 --rows 8"


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder made by jaxasr convert, quantize or train, or a model's name."),
    ],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    seconds: Annotated[float, typer.Option(metavar="S", help="The longest clip that the program takes.")],
    rows: Annotated[int, typer.Option(metavar="B", help="Clips in a batch.")] = 1,
    dtype: DtypeOption = "float32",
    blank_penalty: BlankPenaltyOption = 0.0,
    search: SearchOption = None,
    head: HeadOption = None,
    beam: BeamOption = None,
    pad_before: PadBeforeOption = None,
    pad_after: PadAfterOption = None,
    activations: ActivationsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier export wrote.")] = False,
) -> None:
    """Write a model as one program and its arrays. JAX and numpy run them, on CPU, GPU or TPU, without jaxasr."""
    from jaxasr import loading, store
    from jaxasr.standalone import export_model

    jaxasr.configure_process()
    directory = loading.locate(model)
    with jaxasr.load_model(
        directory,
        dtype=dtype,
        blank_penalty=blank_penalty,
        search=search,
        head=head,
        beam=beam,
        pad_before=pad_before,
        pad_after=pad_after,
        activations=activations,
        lazy=True,
    ) as recognizer:
        stored = store.open_model(directory, verify=False)
        # As they are multiplied there, which `activations` may have changed.
        params = dataclasses.replace(stored, config=recognizer.config).params()
        size = export_model(recognizer, params, out_dir, seconds=seconds, rows=rows, overwrite=overwrite)
    show(f"{printable(out_dir)} is ready, {size / 1e6:,.1f} MB: export.json in it says what the program takes")
