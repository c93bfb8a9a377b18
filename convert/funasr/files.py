"""Files of a FunASR model directory beside its weights: am.mvn, the statistics of its features, and its tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr.errors import CheckpointError
from jaxasr.files import reason, refuse_pointer
from jaxasr.text.tokens import TokenTable

SIZE_LIMIT = 64 << 20  # bytes of a text; the largest published one has 200 KB
# Kaldi's nnet1 writes a component as its name, its sizes, and its numbers in brackets.
_COMPONENT = r"<{name}>\s+\d+\s+\d+\s+<LearnRateCoef>\s+\S+\s+\[([^\]]*)\]"
_TABLE_BLANKS = " \t\r\v\f"


def read_statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """am.mvn: what is added to the features, and what they are then multiplied by, both (F,) float32.

    CheckpointError for a file that holds no such numbers, of one size.
    """
    text = _text(path)
    offset, scale = (_numbers(path, text, name) for name in ("AddShift", "Rescale"))
    if offset.shape != scale.shape or not offset.size:
        raise CheckpointError(f"{path}: has {offset.size} shifts and {scale.size} scales: fetch the file again")
    return offset, scale


def _numbers(path: Path, text: str, name: str) -> np.ndarray:
    match = re.search(_COMPONENT.format(name=name), text)
    if match is None:
        raise CheckpointError(f"{path}: has no numbers of <{name}>: not the am.mvn of a FunASR model")
    try:
        numbers = np.array(match[1].split(), np.float32)
    except ValueError:
        raise CheckpointError(f"{path}: what <{name}> holds are not numbers: fetch the file again") from None
    if not np.isfinite(numbers).all():
        raise CheckpointError(f"{path}: <{name}> holds numbers that are not finite: fetch the file again")
    return numbers


def read_tokens(path: Path | None, listed: Any, size: int) -> TokenTable:
    """The vocabulary of `size` pieces: a tokens.json, a tokens.txt of one piece a line, or else the list `listed`.

    `listed`: token_list of config.yaml. CheckpointError where there is none, or it does not fit.
    """
    if path is None:
        where, pieces = "config.yaml: token_list", listed
        if listed is None:
            raise CheckpointError("no tokens.json lies beside it: give its path as tokens")
    elif path.suffix == ".json":
        where = str(path)
        try:
            pieces = json.loads(_text(path))
        except (ValueError, RecursionError):
            raise CheckpointError(f"{path} is not valid JSON: fetch the file again") from None
    else:
        where = str(path)
        lines = _text(path).split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        if all(re.search(r"[ \t]\d+\s*$", line) for line in lines):
            return TokenTable.read(path, size)  # sherpa-onnx's, with the ids beside the pieces
        pieces = [line.rstrip("\r") for line in lines]
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise CheckpointError(f"{where} is not a list of texts: give the tokens.json of this model as tokens")
    if len(pieces) != size:
        raise CheckpointError(
            f"{where} has {len(pieces)} tokens where {size} are needed: give the tokens.json of this model as tokens"
        )
    for piece in pieces:
        if piece != " " and (not piece or "\n" in piece or piece != piece.strip(_TABLE_BLANKS)):
            raise CheckpointError(f"{where}: the token {piece!r} cannot be written to a tokens.txt")
    return TokenTable(tuple(pieces))


def _text(path: Path) -> str:
    refuse_pointer(path, CheckpointError)
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise CheckpointError(f"{path} is larger than {SIZE_LIMIT >> 20} MB: not such a file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8: fetch the file again") from None
