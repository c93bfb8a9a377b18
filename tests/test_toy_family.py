"""A family that only this test knows: rows in the tables are all that it needs to be converted, loaded and heard.

And no file above the tables names a family or a publisher, so that the next family needs no other place either.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxasr
from conftest import REPOSITORY
from jaxasr import store
from jaxasr.arrays import Count, ceil_div, zero_beyond
from jaxasr.configs import named_configs
from jaxasr.convert import describe
from jaxasr.convert.families import FAMILIES
from jaxasr.convert.hub.published import published_models
from jaxasr.convert.mapping import Checkpoint, Rule, linear, map_tensors, match_parameters, same
from jaxasr.convert.protocol import Candidate, Converted, Family, Options
from jaxasr.encoders import ENCODERS
from jaxasr.errors import ConfigError
from jaxasr.features import FEATURES
from jaxasr.heads.configs import CTCConfig
from jaxasr.layers.dropout import Dropout
from jaxasr.layers.linear import Linear
from jaxasr.model_config import ModelConfig
from jaxasr.text import SPELLINGS
from jaxasr.text.tokens import TokenTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeansConfig:
    """Means of tenths of 100 samples."""

    kind: Literal["means"] = "means"
    sample_rate: int = 16000
    output_dim: int = 10
    frame_seconds: float = 100 / 16000

    def frame_count(self, samples: Count) -> Count:
        return samples // 100


class Means(nnx.Module):
    """A front end with an array of the checkpoint, as mean and variance are."""

    def __init__(self, config: MeansConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.offset = nnx.Param(jnp.zeros((config.output_dim,)))

    def __call__(
        self, waveforms: jax.Array, lengths: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        count = self.config.frame_count(waveforms.shape[1])
        frames = waveforms[:, : count * 100].reshape(len(waveforms), count, 10, 10).mean(-1) - self.offset[...]
        counts = self.config.frame_count(lengths)
        return zero_beyond(frames, counts), counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig:
    kind: Literal["pairs"] = "pairs"
    input_dim: int = 10
    output_dim: int = 4
    subsampling: int = 2

    def encoded_length(self, frames: Count) -> Count:
        return ceil_div(frames, 2)

    def facts(self) -> dict[str, Any]:
        return {"pairs": True}


class Pairs(nnx.Module):
    """Two frames to one."""

    def __init__(self, config: PairsConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.projection = Linear(config.input_dim, config.output_dim, rngs=rngs)

    def __call__(
        self, frames: jax.Array, lengths: jax.Array, dropout: Dropout | None = None
    ) -> tuple[jax.Array, jax.Array]:
        frames = jnp.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, 0)))
        pairs = frames.reshape(len(frames), -1, 2, frames.shape[2]).mean(2)
        return self.projection(pairs), self.config.encoded_length(lengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyphenConfig:
    kind: Literal["hyphens"] = "hyphens"


class Hyphens:
    def __init__(self, config: HyphenConfig) -> None:
        self.config = config

    def __call__(self, pieces: list[str], byte_coding: str = "none") -> tuple[str, list[str]]:
        return "-".join(pieces), list(pieces)


TABLE = (
    Rule("mean", "features.offset", same),
    Rule("weight", "encoder.projection.kernel", linear),
    Rule("bias", "encoder.projection.bias", same),
    Rule("head", "ctc.output.kernel", linear),
    Rule("head_bias", "ctc.output.bias", same),
)


def find(names: Collection[PurePosixPath], precision: str | None, named: PurePosixPath | None) -> Iterator[Candidate]:
    for name in [named] if named else sorted(names):
        if name.suffix == ".toy":
            yield Candidate("toy checkpoint (.toy)", (name,))


def read(candidate: Candidate, options: Options) -> Checkpoint:
    with open(candidate.paths[0], encoding="utf-8") as file:
        tensors = {name: np.array(value, np.float32) for name, value in json.load(file).items()}
    return Checkpoint(tensors, {}, [], candidate.paths)


def convert(checkpoint: Checkpoint, options: Options) -> Converted:
    config = ModelConfig(
        name=options.name, encoder=PairsConfig(), features=MeansConfig(), text=HyphenConfig(), ctc=CTCConfig(3)
    )
    arrays = match_parameters(map_tensors(checkpoint.tensors, TABLE), config)
    return Converted(config, arrays, TokenTable(("<blk>", "up", "down")))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "pairs", (PairsConfig, Pairs))
    monkeypatch.setitem(FEATURES, "means", (MeansConfig, Means))
    monkeypatch.setitem(SPELLINGS, "hyphens", (HyphenConfig, Hyphens))
    monkeypatch.setitem(FAMILIES, "toy", Family("toy", "a .toy file", find, read, convert))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model that says "up" where samples are above 0.25 by enough, "down" where they are below."""
    tensors = {
        "mean": [0.25] * 10,
        "weight": np.full((4, 10), 0.1).tolist(),
        "bias": [0.0] * 4,
        "head": [[0.0] * 4, [5.0] * 4, [-5.0] * 4],
        "head_bias": [1.0, 0.0, 0.0],
    }
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "weights.toy").write_text(json.dumps(tensors))
    return tmp_path / "toy"


