"""Which files among many names are a model as Transformers saves it: config.json and the weights beside it.

The shallowest folder comes first. In one folder model.safetensors goes before the index of shards, as Transformers has
it. The other files belong to the candidate where they lie in the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from jaxasr.convert.protocol import Candidate
from jaxasr.errors import CheckpointError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
TOKENIZER_CONFIG, FEATURES, PROCESSOR = "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"
SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
EXPECTED = "config.json beside model.safetensors, or beside shards with their index, as Transformers saves a recogniser"

_KIND = "Transformers model (.safetensors)"
_WEIGHTS = (f"model{SUFFIX}", f"model{INDEX_SUFFIX}")
_SHARD = re.compile(r"(?P<stem>.+)-\d+-of-\d+\.safetensors")


def find(
    names: Collection[PurePosixPath], precision: str | None = None, named: PurePosixPath | None = None
) -> Iterator[Candidate]:
    """The candidates among `names`, as Family.find promises; the type of the weights does not stand in names."""
    if named is not None:
        if named.name.endswith((SUFFIX, INDEX_SUFFIX)):
            yield _named(named, names)
        return
    places = {name.parent for name in names if name.name == CONFIG and ".." not in name.parts}
    for folder in sorted(places, key=lambda folder: (len(folder.parts), folder)):
        for weights in _WEIGHTS:
            if folder / weights in names:
                yield _candidate(folder / weights, names)


def _named(named: PurePosixPath, names: Collection[PurePosixPath]) -> Candidate:
    """The model that the file `named` holds, or holds a shard of."""
    if shard := _SHARD.fullmatch(named.name):
        named = named.with_name(shard["stem"] + INDEX_SUFFIX)
    missing = [file for file in (named.name, CONFIG) if named.with_name(file) not in names]
    if missing:
        raise CheckpointError(f"no {' and no '.join(missing)} lies beside it, as where Transformers saves a model")
    return _candidate(named, names)


def _candidate(weights: PurePosixPath, names: Collection[PurePosixPath]) -> Candidate:
    """config.json, then the weights, then what describes the recogniser's other parts."""
    files = [weights.with_name(CONFIG), weights]
    if weights.name.endswith(INDEX_SUFFIX):
        stem = weights.name.removesuffix(INDEX_SUFFIX)
        beside = [name for name in names if name.parent == weights.parent]
        files += sorted(name for name in beside if (shard := _SHARD.fullmatch(name.name)) and shard["stem"] == stem)
    others = (weights.with_name(file) for file in (FEATURES, PROCESSOR, TOKENIZER_CONFIG))
    files += [file for file in others if file in names]
    tokens = weights.with_name(TOKENIZER)
    found = tokens in names
    return Candidate(_KIND, tuple(files), tokens=tokens if found else None, lacks="" if found else TOKENIZER)
