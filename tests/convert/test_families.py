"""The table of families: a folder searched for all of them, and a family of a test's own through every door."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from golden_models import Golden
from jaxasr import store
from jaxasr.convert import convert_checkpoint, describe
from jaxasr.convert.families import FAMILIES, detect, list_names
from jaxasr.convert.hub.downloads import choose_files
from jaxasr.convert.hub.names import Request
from jaxasr.convert.mapping import Checkpoint, Rule, map_tensors, match_parameters, same
from jaxasr.convert.protocol import Candidate, Converted, Family, Options
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.text.tokens import TokenTable


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


# Folders


def test_a_folder_is_listed_as_deep_as_was_asked_and_no_hidden_one_is_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a", "b/c", "b/d/e", "b/d/f/g", ".git/h", ".hidden")
    os.symlink(tmp_path / "b", tmp_path / "link")
    os.symlink(tmp_path / "a", tmp_path / "b" / "linked")
    assert {str(name) for name in list_names(tmp_path, 0)} == {"a", ".hidden"}
    assert {str(name) for name in list_names(tmp_path, 2)} == {"a", ".hidden", "b/c", "b/linked", "b/d/e"}
    assert list_names(tmp_path / "absent", 2) == set()


def test_a_cloned_repository_is_found_with_its_tokens(tmp_path: Path) -> None:
    touch(tmp_path, "exp/pretrained.pt", "exp/epoch-3.pt", "data/lang_bpe_500/tokens.txt")
    for source in (tmp_path, tmp_path / "exp", tmp_path / "exp" / "pretrained.pt"):
        found, others = detect(source)
        assert [path.resolve() for path in found.paths] == [tmp_path / "exp" / "pretrained.pt"]
        assert found.family == "icefall" and found.tokens is not None
        assert (found.folder / found.tokens).resolve() == tmp_path / "data/lang_bpe_500/tokens.txt"
        assert [Path(other.title).name for other in others] == ([] if source.is_file() else ["epoch-3.pt"])


@pytest.mark.parametrize(
    ("checkpoint", "vocabulary"),
    [
        ("exp/best-valid-loss.pt", "data/lang_bpe_500/tokens.txt"),
        ("exp/pretrained-epoch-30-avg-9.pt", "data/lang_bpe_500/bpe.model"),
        ("exp/pretrained.pt", "data/lang_char/tokens.txt"),
        ("zipformer/exp/epoch-30.pt", "data/lang_bpe_500/tokens.txt"),
    ],
)
def test_folders_as_people_have_them(tmp_path: Path, checkpoint: str, vocabulary: str) -> None:
    """An experiment beside its data/, from either folder, and as the recipes nest it."""
    touch(tmp_path, checkpoint, vocabulary, "exp/log/log-train", "data/lang_bpe_500/words.txt")
    for source in {tmp_path, (tmp_path / checkpoint).parent, (tmp_path / checkpoint).parent.parent}:
        found, others = detect(source)
        assert [path.resolve() for path in found.paths] == [tmp_path / checkpoint] and not others
        assert found.tokens is not None and (found.folder / found.tokens).resolve() == tmp_path / vocabulary


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 262144000\n"


@pytest.mark.parametrize("name", ["pretrained.pt", "model.onnx", "weights.safetensors", "encoder", "tokens.txt"])
def test_a_git_lfs_pointer_is_called_that(bundled: Golden, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(
        CheckpointError, match=rf"{name}: a git-lfs pointer in the place of the file: run `git lfs pull`"
    ):
        describe(tmp_path / name)


@pytest.mark.parametrize("name", ["pretrained.pt", "tokens.txt", "bpe.model", "config.yaml"])
def test_a_git_lfs_pointer_among_the_files_of_a_folder(bundled: Golden, tmp_path: Path, name: str) -> None:
    files = ["pretrained.pt", "config.yaml", *(["bpe.model"] if name == "bpe.model" else ["tokens.txt"])]
    for file in files:
        (tmp_path / file).write_bytes(POINTER if file == name else (bundled.folder / file).read_bytes())
    with pytest.raises((CheckpointError, ConfigError), match=rf"{name}: a git-lfs pointer"):
        describe(tmp_path, tmp_path / "config.yaml")


def test_names_of_files_cannot_speak_to_a_terminal(bundled: Golden, tmp_path: Path) -> None:
    folder = tmp_path / "m\x1b[2J\n"
    folder.mkdir()
    for file in ("pretrained.pt", "tokens.txt"):
        (folder / file).write_bytes((bundled.folder / file).read_bytes())
    facts = describe(folder, bundled.folder / "config.yaml")
    assert str(facts["name"]) == "m\\x1b[2J\\n" and facts["path"] == str(folder)
    with pytest.raises(ConfigError, match="attention heads") as error:
        describe(folder)
    assert str(error.value).isprintable() and str(error.value).count("m\\x1b[2J") == 1


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "weights.bin")
    with pytest.raises(CheckpointError, match="holds no checkpoint .* encoder, decoder and joiner"):
        detect(tmp_path)
    with pytest.raises(CheckpointError, match=r"weights\.bin is no checkpoint"):
        detect(tmp_path / "weights.bin")
    touch(tmp_path, "encoder-a.onnx", "decoder-a.onnx")
    with pytest.raises(CheckpointError, match=r"/encoder-a\.onnx: no joiner of the same name"):
        detect(tmp_path / "encoder-a.onnx")
    with pytest.raises(CheckpointError, match="does not exist"):
        detect(tmp_path / "absent")
    with pytest.raises(ConfigError, match="float32, int8, int8-fp32"):
        detect(tmp_path, "int4")
    with pytest.raises(ConfigError, match="family 'whisper' is none of .*icefall"):
        detect(tmp_path, family="whisper")


# A family of a test's own


@pytest.fixture
def toy(bundled: Golden) -> Iterator[str]:
    """A row in the table for a test's duration: arrays of one model in a .toy file, its width in front of each name."""

    def find(
        names: Collection[PurePosixPath], precision: str | None, named: PurePosixPath | None
    ) -> Iterator[Candidate]:
        for name in sorted(names) if named is None else [named]:
            if name.suffix == ".toy":
                yield Candidate("toy file", (name,), tokens=name.with_name("words.txt"))

    def read(candidate: Candidate, options: Options) -> Checkpoint:
        with np.load(candidate.paths[0]) as arrays:
            return Checkpoint(dict(arrays), {"blank": 0}, [f"read as {options.name}"], candidate.paths)

    def convert(checkpoint: Checkpoint, options: Options) -> Converted:
        assert options.tokens is not None
        mapped = map_tensors(checkpoint.tensors, [Rule(r"toy/(?P<path>.+)", "{path}", same)])
        tokens = TokenTable.read(options.tokens, bundled.config.vocabulary_size)
        return Converted(bundled.config, match_parameters(mapped, bundled.config), tokens)

    FAMILIES["toy"] = Family("toy", "a .toy file", find, read, convert)
    yield "toy"
    del FAMILIES["toy"]


