"""Which files of a folder are the checkpoint: found by a stated order, overridden by naming a file.

In a folder the first of these that is complete is taken: an ONNX trio (encoder, decoder, joiner), an ONNX CTC model,
`pretrained.pt`, the `epoch-N.pt` with the largest N, the `checkpoint-N.pt` with the largest N. Of several trios, the
one with the largest epoch, then the first by name. In a trio each part is float32 where there is such a file and
int8 where there is not; `precision="int8"` turns that round.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from jaxasr.errors import CheckpointError

PARTS = ("encoder", "decoder", "joiner")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint found: its kind, the files to read, and the other candidates that were passed over."""

    kind: str  # "icefall_onnx" or "icefall_pt"
    files: tuple[Path, ...]
    others: tuple[str, ...] = ()


def detect(path: Path, precision: str | None = None) -> Source:
    """The checkpoint at `path`, a file or a folder; CheckpointError where there is none."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a checkpoint file or the folder that holds it")
    if path.is_file():
        return _file(path, precision)
    candidates = [*_trios(path, precision), *_ctc_models(path, precision), *_torch_files(path)]
    if not candidates:
        raise CheckpointError(
            f"{path} holds no checkpoint: expected encoder, decoder and joiner .onnx, a CTC .onnx, or an icefall .pt"
        )
    chosen, *others = candidates
    return dataclasses.replace(chosen, others=tuple(" + ".join(f.name for f in other.files) for other in others))


def find_tokens(source: Source) -> Path | None:
    """tokens.txt beside the checkpoint, or where an icefall experiment keeps it."""
    folder = source.files[0].parent
    for place in (folder, folder.parent):
        for found in (place / "tokens.txt", *sorted(place.glob("data/lang*/tokens.txt"))):
            if found.is_file():
                return found
    return None


def _file(path: Path, precision: str | None) -> Source:
    if path.suffix == ".pt":
        return Source("icefall_pt", (path,))
    if path.suffix != ".onnx":
        raise CheckpointError(f"{path} is no checkpoint that jaxasr knows: expected a .pt or .onnx file of icefall")
    part = next((part for part in PARTS if path.name.startswith(part)), None)
    if part is None:
        return Source("icefall_onnx", (path,))
    stem = _stem(path, part)
    if precision is None and path.name.endswith(".int8.onnx"):
        precision = "int8"
    files = [path if other == part else _variant(path.parent, other, stem, precision) for other in PARTS]
    missing = [other for other, file in zip(PARTS, files, strict=True) if file is None]
    if missing:
        raise CheckpointError(f"{path}: no {' and no '.join(missing)} of the same name lies beside it")
    return Source("icefall_onnx", tuple(files))  # type: ignore[arg-type]


def _trios(folder: Path, precision: str | None) -> list[Source]:
    stems = {_stem(file, "encoder") for file in folder.glob("encoder*.onnx")}
    found = []
    for stem in sorted(stems, key=lambda stem: (-_number(r"epoch-(\d+)", stem), stem)):
        files = [_variant(folder, part, stem, precision) for part in PARTS]
        if all(files):
            found.append(Source("icefall_onnx", tuple(files)))  # type: ignore[arg-type]
    return found


def _ctc_models(folder: Path, precision: str | None) -> list[Source]:
    names = sorted(
        file.name
        for file in folder.glob("*.onnx")
        if re.match(r"(model|ctc)\b", file.name) and not file.name.startswith(PARTS)
    )
    int8 = [name for name in names if name.endswith(".int8.onnx")]
    plain = [name for name in names if name not in int8]
    ordered = int8 + plain if precision == "int8" else plain + int8
    return [Source("icefall_onnx", (folder / name,)) for name in ordered]


def _torch_files(folder: Path) -> list[Source]:
    def rank(file: Path) -> tuple[int, int]:
        if file.name == "pretrained.pt":
            return 0, 0
        kind = 1 if file.name.startswith("epoch-") else 2
        return kind, -_number(r"(\d+)\.pt$", file.name)

    files = [f for f in folder.glob("*.pt") if re.fullmatch(r"pretrained\.pt|(epoch|checkpoint)-\d+\.pt", f.name)]
    return [Source("icefall_pt", (file,)) for file in sorted(files, key=rank)]


def _stem(file: Path, part: str) -> str:
    """What a trio's names share: encoder-epoch-9-avg-1.int8.onnx -> -epoch-9-avg-1."""
    return re.sub(r"(\.int8)?\.onnx$", "", file.name.removeprefix(part))


def _variant(folder: Path, part: str, stem: str, precision: str | None) -> Path | None:
    endings = (".int8.onnx", ".onnx") if precision == "int8" else (".onnx", ".int8.onnx")
    return next((file for ending in endings if (file := folder / f"{part}{stem}{ending}").is_file()), None)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else -1
