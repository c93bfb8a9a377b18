"""Published models by name, against a hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxasr
from conftest import DATA
from fake_hub import FakeHub, serve
from jaxasr import store
from jaxasr.caches import cache_folder
from jaxasr.convert.families import FAMILIES
from jaxasr.convert.hub import names
from jaxasr.convert.hub.downloads import choose_files, convert_once, download
from jaxasr.convert.hub.names import Request, parse
from jaxasr.convert.hub.published import MODELS, PublishedFile, PublishedModel
from jaxasr.convert.protocol import PRECISIONS
from jaxasr.errors import DownloadError

REPOSITORY = "jaxasr-tests/tiny-zipformer"
STEM = "epoch-99-avg-1"
FILES = {
    f"{part}-{STEM}{suffix}.onnx": f"weights of {part}{suffix}".encode() * 50
    for part in ("encoder", "decoder", "joiner")
    for suffix in ("", ".int8")
} | {"tokens.txt": b"<blk> 0\na 1\n", "README.md": b"a card"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, with both caches (huggingface_hub's and ours) in fresh folders."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path / "cache"))
    with serve() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the converter where only downloading matters; returns the log of its calls."""
    log: list[dict[str, Any]] = []

    def convert(source: Path, out_dir: Path, **options: Any) -> None:
        log.append({"files": content(source)} | options)
        out_dir.mkdir()
        (out_dir / "manifest.json").write_text("{}")

    monkeypatch.setattr("jaxasr.convert.convert_checkpoint", convert, raising=False)
    return log


def listed(
    monkeypatch: pytest.MonkeyPatch, commit: str | None, files: dict[str, bytes], pin: bool = True
) -> PublishedModel:
    """Put the test repository into the table of published models, with hashes where `pin` says so."""

    def entry(name: str) -> PublishedFile:
        data = files[name]
        return PublishedFile(name, len(data), hashlib.sha256(data).hexdigest() if pin else None)

    plain = [f"encoder-{STEM}.onnx", f"decoder-{STEM}.onnx", f"joiner-{STEM}.onnx", "tokens.txt"]
    quantized = [f"encoder-{STEM}.int8.onnx", f"decoder-{STEM}.int8.onnx", f"joiner-{STEM}.int8.onnx", "tokens.txt"]
    precisions = {"float32": tuple(map(entry, plain)), "int8": tuple(map(entry, quantized))}
    model = PublishedModel("tiny", REPOSITORY, commit, "Apache-2.0", "icefall", "a_config", precisions)
    monkeypatch.setattr(names, "MODELS", (*MODELS, model))
    return model


def fetch(name: str, precision: str | None = None) -> Path:
    return download(parse(name, precision), cache_folder())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(error: pytest.ExceptionInfo[DownloadError]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# The table


def test_table_is_well_formed() -> None:
    taken = [name for model in MODELS for name in (model.name, model.repository)]
    assert len(taken) == len(set(taken))
    for model in MODELS:
        assert model.revision is None or re.fullmatch("[0-9a-f]{40}", model.revision), model.name
        assert model.family in FAMILIES, model.name
        assert set(model.files) <= set(PRECISIONS) and "float32" in model.files, model.name
        for files in model.files.values():
            assert files[-1].path.endswith(("tokens.txt", "am.mvn"))  # a detector has no tokens
            for file in files:
                assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256), file
                assert file.sha256 is None or model.revision or file.path.endswith("tokens.txt"), (
                    "a hash needs a commit"
                )


def test_table_agrees_with_the_rule_for_unlisted_repositories() -> None:
    for model in MODELS:
        everything = {file.path for files in model.files.values() for file in files}
        for precision, files in model.files.items():
            request = Request(model.name, model.repository, model.revision, precision, None)
            chosen = [str(path) for path in choose_files(everything, request)]
            assert chosen == [file.path for file in files], (model.name, precision)


