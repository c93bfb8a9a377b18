"""What a family of converters is: a value with four parts, made once in its own folder and listed in families.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jaxasr.convert.formats.quantized import QuantizedTensor
from jaxasr.convert.mapping import Checkpoint
from jaxasr.quant.rules import FloatType

if TYPE_CHECKING:
    import numpy as np

    from jaxasr.detector_config import DetectorConfig
    from jaxasr.model_config import ModelConfig
    from jaxasr.text.tokens import TokenTable

# Which of a publisher's files to prefer where there are several; "int8-fp32": int8 with the small parts in float32.
PRECISIONS = ("float32", "int8", "int8-fp32")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A checkpoint among the names of a folder or repository; nothing of it has been opened yet.

    `kind`: what `jaxasr info` calls it. `files`: in the order in which the family reads them. `precision`: one of
    PRECISIONS. `tokens`: the vocabulary, where one lies among the names; `other_tokens`: those that may be it as well.
    `lacks`: what does not lie there, and must be given through the options. `family`, `folder`: filled in by
    families.py.
    """

    kind: str
    files: tuple[PurePosixPath, ...]
    precision: str = "float32"
    tokens: PurePosixPath | None = None
    other_tokens: tuple[PurePosixPath, ...] = ()
    lacks: str = ""
    family: str = ""
    folder: Path = Path()

    @property
    def paths(self) -> list[Path]:
        """The files on this machine."""
        return [self.folder / file for file in self.files]

    @property
    def title(self) -> str:
        """The names of its files in one line."""
        return " + ".join(map(str, self.files))


@dataclasses.dataclass(frozen=True)
class Options:
    """How to convert. Every field has a default, and a family may ignore what it has no use for.

    `name`: of the model. `tokens`: the vocabulary's file; `other_tokens`: further ones that were found, of which the
    first that fits is taken if `tokens` does not. `config`: a whole configuration, which then is not derived.
    `recipe`: the publisher's own arguments, as their yaml file holds them. `config_file`: where `config` or `recipe`
    stands. `precision`: one of PRECISIONS; `integers`: whether what files hold as integers stays so, beside floats of
    the type `floats` (None: 16 bits where that changes little). `average`: further training checkpoints to average
    with. `chunk_seconds`, `left_context_seconds`: of models that stream; infinity for no chunks and for unlimited
    context. `family`: a name of FAMILIES, the only one to be asked.
    """

    name: str = ""
    tokens: Path | None = None
    other_tokens: tuple[Path, ...] = ()
    config: ModelConfig | None = None
    recipe: Mapping[str, Any] | None = None
    config_file: Path | None = None
    precision: str | None = None
    floats: FloatType | None = None
    average: tuple[Path, ...] = ()
    chunk_seconds: float | None = None
    left_context_seconds: float | None = None
    family: str | None = None

    @property
    def integers(self) -> bool:
        """Whether integers are asked for."""
        return self.precision is not None and self.precision.startswith("int8")


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model directory's contents: `arrays` by the path of the parameter, still as the files hold them.

    A detector has no `tokens`. `quantized`: the integers of those arrays that stay integers, as `config` says.
    """

    config: ModelConfig | DetectorConfig
    arrays: dict[str, np.ndarray]
    tokens: TokenTable | None
    quantized: dict[str, QuantizedTensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Family:
    """One publisher's checkpoints.

    `name`: its key in FAMILIES. `expected`: what its checkpoints consist of, for messages.
    `companions`: patterns of files that may lie beside a checkpoint's folder instead of in it.
    `find(names, precision, named)`: the candidates among `names`, the preferred one first, by names alone. With `named`
    only the one that this file belongs to, whatever it is called; CheckpointError where parts of it are missing.
    `read(candidate, options)`: its tensors and settings. `convert(checkpoint, options)`: a whole model.
    `owns(candidate)`: whether the content of its files, on this machine, is this family's. It is asked where another
    family claims the same files, and then decides.
    `refuse(path)`: raises CheckpointError for a file by which `read` would refuse the whole candidate. The files of a
    hub are asked one by one, so that the weights of another kind of model are not downloaded.
    """

    name: str
    expected: str
    find: Callable[[Collection[PurePosixPath], str | None, PurePosixPath | None], Iterator[Candidate]]
    read: Callable[[Candidate, Options], Checkpoint]
    convert: Callable[[Checkpoint, Options], Converted]
    companions: tuple[str, ...] = ()
    owns: Callable[[Candidate], bool] | None = None
    refuse: Callable[[Path], None] | None = None
