"""Programs that an earlier process has traced: found again, told apart, and made anew where they are damaged."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasr import exported, model
from jaxasr.caches import programs_kept
from jaxasr.model import AbstractModel
from jaxasr.model_config import AudioConfig, ModelConfig
from jaxasr.programs import Programs
from jaxasr.search import BeamConfig, GreedyConfig, JointConfig
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.speechlike import speechlike
from jaxasr.testing import random_parameters, tiny_config
from quick_compilation import with_flags

CONFIG = tiny_config()
DETAILS = {"types": ["float32", "float32"], "shape": [2, 4]}
# Two clips of half a second.
WAVEFORMS = np.stack([speechlike(0.5, seed) for seed in range(2)])
LENGTHS = np.array([8000, 6000], np.int32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entries of one test."""
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path))
    return tmp_path / "exported"


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()[:1]), ("batch",))


def hypotheses(waveforms: jax.Array, lengths: jax.Array) -> Hypotheses:
    """What a program returns, of numbers that no recognizer would give: rows (B, S), lengths (B,)."""
    frames = waveforms[:, None]
    counts = frames.astype(jnp.int32) + lengths[:, None, None]
    return Hypotheses(counts, counts, counts, jnp.sin(frames), lengths[:, None], frames.sum(-1))


class Stub:
    """A small program in the place of a recognizer's, which is traced in no time; it counts how often it is."""

    def __init__(self, mesh: Mesh, function: Callable[..., Hypotheses] = hypotheses) -> None:
        self.mesh, self.function, self.traced, self.told = mesh, function, 0, 0

    def trace(self) -> tuple[Callable[..., Hypotheses], tuple[object, ...]]:
        self.traced += 1
        rows = PartitionSpec("batch")
        mapped = jax.shard_map(self.function, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)
        sharding = NamedSharding(self.mesh, rows)
        shapes = (jax.ShapeDtypeStruct((2, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))
        return mapped, tuple(jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding) for each in shapes)

    def lower(self, config: ModelConfig = CONFIG, **details: Any) -> jax.stages.Lowered:
        return exported.lower(config, DETAILS | details, self.mesh, self.trace, self.tell)

    def tell(self) -> None:
        self.told += 1

    def told_for(self) -> bool:
        """Whether it is told that a program is made anew, when it is lowered and compiled as programs are."""
        before = self.told
        with programs_kept():
            self.lower().compile()
        return self.told > before

    def traced_for(self, config: ModelConfig = CONFIG, **details: Any) -> int:
        """How often the program is traced to be lowered once; it always does what it should."""
        before = self.traced
        found = self.lower(config, **details).compile()(np.ones((2, 4), np.float32), np.array([3, 1], np.int32))
        assert isinstance(found, Hypotheses) and found.tokens.tolist() == [[[4] * 4], [[2] * 4]]
        return self.traced - before


def test_a_program_is_traced_once_and_kept(mesh: Mesh, folder: Path) -> None:
    stub = Stub(mesh)
    assert [stub.traced_for() for _ in range(3)] == [1, 0, 0]
    (entry,) = folder.iterdir()
    assert b"pickle" not in entry.read_bytes() and len(entry.name) == 64
    # Whoever traced it compiles what all others compile: JAX's cache knows one program.
    entry.unlink()
    texts = [stub.lower().as_text() for _ in range(2)]
    assert stub.traced == 2 and texts[0] == texts[1]


