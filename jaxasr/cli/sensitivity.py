"""`jaxasr sensitivity`: which weights suffer from few bits, and bits for a size."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Annotated

import typer

from jaxasr.cli.evaluate import conditions
from jaxasr.cli.progress import metered, show
from jaxasr.errors import ConfigError, printable
from jaxasr.files import reason, replacing_file, writing_file
from jaxasr.writers import json_text

EXAMPLE = "Example: jaxasr sensitivity model/ --manifest an4/manifest.tsv --budget 2.5 --output spec.yaml"
SECONDS = 16.0


def sensitivity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder made by jaxasr convert or train, or a model's name.")
    ],
    manifest: Annotated[Path, typer.Option(metavar="MANIFEST", help="Recordings; their texts do not matter.")],
    budget: Annotated[float, typer.Option(metavar="MB", min=0, help="What the arrays may take, in millions of bytes.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="SPEC.yaml", help="Write the proposal for jaxasr quantize --spec."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the errors (needs matplotlib).")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only rows of the manifest with this value; may be repeated."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=1, help="How much of the recordings is heard, evenly spread over them.")
    ] = SECONDS,
    block: Annotated[
        int | None,
        typer.Option(metavar="N", help="Weights that share a scale below 8 bits; an output's inputs if unset."),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Store a zero beside each scale below 8 bits.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; errors are fractions.")] = False,
) -> None:
    """Propose bits for each part of a model, for a size. They come from what quantizing each part by itself changes.

    Each part of the encoder gets 8, 4, 3 and 2 bits in turn, rounded to the nearest; all else stays float.
    """
    import jaxasr
    from jaxasr.compression.calibration import Hearing, read_windows
    from jaxasr.compression.post_training import open_recogniser
    from jaxasr.compression.sensitivity import CHOICES, grouped, measured, picture, proposed_error, spec_text
    from jaxasr.loading import locate
    from jaxasr.manifests import read_manifest

    jaxasr.configure_process()
    stored = open_recogniser(locate(model))
    utterances = read_manifest(manifest, conditions(where or []))
    params = stored.params()
    found = grouped(stored.config, params, block=block, symmetric=not asymmetric)
    found.check_budget(budget * 1e6)
    hearing = Hearing(stored.config, read_windows(utterances, seconds))
    with metered("hearing") as meter:
        whole = hearing.encode(params)
        found = measured(found, hearing, params, whole, meter)
    bits = found.propose(budget * 1e6)
    spec = found.spec(bits)
    error = proposed_error(hearing, params, whole, spec)
    if output is not None:
        with writing_file(output) as write:
            write(spec_text(spec))
    if plot is not None:
        drawn = io.BytesIO()
        picture(found, bits).savefig(drawn, format="png", dpi=150)
        try:
            with replacing_file(plot) as file:
                file.write(drawn.getvalue())
        except OSError as raised:
            raise ConfigError(f"{plot}: cannot be written ({reason(raised)}); choose another path") from None
    if as_json:
        groups = [
            {"path": group.path, "weights": group.size, "bits": bits[group.path], "bytes": dict(group.bytes),
             "errors": dict(group.errors)}
            for group in found.groups
        ]  # fmt: skip
        sums = {"bytes": found.size(bits), "error": error, "expected_error": found.expected(bits)}
        print(json_text({**sums, "groups": groups}))
        return
    rows = [["weights below", "number", *(f"{choice} bits" for choice in CHOICES), "bits"]]
    for group in found.groups:
        errors = [f"{100 * group.errors[choice]:.2f} %" for choice in CHOICES]
        rows.append([printable(group.path), f"{group.size:,}", *errors, str(bits[group.path])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *cells)))
    show(f"arrays: {found.size(bits) / 1e6:,.2f} MB of {budget:,.2f}")
    show(f"error of what is encoded: {100 * error:.1f} %, by the sum of squares {100 * found.expected(bits):.1f} %")
    if output is not None:
        named = shlex.quote(str(output))
        show(f"{printable(output)} is ready: jaxasr quantize {shlex.quote(model)} OUT_DIR --spec {named}")
