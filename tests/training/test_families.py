"""Networks beside the Zipformer go through the same training: gradients, running averages, constants, devices."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

import tones
from jaxasr import store
from jaxasr.configuration import from_mapping
from jaxasr.manifests import read_manifest
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig
from jaxasr.recognizer import Recognizer
from jaxasr.training.loop import Trainer, new_parameters
from jaxasr.training.recipe import Recipe
from jaxasr.training.runs import LOG, MODEL
from quick_compilation import with_flags
from tones import RECIPE, changed, trainer

CONFORMER = """
name: tones
encoder: {kind: conformer, num_layers: 1, dim: 16, num_heads: 2, feedforward_dim: 24, conv_kernel: 5, subsampling: 4,
  front_end: separable, front_end_channels: 4}
features: {kind: nemo_mel}
text: {kind: sherpa_onnx, recognizer: offline_transducer}
transducer: {vocabulary_size: 5, predictor: {kind: lstm, dim: 12}, joiner_dim: 16, activation: relu, max_symbols: 2}
ctc: {vocabulary_size: 5}
"""
CTC_ONLY = """
name: tones
encoder: {kind: conformer, num_layers: 1, dim: 16, num_heads: 2, feedforward_dim: 24, conv_kernel: 5, subsampling: 4,
  front_end_channels: 4, conv_norm: layer, positions: absolute, use_bias: false}
features: {kind: nemo_mel, window: none}
text: {kind: sherpa_onnx, recognizer: ctc}
ctc: {vocabulary_size: 5}
"""
ICEFALL = """
name: tones
encoder: {kind: icefall_conformer, num_layers: 1, encoder_dim: 16, num_heads: 2, feedforward_dim: 24, conv_kernel: 5,
  embed_channels: [2, 4, 4]}
features: {kind: kaldi}
text: {kind: sherpa_onnx, recognizer: offline_transducer}
transducer: {vocabulary_size: 5, predictor: {kind: stateless, dim: 16}, joiner_dim: 16}
"""
CITRINET = """
name: tones
encoder: {kind: citrinet, blocks: [{filters: 16, kernel: 5, stride: 4}, {filters: 16, kernel: 3, residual: [0]}]}
features: {kind: nemo_mel}
text: {kind: sherpa_onnx, recognizer: ctc}
ctc: {vocabulary_size: 5}
"""
PARAFORMER = """
name: tones
encoder: {kind: sanm, num_layers: 1, dim: 16, num_heads: 2, feedforward_dim: 24, kernel: 3}
features: {kind: lfr}
text: {kind: funasr}
parallel: {vocabulary_size: 5, num_layers: 1, feedforward_dim: 24, num_heads: 2, kernel: 3}
search: {kind: parallel}
"""


def recipe_of(text: str) -> Recipe:
    model = from_mapping(ModelConfig, yaml.safe_load(text), "tests/training/test_families.py")
    return changed(RECIPE, model=model, steps=4, checkpoint_steps=2)


HYBRID = recipe_of(CONFORMER)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones.write_manifest(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def hybrid() -> Any:
    """Parameters that a run of HYBRID begins with."""
    return new_parameters(tones.model_config(HYBRID), HYBRID.seed)


@pytest.fixture(scope="module")
def straight(manifest: Path, hybrid: Any, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of HYBRID, in one go."""
    run = trainer(manifest, tmp_path_factory.mktemp("straight"), HYBRID, hybrid)
    run.train()
    return run


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in store.flatten(tree).items()}


def is_lost(name: str, text: str) -> bool:
    """Biases that change nothing: of keys, as a softmax sees differences; before a batch norm, which removes means."""
    return name.endswith("attention.key.bias") or (text == CONFORMER and name.endswith("conv.depthwise.bias"))


@pytest.mark.parametrize(
    "text",
    [CONFORMER, CTC_ONLY, ICEFALL, CITRINET, PARAFORMER],
    ids=["hybrid", "ctc", "icefall", "citrinet", "paraformer"],
)
def test_gradients_reach_all_that_is_trained(manifest: Path, tmp_path: Path, text: str) -> None:
    """By the step that `jaxasr train` takes: AdamW's moving means are a tenth of the first gradients, clipped alike."""
    run = trainer(manifest, tmp_path, recipe_of(text))
    _, others = AbstractModel(run.config).split(run.state["parameters"])
    kept = {name.rpartition(".")[2] for name in leaves(others)}
    assert (
        kept
        == {
            CONFORMER: {"mean", "variance", "filterbank", "window"},
            CTC_ONLY: {"filterbank"},
            ICEFALL: set(),
            CITRINET: {"mean", "variance", "filterbank", "window"},
            PARAFORMER: {"offset", "scale"},
        }[text]
    )
    trained = set(leaves(run.state["parameters"])) - set(leaves(others))
    assert trained == set(filter(store.is_parameter, leaves(run.state["parameters"])))

    run.state, facts = run.update(run.state, *run.arguments(0, next(run.batches(0))))
    assert set(facts["losses"]) == set(run.config.heads) and np.isfinite(float(facts["loss"]))
    gradients = leaves(run.state["optimizer"][1][0].mu)
    assert set(gradients) == trained
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    unreached = {name for name, gradient in gradients.items() if np.abs(gradient).max() <= 1e-6 * largest}
    assert unreached == {name for name in gradients if is_lost(name, text)}


