"""Models of Transformers among the names of a folder or of a hub's repository."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from jaxasr.convert.families import detect
from jaxasr.convert.hub.downloads import choose_files
from jaxasr.convert.hub.names import Request
from jaxasr.convert.hugging_face.candidates import find
from jaxasr.errors import CheckpointError

ONE = ["README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"]
TEXT = ["tokenizer.json", "tokenizer_config.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


def paths(names: list[str]) -> set[PurePosixPath]:
    return {PurePosixPath(name) for name in names}


def test_one_file_or_shards_with_what_belongs_to_them() -> None:
    (candidate,) = find(paths([*ONE, *TEXT]))
    assert candidate.title == "config.json + model.safetensors + preprocessor_config.json + tokenizer_config.json"
    assert str(candidate.tokens) == "tokenizer.json" and not candidate.lacks
    (candidate,) = find(paths(["config.json", INDEX, *SHARDS, "other-1-of-2.safetensors", "processor_config.json"]))
    assert [str(file) for file in candidate.files] == ["config.json", INDEX, *SHARDS, "processor_config.json"]
    assert candidate.tokens is None and candidate.lacks == "tokenizer.json"


def test_the_shallowest_folder_comes_first_and_one_file_before_shards() -> None:
    names = [f"{folder}{name}" for folder in ("b/", "a/", "") for name in ("config.json", "model.safetensors", INDEX)]
    found = [str(candidate.files[1]) for candidate in find(paths([*names, "../config.json", "../model.safetensors"]))]
    expected = [f"{folder}{name}" for folder in ("", "a/", "b/") for name in ("model.safetensors", INDEX)]
    assert found == expected
    assert not list(find(paths(["model.safetensors", "x/config.json"])))


@pytest.mark.parametrize("name", [SHARDS[1], INDEX])
def test_a_shard_names_its_index(name: str) -> None:
    (candidate,) = find(paths(["config.json", INDEX, *SHARDS]), None, PurePosixPath(name))
    assert str(candidate.files[1]) == INDEX
    with pytest.raises(CheckpointError, match="no model.safetensors.index.json and no config.json lies beside it"):
        list(find(paths(SHARDS), None, PurePosixPath(SHARDS[0])))
    assert not list(find(paths(ONE), None, PurePosixPath("README.md")))


def test_a_hub_repository_with_an_archive_too_is_taken_by_its_archive() -> None:
    request = Request("nvidia/parakeet-ctc-1.1b", "nvidia/parakeet-ctc-1.1b", None, "float32", None)
    chosen = [str(path) for path in choose_files([*ONE, *TEXT, "parakeet-ctc-1.1b.nemo"], request)]
    assert chosen == ["parakeet-ctc-1.1b.nemo"]
    chosen = [str(path) for path in choose_files([*ONE, *TEXT], request)]
    assert chosen == [*ONE[1::2], "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"]


def test_a_named_file_decides(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "a.nemo"):
        (tmp_path / name).write_bytes(b"{}")
    chosen, (other,) = detect(tmp_path)
    assert (chosen.family, other.family) == ("nemo", "hugging_face")
    assert detect(tmp_path / "model.safetensors")[0].family == "hugging_face"
    assert detect(tmp_path, family="hugging_face")[0].family == "hugging_face"