def test_reazonspeech_is_pinned_to_the_last_byte() -> None:
    (model,) = [model for model in MODELS if model.name == "reazonspeech-k2-v2"]
    assert model.repository == "reazon-research/reazonspeech-k2-v2" and model.licence == "Apache-2.0"
    assert set(model.files) == set(PRECISIONS) and model.revision
    assert all(file.sha256 and file.size for files in model.files.values() for file in files)


# Downloading


def test_fetch_gives_exactly_the_files_of_one_precision(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish(REPOSITORY, FILES)
    listed(monkeypatch, commit, FILES)
    folder = fetch("tiny")
    wanted = {name: data for name, data in FILES.items() if ".int8" not in name and name != "README.md"}
    assert content(folder) == wanted
    assert content(fetch("tiny", "int8")).keys() == {
        f"encoder-{STEM}.int8.onnx",
        f"decoder-{STEM}.int8.onnx",
        f"joiner-{STEM}.int8.onnx",
        "tokens.txt",
    }
    assert (
        fetch("tiny:int8")
        == fetch("tiny:int8", "float32")
        == fetch(f"{REPOSITORY}:int8")
        == fetch("tiny-zipformer", "int8")
        != folder
    )
    record = json.loads((folder.parent / "hub.json").read_text())
    assert record["revision"] == commit and record["repository"] == REPOSITORY and record["licence"] == "Apache-2.0"
    entry = record["files"][f"encoder-{STEM}.onnx"]
    data = FILES[f"encoder-{STEM}.onnx"]
    assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "verified_against": "jaxasr"}


