"""Quantizes models as `jaxasr quantize` does and prints what that makes of their size and their tokens, as Markdown.

    python docs/models/bits.py MODEL...                  prints the table
    python docs/models/bits.py MODEL... --write PAGE     writes it into a page of this folder, as paraformer.md

MODEL is a folder of a publisher's files, beside which audio/ holds recordings; or a configuration's name, whose
weights are random: of such a model only sizes and encoded frames are compared.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax

import jaxasr
from jaxasr import store
from jaxasr.benchmark import random_recognizer
from jaxasr.evaluation import Errors, count_errors

FOLDER = Path(__file__).resolve().parent
BITS: tuple[Literal[8, 4, 2], ...] = (8, 4, 2)
LONGEST = 8.0  # s of a recording: all of them run in one program
_TABLE = re.compile(r"(<!-- bits -->\n).*?(<!-- end -->)", re.DOTALL)


def prepare(model: str, directory: Path) -> list[Path]:
    """Write the float model to a model directory; the recordings beside its files, none of a configuration's."""
    if Path(model).is_dir():
        jaxasr.convert_checkpoint(model, directory)
        return sorted((Path(model).parent / "audio").glob("*.wav"))
    with random_recognizer(model) as recognizer:
        card = store.ModelCard(model, ())
        store.save(directory, recognizer.config, jax.device_get(recognizer.programs.params), recognizer.tokens, card)
    return []


def heard(directory: Path, recordings: Sequence[Path]) -> list[list[str]]:
    """The tokens of each recording."""
    if not recordings:
        return []
    with jaxasr.load_model(directory, shortest_seconds=LONGEST) as recognizer:
        return [transcript.tokens for transcript in recognizer.transcribe(recordings)]


def size(directory: Path) -> str:
    """Bytes of a model directory's files, for people."""
    count = int(store.describe(directory)["bytes"])
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e3:.0f} kB"


def rows(model: str) -> Iterator[str]:
    """The rows of a model: as float32, then by bits."""
    name = Path(model).name
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "float32"
        recordings = prepare(model, whole)
        expected = heard(whole, recordings)
        count = str(sum(map(len, expected))) if recordings else ""
        yield f"| {name} | 32 | {size(whole)} |  |  | {count} | {len(expected) or ''} |"
        for bits in BITS:
            rounded = Path(scratch) / str(bits)
            report = jaxasr.quantize(whole, rounded, bits=bits)
            found = heard(rounded, recordings)
            errors = sum(map(count_errors, expected, found), start=Errors())
            tokens = f"{errors.reference_length - errors.total} of {errors.reference_length}" if recordings else ""
            same = f"{sum(map(list.__eq__, expected, found))} of {len(expected)}" if recordings else ""
            share = f"{report.bytes_after / report.bytes_before:.0%}"
            yield f"| {name} | {bits} | {size(rounded)} | {share} | {report.encoded_error:.1%} | {tokens} | {same} |"


def table(models: Sequence[str]) -> str:
    """The rows of all models."""
    lines = [
        "| model | bits | on disk | share | encoded frames, change | tokens less edits | recordings that agree |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in models:
        for row in rows(model):
            print(row, file=sys.stderr)
            lines.append(row)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--write", metavar="PAGE", help="the name of a page of this folder")
    options = parser.parse_args()
    jaxasr.configure_process()
    made = table(options.models)
    if options.write:
        page = FOLDER / options.write
        page.write_text(_TABLE.sub(lambda part: part[1] + made + part[2], page.read_text("utf-8")), "utf-8")
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
