"""`jaxasr bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jaxasr.cli.info import fact_lines
from jaxasr.cli.transcribe import DtypeOption, ModelOption

EXAMPLE = "Example: jaxasr bench --model model/ --dtype bfloat16"


def bench(
    model: ModelOption = None,
    dtype: DtypeOption = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how fast a model transcribes on this machine, with the programs compiled and the memory used."""
    from jaxasr import benchmark

    facts = benchmark.measure(model, dtype)
    print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(fact_lines(facts)))