def test_a_pinned_commit_stays_when_the_repository_moves_on(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish(REPOSITORY, FILES)
    listed(monkeypatch, commit, FILES)
    hub.publish(REPOSITORY, FILES | {"tokens.txt": b"others"})
    assert content(fetch("tiny"))["tokens.txt"] == FILES["tokens.txt"]


def test_first_use_pins_a_repository_without_a_known_commit(hub: FakeHub, tmp_path: Path) -> None:
    first = hub.publish(REPOSITORY, FILES)
    folder = fetch(REPOSITORY)
    record = json.loads((folder.parent / "hub.json").read_text())
    assert record["revision"] == first
    assert {entry["verified_against"] for entry in record["files"].values()} == {"hub"}
    hub.publish(REPOSITORY, FILES | {f"encoder-{STEM}.int8.onnx": b"newer"})
    assert content(fetch(REPOSITORY, "int8"))[f"encoder-{STEM}.int8.onnx"] == FILES[f"encoder-{STEM}.int8.onnx"]
    assert (tmp_path / "cache/hub/jaxasr-tests--tiny-zipformer/revision").read_text().strip() == first


def test_a_commit_in_the_name_is_obeyed(hub: FakeHub) -> None:
    first = hub.publish(REPOSITORY, FILES)
    second = hub.publish(REPOSITORY, FILES | {"tokens.txt": b"second"})
    assert content(fetch(f"{REPOSITORY}@{first}"))["tokens.txt"] == FILES["tokens.txt"]
    assert content(fetch(f"{REPOSITORY}@{second}:int8"))["tokens.txt"] == b"second"
    with pytest.raises(DownloadError, match="40 hex digits"):
        fetch(f"{REPOSITORY}@main")
    with pytest.raises(DownloadError, match="knows no commit"):
        fetch(f"{REPOSITORY}@{'0' * 40}")


@pytest.mark.parametrize("name", [f"encoder-{STEM}.onnx", "tokens.txt"])
@pytest.mark.parametrize("pin", [True, False])
def test_bytes_that_are_not_the_stated_ones_are_refused(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, conversions: list[Any], tmp_path: Path, name: str, pin: bool
) -> None:
    listed(monkeypatch, hub.publish(REPOSITORY, FILES), FILES, pin)
    flipped = bytearray(FILES[name])
    flipped[3] ^= 1
    hub.sent[name] = bytes(flipped)
    with pytest.raises(DownloadError, match="not what was pinned") as error:
        convert_once("tiny")
    assert name in one_line(error)
    assert conversions == [] and not list((tmp_path / "cache").rglob("manifest.json"))
    assert not list((tmp_path / "cache").rglob("hub.json"))


def test_a_repository_rewritten_under_its_pin_is_refused_before_the_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.publish(REPOSITORY, FILES)
    listed(monkeypatch, commit, FILES)
    hub.publish(REPOSITORY, FILES | {f"encoder-{STEM}.onnx": b"evil"}, commit)
    with pytest.raises(DownloadError, match="not what was pinned") as error:
        fetch("tiny")
    assert one_line(error) and hub.downloads() == []


def test_what_the_first_download_recorded_holds_later(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.publish(REPOSITORY, FILES)
    folder = fetch(REPOSITORY)
    for link in folder.iterdir():
        link.resolve().unlink()  # the user emptied huggingface_hub's cache
    hub.publish(REPOSITORY, FILES | {"tokens.txt": b"rewritten"}, commit)
    with pytest.raises(DownloadError, match="tokens.txt is not what was pinned"):
        fetch(REPOSITORY)


def test_a_damaged_cache_is_noticed(hub: FakeHub) -> None:
    hub.publish(REPOSITORY, FILES)
    damaged = fetch(REPOSITORY) / f"joiner-{STEM}.onnx"
    damaged.resolve().write_bytes(b"short")
    with pytest.raises(DownloadError, match="delete .* and try again"):
        fetch(REPOSITORY)
    damaged.resolve().unlink()
    assert content(fetch(REPOSITORY))[damaged.name] == FILES[damaged.name]


# Converting


def test_converted_once_and_offline_afterwards(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, conversions: list[dict[str, Any]]
) -> None:
    listed(monkeypatch, hub.publish(REPOSITORY, FILES), FILES)
    directory = convert_once("tiny")
    assert (directory / "manifest.json").is_file() and jaxasr.__version__ in directory.name
    assert [(call["config"], call["family"], call["licence"]) for call in conversions] == [
        ("a_config", "icefall", "Apache-2.0")
    ]
    assert re.fullmatch(f"{REPOSITORY}@[0-9a-f]{{40}}", conversions[0]["origin"])
    assert conversions[0]["files"] == content(fetch("tiny"))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the second call must not use the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert convert_once("tiny") == convert_once(REPOSITORY) == directory
    assert len(conversions) == 1


def test_unlisted_repository_is_offline_afterwards_too(hub: FakeHub, conversions: list[Any]) -> None:
    hub.publish(REPOSITORY, FILES)
    directory = convert_once(REPOSITORY)
    asked = len(hub.requests)
    assert convert_once(REPOSITORY) == directory
    assert len(hub.requests) == asked and len(conversions) == 1 and conversions[0]["config"] is None


def test_two_at_once_convert_once(hub: FakeHub, conversions: list[Any]) -> None:
    hub.publish(REPOSITORY, FILES)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(convert_once(REPOSITORY))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(conversions) == 1


def test_a_failed_conversion_is_tried_again(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, conversions: list[Any]
) -> None:
    hub.publish(REPOSITORY, FILES)
    working = sys.modules["jaxasr.convert"].convert_checkpoint

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxasr.convert.convert_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_once(REPOSITORY)
    monkeypatch.setattr("jaxasr.convert.convert_checkpoint", working)
    assert (convert_once(REPOSITORY) / "manifest.json").is_file()


# Names


def test_unknown_names_list_what_is_near() -> None:
    with pytest.raises(DownloadError, match="did you mean reazonspeech-k2-v2") as error:
        convert_once("reazonspech-k2-v2")
    assert "jaxasr convert" in one_line(error)
    with pytest.raises(DownloadError, match="known are .*librispeech-zipformer-small") as error:
        convert_once("whisper")
    one_line(error)
    for name in ("", "a/b/c", "../secret", "org/..", "org/repo@", "org/repo@main"):
        with pytest.raises(DownloadError) as error:
            convert_once(name)
        one_line(error)


def test_a_name_one_letter_off_a_listed_one_is_not_followed(hub: FakeHub) -> None:
    trap = "reazon-reserch/reazonspeech-k2-v2"
    commit = hub.publish(trap, FILES)
    with pytest.raises(DownloadError, match="did you mean that") as error:
        fetch(trap)
    assert "reazon-research/reazonspeech-k2-v2" in one_line(error) and hub.requests == []
    assert content(fetch(f"{trap}@{commit}"))["tokens.txt"] == FILES["tokens.txt"]  # who names the commit means it


def test_precisions_that_do_not_exist(hub: FakeHub) -> None:
    with pytest.raises(DownloadError, match="no precision 'int4'; it has float32, int8, int8-fp32") as error:
        fetch("reazonspeech-k2-v2:int4")
    one_line(error)
    hub.publish(REPOSITORY, {name: data for name, data in FILES.items() if ".int8" not in name})
    with pytest.raises(DownloadError, match="holds no int8 checkpoint") as error:
        fetch(f"{REPOSITORY}:int8")
    one_line(error)
    assert content(fetch(f"{REPOSITORY}:fp32")).keys() == content(fetch(REPOSITORY)).keys()


def test_repositories_that_hold_nothing_known_are_left_alone(hub: FakeHub) -> None:
    hub.publish("someone/else", {"model.safetensors": b"x", "encoder.onnx": b"x", "tokens.txt": b"x", "run.py": b"x"})
    with pytest.raises(DownloadError, match="holds no float32 checkpoint"):
        fetch("someone/else")
    assert hub.downloads() == []
    with pytest.raises(DownloadError, match="neither a folder here nor a public repository") as error:
        fetch("someone/nothing")
    one_line(error)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_downloaded(hub: FakeHub) -> None:
    files = {"config.json": b'{"model_type": "whisper"}', "model.safetensors": b"x" * 5000, "tokenizer.json": b"{}"}
    hub.publish("someone/whisper", files)
    with pytest.raises(DownloadError, match="someone/whisper: config.json: model_type is 'whisper': no recogniser"):
        convert_once("someone/whisper")
    assert hub.downloads() == ["config.json"]


def test_a_model_of_transformers_by_its_name(hub: FakeHub) -> None:
    folder = DATA / "transformers-tiny/ctc"
    published = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "expected.json")
    hub.publish("someone/parakeet-ctc-tiny", {name: (folder / name).read_bytes() for name in published})
    directory = convert_once("someone/parakeet-ctc-tiny")
    assert hub.downloads() == list(published[:4])
    assert store.load_config(directory).name == "parakeet-ctc-tiny"
    assert convert_once("someone/parakeet-ctc-tiny") == directory and len(hub.downloads()) == 4


@pytest.mark.parametrize(
    ("paths", "precision", "chosen"),
    [
        (["encoder.onnx", "decoder.onnx", "joiner.onnx", "model.onnx", "tokens.txt"], "float32", 0),
        (
            [f"{part}-epoch-{epoch}.onnx" for part in ("encoder", "decoder", "joiner") for epoch in (9, 30)]
            + ["tokens.txt"],
            "float32",
            ["encoder-epoch-30.onnx", "decoder-epoch-30.onnx", "joiner-epoch-30.onnx", "tokens.txt"],
        ),
        (["model.onnx", "exp/pretrained.pt", "tokens.txt"], "float32", ["model.onnx", "tokens.txt"]),
        (["model.int8.onnx", "model.onnx", "tokens.txt"], "int8", ["model.int8.onnx", "tokens.txt"]),
        (["ctc-epoch-1.onnx", "tokens.txt"], "float32", ["ctc-epoch-1.onnx", "tokens.txt"]),
        (
            ["exp/pretrained.pt", "exp/epoch-30.pt", "data/lang_bpe_500/tokens.txt", "data/lang_bpe_500/bpe.model"],
            "float32",
            ["exp/pretrained.pt", "data/lang_bpe_500/tokens.txt"],
        ),
        (
            ["encoder-a.int8.onnx", "decoder-a.onnx", "joiner-a.int8.onnx", "tokens.txt"],
            "int8",
            ["encoder-a.int8.onnx", "decoder-a.onnx", "joiner-a.int8.onnx", "tokens.txt"],
        ),
    ],
)
def test_choice_among_the_files_of_a_repository(paths: list[str], precision: str, chosen: Any) -> None:
    expected = ["encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"] if chosen == 0 else chosen
    assert [str(path) for path in choose_files(paths, Request("x", "x/x", None, precision, None))] == expected


# No network, no disk


def test_no_network_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DownloadError, match="could not be downloaded") as error:
        convert_once("reazonspeech-k2-v2", endpoint=closed)
    assert "check the network" in one_line(error) and closed in one_line(error)
    assert not list((tmp_path / "cache").rglob("hub.json"))


