"""A table of sherpa-onnx's results on published recordings, as one manifest per set for `jaxasr evaluate`.

    python benchmarks/published_manifests.py TABLE.tsv SPEECH OUT

TABLE.tsv has the columns set, id, path, start, samples, reference, hypothesis, token_ids and timestamps, with paths
relative to SPEECH. OUT gets SET.tsv for each set: path (relative to OUT), start, samples and text as manifests have
them, then id, hypothesis, token_ids and timestamps as they stand. Utterances joined from several recordings keep their
comma-separated lists: `jaxasr.manifests.read_audio` joins them with 0.1 s of silence after each.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

COLUMNS = ("path", "start", "samples", "text", "id", "hypothesis", "token_ids", "timestamps")
Row = dict[str, str]


def write_manifests(table: Path, speech: Path, out: Path) -> list[Path]:
    """The manifests written, in the order in which the table begins its sets. Raises ValueError, OSError."""
    sets: dict[str, list[Row]] = {}
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            sets.setdefault(row["set"], []).append(row)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in sets.items():
        manifest = out / f"{name}.tsv"
        with open(manifest, "w", encoding="utf-8", newline="") as file:
            file.write("\t".join(COLUMNS) + "\n")
            file.writelines("\t".join(_columns(row, speech, out)) + "\n" for row in rows)
        written.append(manifest)
    return written


def _columns(row: Row, speech: Path, out: Path) -> list[str]:
    paths = [speech / path for path in row["path"].split(",")]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise ValueError(f"{row['id']}: {absent[0]} does not exist")
    moved = ",".join(Path(os.path.relpath(path, out)).as_posix() for path in paths)
    return [{"path": moved, "text": row["reference"]}.get(column) or row.get(column, "") for column in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="TABLE.tsv")
    parser.add_argument("speech", type=Path, metavar="SPEECH", help="the folder that the table's paths begin in")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write manifests to")
    arguments = parser.parse_args()
    try:
        print("\n".join(map(str, write_manifests(arguments.table, arguments.speech, arguments.out))))
    except (ValueError, OSError) as error:
        sys.exit(f"published_manifests: {error}")


if __name__ == "__main__":
    main()
