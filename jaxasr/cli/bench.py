"""`jaxasr bench`: how fast a model runs on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

import jaxasr
from jaxasr.cli.info import fact_lines
from jaxasr.cli.options import BeamOption, DtypeOption, HeadOption, SearchOption
from jaxasr.cli.progress import show
from jaxasr.writers import json_text

EXAMPLE = "Example: jaxasr bench --model model/ --dtype bfloat16"


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="DIR|NAME",
            help="A model directory, a published model, or a configuration's name to be filled with random weights; "
            "reazonspeech_k2_v2 if unset.",
        ),
    ] = None,
    dtype: DtypeOption = "float32",
    search: SearchOption = None,
    head: HeadOption = None,
    beam: BeamOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how fast a model transcribes here. Compile times and memory are told as well."""
    from jaxasr import benchmark

    jaxasr.configure_process()
    facts = benchmark.measure(model, dtype=dtype, search=search, head=head, beam=beam)
    if as_json:
        print(json_text(facts))
        return
    for line in fact_lines(facts):
        show(line)
    print("whole, features, encoder, search: seconds of audio in a second, medians after warming up")
