"""`jaxasr evaluate`: word and character error rates on manifests of transcribed recordings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import Annotated, Any

import typer

from jaxasr.cli.options import RecognizerOptions, with_recognizer_options
from jaxasr.cli.progress import metered, say
from jaxasr.errors import printable
from jaxasr.evaluation import Errors, Metric, Scored
from jaxasr.evaluation import evaluate as run
from jaxasr.files import writing_file
from jaxasr.manifests import read_manifest
from jaxasr.transcripts import one_line
from jaxasr.writers import json_text, tsv_name

EXAMPLE = "Example: jaxasr evaluate an4/manifest.tsv --model model/ --where split=test --output hypotheses.tsv"

_COLUMNS = (
    "manifest", "path", "start", "samples", "reference", "hypothesis",
    "errors", "substitutions", "deletions", "insertions", "reference_length",
)  # fmt: skip


@with_recognizer_options
def evaluate(
    manifests: Annotated[
        list[str],
        typer.Argument(
            metavar="MANIFEST",
            help="Tab-separated tables with the columns path, start, samples and text, or NeMo's JSON lines.",
        ),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="Only rows with this value; repeat for more columns, or more values of one."
        ),
    ] = None,
    metric: Annotated[Metric, typer.Option(help="Count words, or characters without spaces.")] = "wer",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; rates are fractions.")] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="TSV", help="Write reference and hypothesis of every utterance here."),
    ] = None,
    *,
    options: RecognizerOptions,
) -> None:
    """Count a model's errors on transcribed recordings. They are told per manifest and in all."""
    chosen = conditions(where or [])
    utterances = [utterance for manifest in manifests for utterance in read_manifest(manifest, chosen)]
    sums = {manifest: _Sum() for manifest in manifests}
    failed = False
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(writing_file(output)) if output is not None else None
        if write is not None:
            write("\t".join(_COLUMNS) + "\n")
        recognizer = stack.enter_context(options.load())
        meter = stack.enter_context(metered("evaluating"))
        begun = time.monotonic()
        for scored in run(recognizer, utterances, metric, meter):
            if scored.error is not None:
                say(str(scored.error))
                failed = True
                continue
            sums[scored.utterance.manifest].add(scored)
            if write is not None:
                write(_row(scored))
        seconds = time.monotonic() - begun
        if not any(total.utterances for total in sums.values()):
            raise typer.Exit(1)
    everything = _Sum()
    for total in sums.values():
        everything.merge(total)
    rows = [(name, total) for name, total in sums.items() if total.utterances]
    if as_json:
        report = {
            "metric": metric,
            "manifests": [{"manifest": name, **total.facts()} for name, total in rows],
            "total": everything.facts(),
            "seconds": round(seconds, 3),
            "real_time_factor": round(everything.audio_seconds / seconds, 3),
        }
        print(json_text(report))
    else:
        _print_table(rows if len(rows) == 1 else [*rows, ("all", everything)], metric)
    if everything.spelling_errors > everything.errors.total / 2:
        say(_spelled_differently(everything, metric))
    if failed:
        raise typer.Exit(1)


class _Sum:
    """The errors of several utterances."""

    def __init__(self) -> None:
        self.errors, self.utterances, self.audio_seconds = Errors(), 0, 0.0
        self.spelling_errors = 0  # of the errors those that are case or punctuation

    def add(self, scored: Scored) -> None:
        self.errors += scored.errors
        self.spelling_errors += scored.spelling_errors
        self.utterances += 1
        self.audio_seconds += scored.duration

    def merge(self, other: _Sum) -> None:
        self.errors += other.errors
        self.spelling_errors += other.spelling_errors
        self.utterances += other.utterances
        self.audio_seconds += other.audio_seconds

    def facts(self) -> dict[str, Any]:
        rate = self.errors.rate
        return {
            "utterances": self.utterances,
            "audio_seconds": round(self.audio_seconds, 3),
            "errors": self.errors.total,
            "substitutions": self.errors.substitutions,
            "deletions": self.errors.deletions,
            "insertions": self.errors.insertions,
            "reference_length": self.errors.reference_length,
            "rate": rate if math.isfinite(rate) else None,
        }


def conditions(where: list[str]) -> dict[str, list[str]]:
    """COLUMN=VALUE options to the values asked for of each column."""
    found: dict[str, list[str]] = {}
    for condition in where:
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise typer.BadParameter(f"--where takes COLUMN=VALUE, not {condition!r}")
        found.setdefault(column, []).append(value)
    return found


def _row(scored: Scored) -> str:
    utterance, errors = scored.utterance, scored.errors
    values = (
        tsv_name(utterance.manifest), tsv_name(utterance.columns["path"]), utterance.columns.get("start", ""),
        utterance.columns.get("samples", ""), one_line(utterance.text), " ".join(scored.hypothesis.split()),
        errors.total, errors.substitutions, errors.deletions, errors.insertions, errors.reference_length,
    )  # fmt: skip
    return "\t".join(map(str, values)) + "\n"


def _spelled_differently(total: _Sum, metric: Metric) -> str:
    errors = total.errors.total
    others = dataclasses.replace(total.errors, substitutions=errors - total.spelling_errors, deletions=0, insertions=0)
    return (
        f"{total.spelling_errors:,} of {errors:,} errors are case or punctuation; without them {metric.upper()} is "
        f"{100 * others.rate:.2f} %: write the manifest's text as the model writes, or count from the columns of "
        "--output in lower case without punctuation"
    )


def _print_table(rows: list[tuple[str, _Sum]], metric: Metric) -> None:
    counted = "words" if metric == "wer" else "characters"
    table = [["manifest", "utterances", "errors", "substitutions", "deletions", "insertions", counted, metric.upper()]]
    for name, total in rows:
        errors = total.errors
        counts = (
            total.utterances, errors.total, errors.substitutions, errors.deletions, errors.insertions,
            errors.reference_length,
        )  # fmt: skip
        table.append([printable(name), *map(str, counts), f"{100 * errors.rate:.2f} %"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