def test_a_connection_lost_between_files_names_the_address(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def lost(*arguments: object, **options: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("check your connection") from ConnectionError("reset")

    hub.publish(REPOSITORY, FILES)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lost)
    with pytest.raises(DownloadError, match=r"could not be downloaded from http://127\.0\.0\.1:\d+ \(reset\)"):
        fetch(REPOSITORY)


def test_offline_mode_is_one_line_and_uses_what_is_there(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, conversions: list[Any]
) -> None:
    import huggingface_hub.constants

    hub.publish(REPOSITORY, FILES)
    directory = convert_once(REPOSITORY)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert convert_once(REPOSITORY) == directory
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE") as error:
        convert_once(f"{REPOSITORY}:int8")
    one_line(error)


def offline(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    """HF_HUB_OFFLINE is set, a cache of ours is empty, and whoever asks the hub all the same fails."""
    import huggingface_hub.constants

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("offline, no network may be used")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("JAXASR_CACHE", str(cache_folder().with_name("another cache")))
    monkeypatch.setattr(socket, "create_connection", refuse)
    hub.requests.clear()


def into_hub_cache(hub: FakeHub, *files: str) -> Path:
    """Download `files` as huggingface_hub and its command line do; the snapshot that holds them."""
    import huggingface_hub

    paths = [Path(huggingface_hub.hf_hub_download(REPOSITORY, file, endpoint=hub.endpoint)) for file in files]
    return paths[0].parent


@pytest.mark.parametrize("name", [REPOSITORY, "tiny", "by commit"])
def test_offline_the_hubs_own_cache_is_enough(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The files lie where huggingface_hub or `hf download` put them; ours never saw the repository."""
    commit = hub.publish(REPOSITORY, FILES)
    if name == "tiny":
        listed(monkeypatch, commit, FILES)
    into_hub_cache(hub, *FILES)
    offline(monkeypatch, hub)
    folder = fetch(f"{REPOSITORY}@{commit}" if name == "by commit" else name)
    assert content(folder) == {file: FILES[file] for file in FILES if "int8" not in file and file != "README.md"}
    record = json.loads((folder.parent / "hub.json").read_text())
    assert record["revision"] == commit and hub.requests == []
    assert {entry["verified_against"] for entry in record["files"].values()} == {"jaxasr" if name == "tiny" else "hub"}


def test_offline_what_the_hubs_cache_holds_is_verified(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.publish(REPOSITORY, FILES)
    snapshot = into_hub_cache(hub, *FILES)
    offline(monkeypatch, hub)
    joiner = snapshot / f"joiner-{STEM}.onnx"
    blob = joiner.resolve()
    blob.write_bytes(blob.read_bytes()[::-1])
    with pytest.raises(DownloadError, match="is not what was pinned"):
        fetch(REPOSITORY)
    # Where links cannot be made, the cache holds the files themselves, whose hashes nobody stated.
    joiner.unlink()
    joiner.write_bytes(FILES[joiner.name])
    (snapshot.parents[1] / "refs" / "main").unlink()
    record = json.loads((fetch(REPOSITORY).parent / "hub.json").read_text())["files"]
    assert record[joiner.name]["verified_against"].startswith("nothing")
    assert record[joiner.name]["sha256"] == hashlib.sha256(FILES[joiner.name]).hexdigest()


def test_offline_a_part_of_a_model_is_none(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish(REPOSITORY, FILES)
    into_hub_cache(hub, f"encoder-{STEM}.onnx", f"decoder-{STEM}.onnx", "tokens.txt")
    listed(monkeypatch, commit, FILES)
    offline(monkeypatch, hub)
    for name in ("tiny", f"{REPOSITORY}:int8", "someone/nothing", f"someone/nothing@{'0' * 40}"):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE") as error:
            fetch(name)
        assert re.split("[:@]", name)[0] in one_line(error)


def test_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(REPOSITORY, FILES)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("JAXASR_CACHE", str(tmp_path / "a file"))
    with pytest.raises(DownloadError, match="JAXASR_CACHE") as error:
        convert_once(REPOSITORY)
    one_line(error)


def test_a_cached_model_is_found_without_importing_huggingface_hub(hub: FakeHub, conversions: list[Any]) -> None:
    hub.publish(REPOSITORY, FILES)
    directory = convert_once(REPOSITORY)
    program = (
        "import sys; from jaxasr.convert.hub.downloads import convert_once; "
        f"print(convert_once({REPOSITORY!r})); print([m for m in ('huggingface_hub', 'jax') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ.copy())
    assert result.stdout.splitlines() == [str(directory), "[]"], result.stderr


# A real checkpoint, from the name to the words

PROGRAM = "import sys; from jaxasr.cli import main; sys.argv[0] = 'jaxasr'; main()"
WITHOUT_NETWORK = """
import socket

def refuse(*arguments, **options):
    raise AssertionError("the second run must not use the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def test_from_a_name_to_the_words(hub: FakeHub, shared: Path, tmp_path: Path) -> None:
    """`jaxasr transcribe --model NAME`: downloaded and converted at first, then run again with sockets blocked."""
    golden, clip = shared / "golden" / "zipformer-tiny", shared / "golden" / "audio" / "espeak_sentence.wav"
    files = {name: golden / name.replace(STEM, "epoch-2-avg-1") for name in FILES if name != "README.md"}
    hub.publish(REPOSITORY, {name: path.read_bytes() for name, path in files.items()})
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "huggingface"),
        "JAXASR_CACHE": str(tmp_path / "cache"),
    }
    arguments = ["transcribe", str(clip), "--model", REPOSITORY, "--format", "json"]

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment
        )

    first = run(PROGRAM)
    assert first.returncode == 0, first.stderr
    transcript = json.loads(first.stdout)
    transcript = transcript[0] if isinstance(transcript, list) else transcript
    expected = json.loads((golden / "sherpa_onnx.json").read_text())["runs"]["greedy_search"]["espeak_sentence"]
    assert transcript["text"] == expected["text"]
    assert transcript["timestamps"] == pytest.approx(expected["timestamps"], abs=1e-3)
    assert hub.downloads() == [f"{part}-{STEM}.onnx" for part in ("encoder", "decoder", "joiner")] + ["tokens.txt"]

    asked = len(hub.requests)
    second = run(WITHOUT_NETWORK + PROGRAM)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout and len(hub.requests) == asked


def test_no_network_on_the_command_line_is_one_line(hub: FakeHub, shared: Path, tmp_path: Path) -> None:
    clip = shared / "golden" / "audio" / "short.wav"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "JAXASR_CACHE": str(tmp_path / "cache")}
    for model, words in (("reazonspeech-k2-v2", "check the network"), ("reazonspech", "did you mean")):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, "transcribe", str(clip), "--model", model],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert result.returncode != 0 and result.stdout == ""
        assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1
