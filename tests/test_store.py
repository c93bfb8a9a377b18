from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

from golden_models import Golden
from jaxasr import store
from jaxasr.errors import CheckpointError, ConfigError, JaxasrError, ModelError


@pytest.fixture
def directory(bundled: Golden, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled.directory, tmp_path / "model"))


def refused(directory: Path, kind: type[JaxasrError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        store.load(directory)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_round_trip(bundled: Golden, directory: Path) -> None:
    config, params, tokens = store.load(directory)
    assert config == bundled.config and tokens == bundled.tokens
    ours, theirs = store.flatten(params), store.flatten(bundled.params)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path])


def test_the_directory_holds_what_it_promises(directory: Path) -> None:
    assert {entry.name for entry in directory.iterdir()} == {
        "config.yaml", "params", "tokens.txt", "README.md", "manifest.json",
    }  # fmt: skip
    manifest = json.loads((directory / "manifest.json").read_text())
    assert len(manifest["source"][0]["sha256"]) == 64
    assert all(len(entry["sha256"]) == 64 for entry in manifest["arrays"].values())
    assert manifest["source"][0]["sha256"] in (directory / "README.md").read_text()


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml", "tokens.txt", "params"])
def test_a_git_lfs_pointer_in_the_place_of_a_file(directory: Path, name: str) -> None:
    """A model directory cloned without git-lfs, which then holds notes of its large files."""
    file = directory / name
    if file.is_dir():
        file = max((path for path in file.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1048576\n")
    refused(directory, ModelError, str(file), "git-lfs pointer", "git lfs pull")


def test_files_that_are_not_the_models_are_not_looked_at(directory: Path) -> None:
    (directory / "demo.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    store.load(directory)


@pytest.mark.parametrize("field", [{"shape": [1, 2]}, {"dtype": "float16"}, {"dtype": "object"}])
def test_a_manifest_of_other_shapes_or_types(directory: Path, field: dict[str, object]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    name = next(iter(manifest["arrays"]))
    manifest["arrays"][name].update(field)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    refused(directory, ModelError, "params", name, "damaged", "convert it again")


@pytest.mark.parametrize("end", [".more", "more"])
def test_a_manifest_of_other_arrays(directory: Path, end: str) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    name = next(iter(manifest["arrays"]))
    manifest["arrays"][name + end] = manifest["arrays"][name]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    refused(directory, ModelError, "params", "damaged", "convert the model again")


def test_a_changed_array_is_noticed(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    name = next(iter(manifest["arrays"]))
    manifest["arrays"][name]["sha256"] = "0" * 64
    (directory / "manifest.json").write_text(json.dumps(manifest))
    refused(directory, ModelError, name, "damaged")
    store.load(directory, verify=False)


def test_flipped_bytes_in_params_are_noticed(directory: Path) -> None:
    largest = max((f for f in (directory / "params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 64):
        data[place] ^= 0xFF
    largest.write_bytes(data)
    os.utime(largest, (1, 1))  # what is kept of it is found by whole seconds, and may be as young as this
    refused(directory, ModelError, "params")


def test_missing_parts_are_named(directory: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent", ModelError, "absent", "jaxasr convert")
    refused(tmp_path, ModelError, "manifest.json")
    shutil.rmtree(directory / "params")
    refused(directory, ModelError, "params")


@pytest.mark.parametrize("name", ["config.yaml", "tokens.txt"])
def test_an_edited_file_is_noticed(directory: Path, name: str) -> None:
    path = directory / name
    path.write_text(path.read_text().replace("1", "2"))
    refused(directory, ModelError, name, "hash")
    path.unlink()
    refused(directory, ModelError, name)


def test_an_unknown_key_is_named(directory: Path) -> None:
    path = directory / "config.yaml"
    path.write_text(path.read_text() + "colour: red\n")
    with pytest.raises(ConfigError, match="colour"):
        store.load_config(directory)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 99, "files": {}, "arrays": {}}'])
def test_damaged_manifests(directory: Path, content: str) -> None:
    (directory / "manifest.json").write_text(content)
    refused(directory, ModelError, "again")


def test_large_arrays_are_written_without_copies(bundled: Golden, tmp_path: Path) -> None:
    """Of numpy's memory; the compressed bytes are TensorStore's own."""
    params = {"layers": {str(number): jax.numpy.full(1 << 18, number, np.float32) for number in range(16)}}
    jax.block_until_ready(params)
    import orbax.checkpoint  # noqa: F401, whose import takes memory

    tracemalloc.start()
    try:
        store.save(tmp_path / "model", bundled.config, params, bundled.tokens, store.ModelCard("x", ()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_an_existing_folder_is_kept(bundled: Golden, tmp_path: Path) -> None:
    card = store.ModelCard("x", ())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ModelError, match="notes"):
            store.save(tmp_path / "notes", bundled.config, bundled.params, bundled.tokens, card, overwrite=overwrite)
    assert (tmp_path / "notes" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(
    bundled: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def interrupt(*_: object) -> None:
        raise fault

    monkeypatch.setattr(store, "_describe_arrays", interrupt)
    with pytest.raises((KeyboardInterrupt, ModelError)):
        store.save(tmp_path / "out", bundled.config, bundled.params, bundled.tokens, store.ModelCard("x", ()))
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_a_model(bundled: Golden, directory: Path) -> None:
    doubled = jax.tree.map(lambda leaf: leaf * 2, bundled.params)
    store.save(directory, bundled.config, doubled, bundled.tokens, store.ModelCard("x", ()), overwrite=True)
    _, params, _ = store.load(directory)
    leaf = store.flatten(params)["encoder.embed.out.kernel"]
    np.testing.assert_array_equal(leaf, bundled.params["encoder"]["embed"]["out"]["kernel"] * 2)


def test_too_few_tokens(bundled: Golden, directory: Path) -> None:
    (directory / "tokens.txt").write_text("<blk> 0\na 1\n")
    with pytest.raises(CheckpointError, match="tokens.txt"):
        store.open_model(directory, verify=False)
