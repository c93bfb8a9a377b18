"""`jaxasr info`: what a model directory or a published checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLE = "Example: jaxasr info sherpa-onnx-zipformer-en/ --json"


def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model directory, a checkpoint file, or its folder.")],
    config: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="For a checkpoint that does not say all: as for convert.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model directory or a published checkpoint is: architecture, parameters, vocabulary, size."""
    from jaxasr import store

    if store.is_model_directory(path):
        facts = store.describe(path)
    else:
        from jaxasr import convert

        facts = convert.describe(path, config)
    print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(fact_lines(facts)))


def fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """`key: value` lines for people: keys with spaces, units after values, long lists as indented lines."""
    for key, value in facts.items():
        name = "size" if key == "bytes" else key.removesuffix("_s").replace("_", " ")
        unit = " s" if key.endswith("_s") else ""
        if isinstance(value, Mapping):
            yield f"{name}:"
            yield from (f"  {line}" for line in fact_lines(value))
        elif isinstance(value, (list, tuple)) and any(
            isinstance(item, Mapping) or len(str(item)) > 40 for item in value
        ):
            yield f"{name}:"
            yield from (f"  {', '.join(fact_lines(item)) if isinstance(item, Mapping) else item}" for item in value)
        elif isinstance(value, (list, tuple)):
            yield f"{name}: {', '.join(map(_spelled, value)) or 'none'}"
        elif key == "bytes":
            yield f"size: {value / 1e6:,.1f} MB ({value:,} bytes)"
        else:
            yield f"{name}: {_spelled(value)}{unit}"


def _spelled(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
