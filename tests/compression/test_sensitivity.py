"""Bits for a size from the errors of groups, and the command that measures them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from jaxasr import store
from jaxasr.cli import main
from jaxasr.compression import calibration, sensitivity
from jaxasr.compression.sensitivity import CHOICES, Bits, Group, Sensitivity, grouped, spec_text
from jaxasr.configuration import from_mapping
from jaxasr.errors import ConfigError
from jaxasr.quant.rules import QuantizationConfig, Rule
from jaxasr.speechlike import speechlike
from jaxasr.testing import tiny_model_directory


def group(path: str, errors: tuple[float, ...], weights: int = 1000) -> Group:
    rules = {bits: Rule(path=f"{path}.*", bits=bits) for bits in CHOICES}
    sizes = {bits: weights * bits // 8 for bits in CHOICES}
    return Group(path, (f"{path}.kernel",), weights, rules, sizes, dict(zip(CHOICES, errors, strict=True)))


TOUGH, TENDER = group("encoder.tough", (0.001, 0.01, 0.02, 0.05)), group("encoder.tender", (0.01, 0.1, 0.5, 2.0))
FOUND = Sensitivity((TOUGH, TENDER), 500, (Rule(path="*", layer="depthwise", bits=None), Rule(path="*", bits=8)))


@pytest.mark.parametrize(
    ("most", "tough", "tender"),
    [(2500, 8, 8), (2499, 4, 8), (1800, 2, 8), (1700, 4, 4), (1300, 2, 4), (1249, 2, 3), (1000, 2, 2)],
)
def test_what_suffers_least_gets_few_bits(most: float, tough: Bits, tender: Bits) -> None:
    bits = FOUND.propose(most)
    assert FOUND.size(bits) <= most
    assert (bits["encoder.tough"], bits["encoder.tender"]) == (tough, tender)


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(ConfigError, match="a budget of 0.000999 MB is too small.*0.001 MB"):
        FOUND.propose(999)


def test_the_spec_says_what_was_chosen() -> None:
    spec = FOUND.spec({"encoder.tough": 2, "encoder.tender": 8})
    assert from_mapping(QuantizationConfig, yaml.safe_load(spec_text(spec)), "spec") == spec
    chosen = {name: spec.rule(f"encoder.{name}.kernel", (8, 8)) for name in ("tough", "tender")}
    assert {name: rule.bits for name, rule in chosen.items() if rule is not None} == {"tough": 2, "tender": 8}
    assert spec.rule("encoder.tough.depthwise.kernel", (3, 1, 8)) is None


def test_a_block_is_kept_cut_to_a_weight_or_refused(tmp_path: Path) -> None:
    """As `jaxasr quantize` does with it: no weight gets other grids than it was asked for."""
    stored = store.open_model(tiny_model_directory(tmp_path / "model"))
    params = stored.params()
    leaves = store.flatten(params)
    block = 64  # longer than some weights
    found = grouped(stored.config, params, block=block)
    longest = {each.path: max(leaves[path].shape[-2] for path in each.members) for each in found.groups}
    assert max(longest.values()) >= block > min(longest.values()) >= 8
    for each in found.groups:
        assert {bits: rule.block for bits, rule in each.rules.items()} == {
            8: None, **dict.fromkeys((4, 3, 2), min(block, longest[each.path]))
        }  # fmt: skip
    with pytest.raises(ConfigError, match="a block of 4096 does not fit the encoder: its longest weight has") as caught:
        grouped(stored.config, params, block=4096)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WINDOW_SECONDS", 1.0)
    monkeypatch.setattr(sensitivity, "CHOICES", (8, 2))
    model = tiny_model_directory(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", speechlike(4.0, 0), 16000)
    (tmp_path / "manifest.tsv").write_text("path\ttext\na.wav\tA\n")
    spec, plot, out = tmp_path / "spec.yaml", tmp_path / "plot.png", tmp_path / "out"

    def run(*command: str | Path) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(each) for each in command])
        printed = capsys.readouterr()
        return printed.err if caught.value.code else printed.out

    command = ("sensitivity", model, "--manifest", tmp_path / "manifest.tsv", "--block", "16", "--budget")
    assert "is too small: with 2 bits for all of the encoder the arrays take" in run(*command, "0.001")
    stored = store.open_model(model)
    sizes = grouped(stored.config, stored.params(), block=16)
    least, most = (sizes.size(dict.fromkeys((each.path for each in sizes.groups), bits)) for bits in (2, 8))
    budget = (least + most) / 2e6
    found = json.loads(run(*command, f"{budget}", "--output", spec, "--plot", plot, "--json"))
    assert least < found["bytes"] <= budget * 1e6 and 0 < found["error"] and 0 < found["expected_error"]
    assert {each["bits"] for each in found["groups"]} == {8, 2}
    assert all(each["errors"]["2"] > each["errors"]["8"] > 0 for each in found["groups"])
    assert plot.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr("jaxasr.quantizing.encoded_difference", lambda *_: 0.0)
    assert "is ready" in run("quantize", model, out, "--spec", spec)
    entries = store.open_model(out).manifest["arrays"].values()
    assert found["bytes"] == sum(math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize for entry in entries)
