"""`jaxasr quantize`: a model directory to a smaller one with weights of few bits."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxasr.cli.evaluate import conditions
from jaxasr.cli.progress import metered, show
from jaxasr.errors import printable
from jaxasr.writers import json_text

EXAMPLE = "Example: jaxasr quantize model/ model-4/ --bits 4 --block 128 --evaluate an4/manifest.tsv"


def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder made by jaxasr convert or train, or a published model's name."),
    ],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The model directory to make.")],
    bits: Annotated[
        int | None,
        typer.Option(metavar="8|4|3|2", help="Bits of the encoder's weights; heads keep 8."),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A yaml file of rules (path, bits, block, ...), which come before --bits."),
    ] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Store a zero beside each scale.")] = False,
    block: Annotated[
        int | None,
        typer.Option(metavar="N", help="Weights that share a scale, along the inputs of each output; all if unset."),
    ] = None,
    clip: Annotated[
        bool | None,
        typer.Option(
            "--clip/--no-clip",
            help="Cut the range of each scale where that lowers the squared error; if unset at 3 and 2 bits.",
        ),
    ] = None,
    method: Annotated[
        Literal["nearest", "calibrated"],
        typer.Option(
            help="Round to the nearest integer, or the encoder's weights so that what it makes of --calibrate's "
            "recordings changes least."
        ),
    ] = "nearest",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Recordings for --method calibrated, and for a spec's static ranges; their texts do not matter.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only rows of --calibrate with this value; may be repeated."),
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="Compare the words of both models on these recordings.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model directory OUT_DIR.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; rates are fractions.")] = False,
) -> None:
    """Make a smaller model directory. Weights become integers of 8, 4, 3 or 2 bits, packed, with scales."""
    import jaxasr

    jaxasr.configure_process()
    with metered("hearing") as meter:
        report = jaxasr.quantize(
            model,
            out_dir,
            spec,
            bits=bits,  # type: ignore[arg-type]  # other numbers are refused there
            symmetric=not asymmetric,
            block=block,
            clip=clip,
            method=method,
            calibrate=calibrate,
            where=conditions(where or []),
            evaluate=evaluate,
            overwrite=overwrite,
            progress=meter,
        )
    if as_json:
        print(json_text(report.facts()))
        return
    print(f"files: {_change(report.bytes_before, report.bytes_after)}")
    print(f"arrays in memory: {_change(report.memory_before, report.memory_after)}")
    print(f"error of the quantized weights: {100 * report.weight_error:.2f} % (root mean square)")
    print(f"error of what is encoded: {100 * report.encoded_error:.2f} % (of noise that is like speech)")
    if report.words is not None:
        before, after, words = report.words.before, report.words.after, report.words.before.reference_length
        rates = f"{100 * before.rate:.2f} % before, {100 * after.rate:.2f} % after"
        differing = f"{report.words.differing:,} of {words:,} words differ" if words else "no words"
        print(f"word error rate: {rates}; {differing}")
    show(f"{printable(out_dir)} is ready: jaxasr transcribe AUDIO --model {shlex.quote(str(out_dir))}")


def _change(before: int, after: int) -> str:
    return f"{before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after ({before / after:.2f} times smaller)"