def test_a_damaged_entry_is_made_anew(mesh: Mesh, folder: Path) -> None:
    stub = Stub(mesh)
    stub.lower()
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    flipped = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in range(len(whole))
    ]
    cut = [whole[:length] for length in (len(whole) - 1, len(whole) // 2, 33, 32, 31, 0)]
    for content in [*flipped, *cut, whole + b"\0", b"\0" * len(whole)]:
        entry.write_bytes(content)
        assert exported._read(entry) is None
    for content in (*flipped[:: len(whole) // 4], *cut):
        entry.write_bytes(content)
        assert [stub.traced_for(), stub.traced_for()] == [1, 0]
        assert exported._read(entry) is not None
    # The program of another shape under this one's name, whole as it is.
    stub.lower(shape=[3, 4])
    (other,) = set(folder.iterdir()) - {entry}
    other.replace(entry)
    assert stub.traced_for() == 1


def test_what_jax_cannot_read_is_made_anew(mesh: Mesh, folder: Path) -> None:
    """An entry whose hash is right all the same, such as of a JAX that was patched."""
    stub = Stub(mesh)
    stub.lower()
    (entry,) = folder.iterdir()
    for content in (b"", b"of another kind", exported._read(entry)[:-200]):
        exported._write(entry, content)
        assert exported._read(entry) == content
        assert [stub.traced_for(), stub.traced_for()] == [1, 0]


def test_whatever_changes_a_program_has_another_entry(
    mesh: Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(mesh)
    assert stub.traced_for() == 1
    searches = (GreedyConfig(head="ctc"), BeamConfig(), BeamConfig(beam=3), JointConfig())
    for config in (
        *(dataclasses.replace(CONFIG, search=search) for search in searches),
        dataclasses.replace(CONFIG, ctc=None),
        dataclasses.replace(CONFIG, encoder=dataclasses.replace(CONFIG.encoder, conv_kernel=(7,))),
    ):
        assert [stub.traced_for(config), stub.traced_for(config)] == [1, 0], config
    for details in ({"types": ["bfloat16", "float32"]}, {"shape": [2, 5]}, {"shape": [4, 2]}):
        assert [stub.traced_for(**details), stub.traced_for(**details)] == [1, 0], details
    with jax.default_matmul_precision("highest"):
        assert [stub.traced_for(), stub.traced_for()] == [1, 0]
    version = importlib.metadata.version
    for package in ("jax", "jaxlib", "flax", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.metadata, "version", lambda name, other=package: version(name) + "+" * (name == other)
            )
            assert [stub.traced_for(), stub.traced_for()] == [1, 0], package
    with monkeypatch.context() as patch:
        patch.setattr(exported, "_SOURCE", "another")
        patch.setattr(exported, "_source", lambda: "another")
        assert [stub.traced_for(), stub.traced_for()] == [1, 0]
    with monkeypatch.context() as patch:
        patch.setattr(exported, "_instructions", lambda: "of another processor")
        assert [stub.traced_for(), stub.traced_for()] == [1, 0]
        patch.setenv("XLA_FLAGS", "of another kind")
        assert [stub.traced_for(), stub.traced_for()] == [1, 0]
    # What the program does not see.
    audio = AudioConfig(silence_before=1.0, longest=20.0)
    assert stub.traced_for(dataclasses.replace(CONFIG, name="renamed", audio=audio, ctc_text=None)) == 0
    assert len(list(folder.iterdir())) == stub.traced


def test_the_instructions_of_the_processor_are_known() -> None:
    known = exported._instructions()
    assert known == exported._instructions() and known == " ".join(sorted(known.split()))
    if Path("/proc/cpuinfo").exists():
        assert {"sse2", "fp", "asimd"} & set(known.split())


def test_an_edited_source_is_another_one(mesh: Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a process runs, its modules stay as they were: it keeps nothing under the name of either source."""
    assert exported._source() == exported._SOURCE is not None
    stub = Stub(mesh)
    with monkeypatch.context() as patch:
        patch.setattr(exported, "_source", lambda: "edited")
        assert [stub.traced_for(), stub.traced_for()] == [1, 1] and not folder.exists()
    assert [stub.traced_for(), stub.traced_for()] == [1, 0]


def test_the_source_is_told_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(exported, "__file__", str(package / "exported.py"))
    assert exported._source() is None  # such as in an archive
    (package / "a.py").write_text("x = 1")
    (package / "b.py").write_text("")
    first = exported._source()
    os.utime(package / "a.py", (1, 1))
    assert exported._source() == first
    (package / "a.py").write_text("x = 2")
    assert exported._source() not in (first, None)
    (package / "a.py").write_text("")
    (package / "b.py").write_text("x = 1")
    assert exported._source() not in (first, None)


@dataclasses.dataclass(frozen=True)
class ForeignGreedy(GreedyConfig):
    """A search of another package, whose source nothing tells."""


def test_nothing_is_kept_that_cannot_be_told_apart_or_is_not_wanted(
    mesh: Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(mesh)
    foreign = dataclasses.replace(CONFIG, search=ForeignGreedy())
    assert [stub.traced_for(foreign), stub.traced_for(foreign)] == [1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(exported, "_SOURCE", None)
        assert [stub.traced_for(), stub.traced_for()] == [1, 1]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert [stub.traced_for(), stub.traced_for()] == [1, 1]
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not folder.exists()


def test_a_program_that_cannot_be_exported_runs(mesh: Mesh, folder: Path) -> None:
    def calling(waveforms: jax.Array, lengths: jax.Array) -> Hypotheses:
        jax.debug.callback(lambda: None)
        return hypotheses(waveforms, lengths)

    stub = Stub(mesh, calling)
    assert [stub.traced_for(), stub.traced_for()] == [1, 1] and not folder.exists()


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    mesh: Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(mesh)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "replace", full)
        assert [stub.traced_for(), stub.traced_for()] == [1, 1]
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_text("a file")
    assert [stub.traced_for(), stub.traced_for()] == [1, 1]
    folder.unlink()
    assert [stub.traced_for(), stub.traced_for()] == [1, 0]
    with monkeypatch.context() as patch:  # as on a disk that may only be read
        patch.setattr(os, "utime", full)
        assert stub.traced_for() == 0


def test_entries_that_were_not_used_for_longest_make_room(
    mesh: Mesh, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(mesh)
    for shape in ([1, 1], [1, 2]):
        stub.lower(shape=shape)
    for entry in folder.iterdir():
        os.utime(entry, (time.time() - 1000, time.time() - 1000))
    stub.lower(shape=[1, 1])
    size = max(entry.stat().st_size for entry in folder.iterdir())
    monkeypatch.setattr(exported, "LIMIT", int(2.5 * size))
    stub.lower(shape=[1, 3])
    assert stub.traced == 3 == len(list(folder.iterdir())) + 1
    assert [stub.traced_for(shape=[1, columns]) for columns in (1, 3, 2)] == [0, 0, 1]


@pytest.fixture
def no_cache_of_the_host() -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("no_cache_of_the_host")
def test_it_is_told_whether_a_program_is_traced_or_compiled_anew(mesh: Mesh, folder: Path) -> None:
    stub = Stub(mesh)
    made_from = CONFIG, DETAILS, mesh
    assert not exported.is_kept(*made_from)
    assert stub.told_for() and exported.is_kept(*made_from)
    assert not stub.told_for() and stub.traced == 1
    (compiled,) = (folder.parent / "programs").glob("jit_recognize_*")
    compiled.unlink()
    assert not exported.is_kept(*made_from)
    assert stub.told_for() and stub.traced == 1 and compiled.exists()
    (entry,) = folder.iterdir()
    entry.unlink()
    assert not exported.is_kept(*made_from)
    assert stub.told_for() and stub.traced == 2 and exported.is_kept(*made_from)


@pytest.mark.usefixtures("no_cache_of_the_host")
def test_a_program_that_is_used_counts_as_used(mesh: Mesh, folder: Path) -> None:
    stub = Stub(mesh)
    stub.told_for()
    files = [*folder.iterdir(), *(folder.parent / "programs").glob("jit_recognize_*")]
    for file in files:
        os.utime(file, (1e9, 1e9))
    stub.told_for()
    assert len(files) == 2 and all(file.stat().st_mtime > 1.5e9 for file in files)


def test_a_recognizers_program_is_neither_traced_nor_its_model_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = random_parameters(AbstractModel(CONFIG).parameters)
    first = Programs(CONFIG, params, search=CONFIG.search)
    expected = jax.device_get(first.run(WAVEFORMS, LENGTHS, 0.5))
    assert len(list(folder.iterdir())) == 1 and expected.length.max() > 0

    def refuse(*_: object) -> None:
        raise AssertionError("the model is not needed")

    with monkeypatch.context() as patch:
        patch.setattr(model, "AbstractModel", refuse)
        patch.setattr(Programs, "recognize", refuse)
        later = Programs(CONFIG, params, search=CONFIG.search)
        found = jax.device_get(later.run(WAVEFORMS, LENGTHS, 0.5))
        with pytest.raises(AssertionError, match="not needed"):
            later.compile(2, 4800)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert later.abstract_model.parameters.keys() == params.keys()
    # As without any of this.
    monkeypatch.setattr(exported, "_SOURCE", None)
    direct = jax.device_get(Programs(CONFIG, params, search=CONFIG.search).run(WAVEFORMS, LENGTHS, 0.5))
    jax.tree.map(np.testing.assert_array_equal, direct, expected)


def test_parameters_that_do_not_fit_are_refused(folder: Path) -> None:
    params = random_parameters(AbstractModel(CONFIG).parameters)
    params["ctc"]["output"]["bias"] = np.zeros(9, np.float32)
    for _ in range(2):
        with pytest.raises(TypeError, match="float32\\[9\\]"):
            Programs(CONFIG, params, search=GreedyConfig(head="ctc")).run(WAVEFORMS, LENGTHS)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("search", [GreedyConfig(head="ctc"), BeamConfig(beam=2), JointConfig(beam=2)])
def test_every_search_can_be_kept(search: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = (Programs(CONFIG, {}, search=search) for _ in range(2))
    text = first._lower(2, 4800, print).as_text()
    monkeypatch.setattr(model, "AbstractModel", None)
    assert later._lower(2, 4800, print).as_text() == text and len(list(folder.iterdir())) == 1


TWO_DEVICES = """
import hashlib, json, os
import jax, numpy as np
from jaxasr import model, programs
from jaxasr.caches import cache_folder
from jaxasr.speechlike import speechlike
from jaxasr.testing import random_parameters, tiny_config

made = []
class Counted(model.AbstractModel):
    def __init__(self, config):
        made.append(config)
        super().__init__(config)

config = tiny_config()
params = random_parameters(model.AbstractModel(config).parameters)
model.AbstractModel = Counted
ours = programs.Programs(config, params, search=config.search)
found = ours.run(np.stack([speechlike(0.5, seed) for seed in range(2)]), np.array([8000, 6000], np.int32))
bits = [hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for leaf in found]
shards = [[shard.device.id, list(shard.data.shape)] for shard in found.length.addressable_shards]
text = ours.compiled[2, 8000].as_text()
files = sorted(path.name for pattern in ("programs/*recognize*", "exported/*") for path in cache_folder().glob(pattern))
print(json.dumps([len(made), bits, shards, files, "all-gather" in text or "all-reduce" in text]))
"""


def test_processes_on_two_devices_have_one_program_and_the_same_bits(tmp_path: Path) -> None:
    environment = dict(with_flags("--xla_force_host_platform_device_count=2"))
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", TWO_DEVICES]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        said.append(json.loads(ended.stdout))
    assert [models for models, *_ in said] == [1, 0]
    assert said[0][1:] == said[1][1:]
    _, _, shards, files, exchanges = said[0]
    assert shards == [[0, [1, 1]], [1, [1, 1]]] and len(files) == 2 and not exchanges
