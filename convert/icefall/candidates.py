"""Which files among many names are an icefall checkpoint, in a stated order; naming one of the files overrides it.

The shallowest folder that holds a checkpoint comes first. In one folder the first of these that is complete is taken:
an ONNX trio (encoder, decoder, joiner), an ONNX CTC model, `pretrained.pt`, the `pretrained-*.pt`, `epoch-N.pt`,
`epoch-N-avg-M.pt`, `iter-N*.pt` and `checkpoint-N.pt` with the largest numbers, `best-valid-loss.pt`. Of several trios,
the one with the largest epoch, then the first by name. Each part of a trio is float32 where there is such a file and
int8 where there is not; the precision "int8" turns that round, and "int8-fp32" does so for all parts but the decoder,
which publishers often leave in float32.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from jaxasr.convert.protocol import Candidate
from jaxasr.errors import CheckpointError

EXPECTED = "encoder, decoder and joiner .onnx, a CTC model.onnx, or a .pt of icefall"
VOCABULARIES = ("tokens.txt", "bpe.model")  # the second is what the recipe writes the first from
# Beside a checkpoint, or where an experiment keeps its vocabulary: exp/ beside data/, or NAME/exp/ beside it.
TOKENS = tuple(f"{place}{name}" for name in VOCABULARIES for place in ("", "data/lang*/"))

_PARTS = ("encoder", "decoder", "joiner")
_CHECKPOINT, _EXPORT = "icefall checkpoint (.pt)", "icefall export (.onnx)"


def find(
    names: Collection[PurePosixPath], precision: str | None = None, named: PurePosixPath | None = None
) -> Iterator[Candidate]:
    """The candidates among `names`, as Family.find promises."""
    if named is not None:
        if named.suffix in (".pt", ".onnx"):
            yield _named(named, names, precision)
        return
    folders: dict[PurePosixPath, list[str]] = {}
    for name in names:
        if ".." not in name.parts:
            folders.setdefault(name.parent, []).append(name.name)
    for folder in sorted(folders, key=lambda folder: (len(folder.parts), folder)):
        inside = sorted(folders[folder])
        for files in (*_trios(inside, precision), *_ctc_models(inside, precision), *_torch_files(inside)):
            yield _candidate(folder, files, names, precision)


def _named(named: PurePosixPath, names: Collection[PurePosixPath], precision: str | None) -> Candidate:
    """The checkpoint that the file `named` is, or is a part of."""
    part = next((part for part in _PARTS if named.name.startswith(part)), None)
    if named.suffix == ".pt" or part is None:
        return _candidate(named.parent, [named.name], names, precision)
    stem = _stem(named.name, part)
    if precision is None and named.name.endswith(".int8.onnx"):
        precision = "int8"
    beside = [name.name for name in names if name.parent == named.parent]
    files = {other: named.name if other == part else _variant(beside, other, stem, precision) for other in _PARTS}
    missing = [other for other, file in files.items() if file is None]
    if missing:
        raise CheckpointError(f"no {' and no '.join(missing)} of the same name lies beside it")
    return _candidate(named.parent, [file for file in files.values() if file], names, precision)


def _candidate(
    folder: PurePosixPath, files: list[str], names: Collection[PurePosixPath], precision: str | None
) -> Candidate:
    quantized = [file.endswith(".int8.onnx") for file in files]
    if not quantized[0]:
        found = "float32"
    else:
        found = "int8-fp32" if precision == "int8-fp32" and not all(quantized) else "int8"
    kind = _CHECKPOINT if files[0].endswith(".pt") else _EXPORT
    tokens = _tokens(folder, names)
    paths = tuple(folder / file for file in files)
    return Candidate(
        kind, paths, found, tokens[0] if tokens else None, tuple(tokens[1:]), lacks="" if tokens else "tokens.txt"
    )


def _tokens(folder: PurePosixPath, names: Collection[PurePosixPath]) -> list[PurePosixPath]:
    """The vocabularies that a checkpoint in `folder` may have, the likeliest first: tokens.txt before bpe.model.

    Each beside the checkpoint or one folder above, there also in data/lang*; two folders above only there; else in any
    data/lang*.
    """
    places = [folder, _above(folder)]
    found: list[PurePosixPath] = []
    for file in VOCABULARIES:
        kept = sorted(
            name
            for name in names
            if name.name == file and name.parent.name.startswith("lang") and name.parent.parent.name == "data"
        )
        for place in (*places, _above(places[1])):
            found += [place / file] if place in places and place / file in names else []
            found += [name for name in kept if name.parent.parent.parent == place]
        found += [name for name in kept if name not in found]
    return found


def _above(folder: PurePosixPath) -> PurePosixPath:
    return folder / ".." if folder.name in ("", "..") else folder.parent


def _trios(files: list[str], precision: str | None) -> Iterator[list[str]]:
    stems = {_stem(file, "encoder") for file in files if file.startswith("encoder") and file.endswith(".onnx")}
    for stem in sorted(stems, key=lambda stem: (-_number(r"epoch-(\d+)", stem), stem)):
        parts = [part for part in (_variant(files, part, stem, precision) for part in _PARTS) if part]
        if len(parts) == len(_PARTS):
            yield parts


def _ctc_models(files: list[str], precision: str | None) -> Iterator[list[str]]:
    models = [file for file in files if re.match(r"(model\b|ctc).*\.onnx$", file)]
    quantized = precision is not None and precision.startswith("int8")
    return ([file] for file in sorted(models, key=lambda file: file.endswith(".int8.onnx") != quantized))


def _torch_files(files: list[str]) -> Iterator[list[str]]:
    kinds = (
        r"pretrained\.pt",
        r"pretrained[-_.].+\.pt",
        r"epoch-\d+\.pt",
        r"epoch-\d+-avg-\d+\.pt",
        r"iter-\d+(-avg-\d+)?\.pt",
        r"checkpoint-\d+\.pt",
        r"best-valid-loss\.pt",
        r"best-train-loss\.pt",
    )
    for kind in kinds:
        # Exports by TorchScript, which cannot be read, are called so.
        found = [file for file in files if re.fullmatch(kind, file) and not re.search(r"jit|script", file)]
        yield from ([file] for file in sorted(found, key=_numbers, reverse=True))


def _numbers(file: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", file)]


def _stem(file: str, part: str) -> str:
    """What a trio's names share: encoder-epoch-9-avg-1.int8.onnx -> -epoch-9-avg-1."""
    return re.sub(r"(\.int8)?\.onnx$", "", file.removeprefix(part))


def _variant(files: Collection[str], part: str, stem: str, precision: str | None) -> str | None:
    quantized = precision == "int8" or (precision == "int8-fp32" and part != "decoder")
    endings = (".int8.onnx", ".onnx") if quantized else (".onnx", ".int8.onnx")
    return next((file for ending in endings if (file := f"{part}{stem}{ending}") in files), None)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else -1
