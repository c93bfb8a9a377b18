"""`jaxasr info`: what a model directory or a published checkpoint is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxasr.cli.progress import show
from jaxasr.errors import listing
from jaxasr.writers import json_text

EXAMPLE = "Example: jaxasr info sherpa-onnx-zipformer-en/ --json"
_ITEMS_SHOWN = 20


def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model directory, a checkpoint file, or its folder.")],
    config: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="For a checkpoint that does not say all: as for convert.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model directory or a checkpoint is. Architecture, parameters, vocabulary, size."""
    from jaxasr import store

    if store.is_model_directory(path):
        facts = store.describe(path)
    else:
        from jaxasr import convert

        facts = convert.describe(path, config)
    if as_json:
        print(json_text(facts))
        return
    for line in fact_lines(facts):
        show(line)


def fact_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """`key: value` lines for people: keys with spaces, units after values, lists of long items as indented lines.

    Of a long list the first are shown, and how many there are more.
    """
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
            for item in value[:_ITEMS_SHOWN]:
                yield f"  {', '.join(fact_lines(item)) if isinstance(item, Mapping) else item}"
            if len(value) > _ITEMS_SHOWN:
                yield f"  and {len(value) - _ITEMS_SHOWN:,} more"
        elif isinstance(value, (list, tuple)):
            yield f"{name}: {listing(map(_spelled, value), _ITEMS_SHOWN) or 'none'}"
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