def test_a_row_is_all_that_a_family_needs(bundled: Golden, toy: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    arrays = store.flatten(bundled.params)
    with open(source / "model.toy", "wb") as file:
        np.savez(file, **{f"toy/{path}": np.asarray(array) for path, array in arrays.items()})
    (source / "words.txt").write_bytes((bundled.folder / "tokens.txt").read_bytes())
    facts = describe(source)
    assert facts["kind"] == "toy file" and facts["notes"] == ["read as source"]
    card = convert_checkpoint(source, tmp_path / "model")
    assert [row[0] for row in card.source] == ["model.toy"] and card.summary == ("read as source",)
    config, params, tokens = store.load(tmp_path / "model")
    assert config == bundled.config and tokens == bundled.tokens
    for path, array in store.flatten(params).items():
        np.testing.assert_array_equal(array, arrays[path])


def test_the_hub_and_a_choice_of_family_know_the_row(toy: str, tmp_path: Path) -> None:
    names = ["exp/model.toy", "exp/words.txt", "README.md"]
    request = Request("x/x", "x/x", None, "float32", None)
    assert [str(path) for path in choose_files(names, request)] == ["exp/model.toy", "exp/words.txt"]
    touch(tmp_path, "pretrained.pt", "model.toy", "words.txt", "tokens.txt")
    assert detect(tmp_path)[0].family == "icefall"
    assert detect(tmp_path, family=toy)[0].title == "model.toy"
    with pytest.raises(CheckpointError, match=r"expected .*icefall; or .*; or a \.toy file"):
        detect(tmp_path / "tokens.txt")