@pytest.mark.usefixtures("rows")
def test_it_is_converted_loaded_and_heard(checkpoint: Path, tmp_path: Path) -> None:
    assert describe(checkpoint)["kind"] == "toy checkpoint (.toy)"
    jaxasr.convert_checkpoint(checkpoint, tmp_path / "model")
    assert store.describe(tmp_path / "model").items() >= {"architecture": "pairs", "pairs": True}.items()
    recognizer = jaxasr.load_model(tmp_path / "model")
    sound = np.repeat([0.25, 0.75, 0.25, -0.25, 0.25], 4000).astype(np.float32)
    (heard, again) = recognizer.transcribe([sound, sound[:9000]], sample_rate=16000)
    assert (heard.text, heard.tokens) == ("up-down", ["up", "down"])
    # Of frames of 12.5 ms the first whose samples are mostly of the kind.
    np.testing.assert_allclose(heard.timestamps, [0.25, 0.75], atol=0.0126)
    assert again.text == "up"


@pytest.mark.usefixtures("rows")
def test_its_configuration_is_checked_as_any_other(checkpoint: Path, tmp_path: Path) -> None:
    jaxasr.convert_checkpoint(checkpoint, tmp_path / "model")
    text = (tmp_path / "model" / "config.yaml").read_text()
    for old, new, named in (
        ("input_dim: 10", "input_dim: 9", "10 bins.*input_dim is 9"),
        ("kind: pairs", "kind: triples", "none of .*zipformer, .*pairs"),
    ):
        assert old in text
        (tmp_path / "mine.yaml").write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=named):
            store.read_config(tmp_path / "mine.yaml")


def test_without_its_rows_it_is_unknown(checkpoint: Path) -> None:
    with pytest.raises(jaxasr.JaxasrError, match="no checkpoint that jaxasr knows"):
        describe(checkpoint)


# Families, their publishers and their front ends; published models are named after the corpora they were trained on.
NAMES = re.compile(
    r"(?i:zipformer|conformer|citrinet|quartznet|jasper|paraformer|icefall|sherpa|funasr|kaldi|reazon|librispeech"
    r"|gigaspeech|wenet|parakeet|canary)|(?<![A-Za-z])(?i:nemo|k2|sanm)|NeMo"
)
# Whatever a family brings lies in these rooms, each of them with its table.
ROOMS = ("encoders", "layers", "text", "features")


def names_in(source: str) -> set[str]:
    """Identifiers, imports and string constants of a module that name a family or a publisher; no docstrings.

    Strings of several words are messages and help texts, and names of published models are examples in those.
    """
    tree = ast.parse(source)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body[0].value.value = ""  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Name):
            words = [node.id]
        elif isinstance(node, ast.Attribute):
            words = [node.attr]
        elif isinstance(node, ast.arg):
            words = [node.arg]
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            words = [node.name]
        elif isinstance(node, ast.keyword):
            words = [node.arg or ""]
        elif isinstance(node, ast.alias):
            words = [node.name, node.asname or ""]
        elif isinstance(node, ast.ImportFrom):
            words = [node.module or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value.strip():
            words = [node.value]
        found |= {word for word in words if NAMES.search(word) and word not in PUBLISHED}
    return found


PUBLISHED = {*named_configs(), *(model.name for model in published_models())}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('"""Of the Zipformer."""\nx = 1  # icefall', set()),
        ("from jaxasr.encoders.zipformer import Zipformer", {"jaxasr.encoders.zipformer", "Zipformer"}),
        ("import jaxasr.convert.nemo as x", {"jaxasr.convert.nemo"}),
        ("if config.kind == 'zipformer': pass", {"zipformer"}),
        ("def f(sherpa_text): return FunASRModel.icefall(nemo=1)", {"sherpa_text", "FunASRModel", "icefall", "nemo"}),
        ("class KaldiThing: pass", {"KaldiThing"}),
        ("raise E('such as the Zipformer of icefall')", set()),
        ("DEFAULT = 'reazonspeech_k2_v2'", set()),
    ],
)
def test_the_reader_of_names_sees_them(source: str, named: set[str]) -> None:
    assert names_in(source) == named


def test_no_family_is_named_above_the_tables() -> None:
    folder = REPOSITORY / "jaxasr"
    files = [path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] not in ROOMS]
    assert len(files) > 30
    named = {str(path.relative_to(folder)): names for path in files if (names := names_in(path.read_text("utf-8")))}
    assert not named
    # Of convert/ everything but the publishers' own wings, the one list of these, and what is published.
    folder = REPOSITORY / "convert"
    wings = {"icefall", "nemo", "funasr", "hugging_face", "families.py"}
    files = [path for path in folder.rglob("*.py") if not wings & set(path.relative_to(folder).parts)]
    assert len(files) > 10
    named = {str(path.relative_to(folder)): names for path in files if (names := names_in(path.read_text("utf-8")))}
    assert not named
