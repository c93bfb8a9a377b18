"""`jaxasr info`: model directories and published checkpoints, for people and as JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxasr
from jaxasr.cli.info import fact_lines

Run = Callable[..., Any]


def test_facts_for_people() -> None:
    facts = {
        "kind": "model directory",
        "parameters": 152631330,
        "causal": False,
        "chunk_size": None,
        "heads": ["transducer", "ctc"],
        "passed_over": [],
        "silence_after_s": 0.66,
        "bytes": 1594462,
        "source": [{"file": "a.onnx", "bytes": 2500000}],
        "notes": ["int8 weights are dequantized to float32, once"],
        "device": {"name": "cpu", "count": 2},
    }
    assert list(fact_lines(facts)) == [
        "kind: model directory",
        "parameters: 152,631,330",
        "causal: no",
        "chunk size: none",
        "heads: transducer, ctc",
        "passed over: none",
        "silence after: 0.66 s",
        "size: 1.6 MB (1,594,462 bytes)",
        "source:",
        "  file: a.onnx, size: 2.5 MB (2,500,000 bytes)",
        "notes:",
        "  int8 weights are dequantized to float32, once",
        "device:",
        "  name: cpu",
        "  count: 2",
    ]


def test_long_lists_are_cut_with_a_count() -> None:
    facts = {"passed_over": [f"{n}.onnx" for n in range(5000)], "source": [{"file": f"{n}.pt"} for n in range(5000)]}
    lines = list(fact_lines(facts))
    assert lines[0].endswith(", 19.onnx and 4,980 more") and lines[1:3] == ["source:", "  file: 0.pt"]
    assert len(lines) == 23 and lines[-1] == "  and 4,980 more"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the small model inside the package, in a folder of an odd name."""
    folder = tmp_path / b"my \x1b[2J \xe9 model".decode(errors="surrogateescape")
    shutil.copytree(Path(jaxasr.__file__).parent / "embedded", folder)
    return folder


def test_names_of_a_model_directory_command_no_terminal(run: Run, model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    row = {"file": "\x1b[2J\u202e\n.pt", "bytes": 1, "sha256": "0" * 64}
    manifest["source"] = [row] * 5000
    (model / "manifest.json").write_text(json.dumps(manifest))
    config = (model / "config.yaml").read_text()
    (model / "config.yaml").write_text(re.sub("(?m)^name: .*$", r'name: "a\\x1b]0;b\\x07\\n\\x9bc"', config))
    shown = run("info", model)
    assert (shown.code, shown.err) == (0, "") and shown.out.replace("\n", "").isprintable()
    assert "path: " in shown.out and "my \\x1b[2J \\udce9 model" in shown.out
    assert "name: a\\x1b]0;b\\x07\\n\\x9bc" in shown.out.splitlines()
    assert "  file: \\x1b[2J\\u202e\\n.pt, size: 0.0 MB (1 bytes)" in shown.out and "  and 4,980 more" in shown.out
    result = run("info", model, "--json")
    facts = json.loads(result.out)
    assert facts["path"] == str(model) and facts["name"] == "a\x1b]0;b\x07\n\x9bc" and facts["source"][0] == row
    assert len(facts["source"]) == 5000 and result.out.strip().isprintable()


@pytest.mark.parametrize(
    "source", [None, "a.pt", 3, ["a.pt"], [{"file": 3, "bytes": 1}], [{"file": "a", "bytes": "b"}]]
)
def test_a_damaged_list_of_sources_is_one_line(run: Run, model: Path, source: Any) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps({**manifest, "source": source}))
    result = run("info", model)
    assert (result.code, result.out, len(result.lines)) == (1, "", 1) and "manifest.json is damaged" in result.err


def test_what_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF nothing")
    for path in (tmp_path / "absent", tmp_path / "x.wav", tmp_path):
        result = run("info", path)
        assert (result.code, result.out, len(result.lines)) == (1, "", 1)
        assert str(path) in result.err
        assert run("info", path, "--json").out == ""


@pytest.mark.parametrize(
    "name", ["zipformer-tiny", "zipformer-ja-tiny", "zipformer-streaming-tiny", "zipformer-ctc-tiny"]
)
def test_a_published_checkpoint(run: Run, shared: Path, name: str) -> None:
    folder = shared / "golden" / name
    # The export proves its configuration, and names the files that the folder would give as well.
    checkpoint = next(path for path in sorted(folder.glob("*.onnx")) if path.name.startswith(("encoder", "model")))
    result = run("info", checkpoint, "--json")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert facts["architecture"] == "zipformer" and facts["dtype"] == "float32"
    assert facts["vocabulary"] == (51 if name == "zipformer-ja-tiny" else 48)
    assert facts["causal"] == (name == "zipformer-streaming-tiny")
    assert facts["parameters"] > 100_000 and facts["bytes"] > 1_000_000
    assert f"parameters: {facts['parameters']:,}" in run("info", checkpoint).out.splitlines()


def test_parameters_are_counted_as_nemo_counts_them(run: Run, shared: Path, tmp_path: Path) -> None:
    """Without the filterbank, the window and the averages of the batch norms, which lie beside the parameters."""
    checkpoint = shared / "golden" / "citrinet-tiny" / "model.nemo"
    jaxasr.convert_checkpoint(checkpoint, tmp_path / "model")
    for path in (checkpoint, tmp_path / "model"):
        assert json.loads(run("info", path, "--json").out)["parameters"] == 101_091  # that golden's README


def test_a_model_directory_is_what_its_checkpoint_is(run: Run, shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "zipformer-streaming-tiny"
    (encoder,) = (path for path in folder.glob("encoder*.onnx") if "int8" not in path.name)
    jaxasr.convert_checkpoint(encoder, tmp_path / "model")
    published = json.loads(run("info", encoder, "--json").out)
    converted = json.loads(run("info", tmp_path / "model", "--json").out)
    for key in (
        "architecture", "heads", "search", "head", "beam", "parameters", "dtype", "vocabulary", "causal", "chunk_size",
        "left_context", "silence_before_s", "silence_after_s", "longest_s",
    ):  # fmt: skip
        assert converted[key] == published[key], key
    assert (converted["chunk_size"], converted["left_context"]) == (16, 64)
    assert converted["kind"] == "model directory"
    assert converted["bytes"] >= sum(path.stat().st_size for path in (tmp_path / "model" / "params").rglob("*.*"))