def test_statistics_run_along_and_constants_stay(straight: Trainer, hybrid: Any) -> None:
    before, after, mean = map(leaves, (hybrid, straight.state["parameters"], straight.averaged))
    for name, values in before.items():
        if name.startswith("features."):
            np.testing.assert_array_equal(after[name], values)
            np.testing.assert_array_equal(mean[name], values)
        elif name.rpartition(".")[2] in ("mean", "variance"):
            # Four steps of a tenth leave two thirds of what there was: every channel has moved, none has arrived.
            assert (after[name] != values).all() and (mean[name] != values).all()
            if name.endswith("variance"):
                assert (after[name] > 0.9**4).all()
        elif not is_lost(name, CONFORMER):
            assert (after[name] != values).any(), name


def test_a_resumed_run_is_an_uninterrupted_one(manifest: Path, straight: Trainer, hybrid: Any, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(progress: Any) -> None:
        if progress.step == 3:
            raise Cut

    with pytest.raises(Cut):
        trainer(manifest, tmp_path, HYBRID, hybrid).train(cut)
    again = trainer(manifest, tmp_path, HYBRID, hybrid)
    assert again.resume() == 2
    again.train()
    for a, b in zip(jax.tree.leaves(straight.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_written_model_says_what_the_trained_one_says(manifest: Path, straight: Trainer) -> None:
    """Whatever that is after four steps; with the blank held down they say something."""
    recordings = [str(utterance.pieces[0].path) for utterance in read_manifest(manifest)][:4]
    config, stored, tokens = store.load(straight.folder.path / MODEL)
    for name, leaf in leaves(straight.averaged).items():
        np.testing.assert_array_equal(store.flatten(stored)[name], leaf)
    said = []
    for parameters in (straight.averaged, stored):
        recognizer = Recognizer(config, parameters, tokens, blank_penalty=3.0)
        said.append([transcript.token_ids for transcript in recognizer.transcribe(recordings)])
    assert said[0] == said[1] and all(said[0])


def test_a_model_in_16_bits_keeps_statistics_and_constants(manifest: Path, hybrid: Any, tmp_path: Path) -> None:
    run = trainer(manifest, tmp_path, dataclasses.replace(HYBRID, stored="float16"), hybrid)
    _, stored, _ = store.load(run.export())
    wide = {name for name, leaf in leaves(stored).items() if leaf.dtype == np.float32}
    assert wide == set(leaves(AbstractModel(run.config).split(hybrid)[1]))
    assert {str(leaf.dtype) for name, leaf in leaves(stored).items() if name not in wide} == {"float16"}


def test_two_devices_have_the_statistics_of_one(manifest: Path, straight: Trainer, hybrid: Any, tmp_path: Path) -> None:
    """Two devices in a process of their own, where the CPU is two, and each has half of every batch."""
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from pathlib import Path
import jax, numpy as np, tones
import test_families
from jaxasr import store
output = Path({str(tmp_path)!r})
run = tones.trainer(Path({str(manifest)!r}), output, test_families.HYBRID, devices=jax.devices()[:2])
run.state, facts = run.update(run.state, *run.arguments(0, next(run.batches(0))))
np.savez(output / "one-step.npz", loss=facts["loss"], norm=facts["gradient_norm"],
    **{{name: np.asarray(leaf) for name, leaf in store.flatten(run.state["parameters"]).items()}})
"""
    environment = {**with_flags("--xla_force_host_platform_device_count=2"), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=600)
    (tmp_path / "one").mkdir()
    one = trainer(manifest, tmp_path / "one", HYBRID, hybrid)
    one.state, facts = one.update(one.state, *one.arguments(0, next(one.batches(0))))
    with np.load(tmp_path / "one-step.npz") as two:
        assert float(two["loss"]) == pytest.approx(float(facts["loss"]), rel=1e-4)
        assert float(two["norm"]) == pytest.approx(float(facts["gradient_norm"]), rel=1e-3)
        for name, leaf in leaves(one.state["parameters"]).items():
            if name.rpartition(".")[2] in ("mean", "variance"):
                np.testing.assert_allclose(two[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)
    first = json.loads((straight.folder.path / LOG).read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(float(facts["loss"]), rel=1e-5)
