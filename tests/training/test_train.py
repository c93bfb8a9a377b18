"""`jaxasr.train` as a program calls it; the command line's tests go through it as well."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import jaxasr
import tones
from jaxasr.errors import ConfigError, JaxasrError
from jaxasr.manifests import Utterance
from jaxasr.training.data import Example
from jaxasr.training.loop import Progress
from jaxasr.training.runs import identify

RECIPE = dataclasses.replace(tones.RECIPE, steps=2)


def test_a_run_tells_what_it_has_left(tmp_path: Path, logged: list[str]) -> None:
    manifest = tones.write_manifest(tmp_path, count=4)
    with open(manifest, "a") as file:
        file.write("absent.wav\tx\tA\n")
    reported: list[Progress] = []
    result = jaxasr.train(
        RECIPE, manifest, tmp_path / "run", held_out=[manifest], held_out_where={"path": ["0.wav", "1.wav"]},
        skip_bad=True, report=reported.append,
    )  # fmt: skip
    assert result.model == tmp_path / "run" / "model" and jaxasr.load_model(result.model).config.name == "tones"
    assert result.steps == 2 and result.progress == reported[-1] and [each.step for each in reported] == [1, 2]
    assert sorted(reported[0].losses) == ["ctc", "transducer"]
    assert result.held_out is not None and result.held_out.reference_length == 3
    ((skipped, reason),) = result.skipped
    assert skipped.columns["path"] == "absent.wav" and "absent.wav" in reason and reason in logged

    resumed = jaxasr.train(RECIPE, manifest, tmp_path / "run", skip_bad=True, resume=True)
    assert (resumed.steps, resumed.progress, resumed.held_out) == (2, None, None)


def test_a_run_is_told_apart_by_names_that_are_no_utf8() -> None:
    examples = [Example(Utterance(name, (), "", {"path": "x.wav"}), (1,), 1.0) for name in ("\udce9.tsv", "\udce8.tsv")]
    first, second = (identify(RECIPE, [example], 1)["data"] for example in examples)
    assert len(first) == 64 and first != second


def test_a_head_without_a_loss_is_refused_by_name(tmp_path: Path) -> None:
    """Before the first step: there is no loss of tokens with durations."""
    assert RECIPE.model is not None and RECIPE.model.transducer is not None
    timed = dataclasses.replace(RECIPE.model.transducer, durations=(0, 1, 2))
    recipe = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, transducer=timed))
    with pytest.raises(ConfigError, match="^tones: its transducer predicts durations") as refused:
        jaxasr.train(recipe, tones.write_manifest(tmp_path, count=2), tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_messages_name_arguments(tmp_path: Path) -> None:
    manifest = tones.write_manifest(tmp_path, count=2)
    (tmp_path / "whole" / "model").mkdir(parents=True)
    with open(tmp_path / "bad.tsv", "w") as file:
        file.write("path\ttext\nabsent.wav\tA\n0.wav\tA\n")
    for options, named in (
        ({"resume": True}, "leave out resume"),
        ({"output": tmp_path / "whole"}, "give another output"),
        ({"held_out_where": {"split": ["test"]}}, "held_out_where needs held_out"),
        ({"recipe": dataclasses.replace(RECIPE, model=None)}, "give init"),
        ({"data": tmp_path / "bad.tsv"}, "give skip_bad"),
    ):
        arguments = {"recipe": RECIPE, "data": manifest, "output": tmp_path / "run", **options}
        with pytest.raises(JaxasrError, match=named) as refused:
            jaxasr.train(**arguments)
        assert "--" not in str(refused.value) and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="no-such: no such recipe"):
        jaxasr.train("no-such", manifest, tmp_path / "run")
