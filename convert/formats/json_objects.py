"""JSON files whose top is an object, read strictly: bounded in size and depth, every key once in its object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxasr.convert.formats.mapped import regular_file
from jaxasr.errors import CheckpointError, printable

MAX_FILE_BYTES = 1 << 25  # a tokenizer.json of 250,000 pieces has 17 MB
_SHOWN = 80  # characters of a foreign name


def read_object(path: Path) -> dict[str, Any]:
    """The object in the file `path`; CheckpointError, one line, for what cannot be read or is none."""
    with regular_file(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: more than {MAX_FILE_BYTES:,} bytes of JSON: refused")
    return parse_object(data, str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The object that `data` writes; `where` names its place in the CheckpointError for what is none.

    Refused is a key that stands twice in one object: readers of JSON differ in which of the two they take.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{where}: the key {printable(key, _SHOWN)!r} stands there twice: refused")
            found[key] = value
        return found

    try:
        value: Any = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where}: is no valid JSON: fetch or copy the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: is no JSON object of keys and values")
    return value
