"""The training loop: it learns, resumes bit for bit, shares its work among devices, and stops as it should."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr
import tones
from golden_models import Golden
from jaxasr import store
from jaxasr.errors import TrainingError
from jaxasr.manifests import read_manifest
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig
from jaxasr.search import JointConfig
from jaxasr.text.encoding import TextEncoder
from jaxasr.training.augmentation import AugmentationConfig
from jaxasr.training.curriculum import CurriculumConfig
from jaxasr.training.data import Corpus, DataConfig, check
from jaxasr.training.loop import Trainer, new_parameters
from jaxasr.training.objective import Losses, batch_losses
from jaxasr.training.recipe import OptimizerConfig, Recipe
from jaxasr.training.runs import LOG, MODEL, RUN
from quick_compilation import with_flags
from tones import RECIPE, changed, trainer


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones.write_manifest(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def fresh() -> Any:
    """Parameters that a run begins with."""
    return new_parameters(tones.model_config(RECIPE), RECIPE.seed)


@pytest.fixture(scope="module")
def trained() -> Any:
    """Parameters of the model when it knows both tones by far."""
    with np.load(tones.TRAINED) as stored:
        return store.unflatten({name: stored[name].astype(np.float32) for name in stored.files})


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses_of(config: ModelConfig, recipe: Recipe, parameters: Any, key: Any, strength: Any, *batch: Any) -> Losses:
    model = AbstractModel(config).fill(parameters)
    return batch_losses(model, recipe, *batch, key=key, dtype=jnp.dtype("float32"), strength=strength)


def steps_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / LOG).read_text().splitlines()]


def test_twenty_steps_are_ten_and_ten_resumed_bit_for_bit(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    # One schedule for all: it is a function of the step, and knows nothing of where a run was cut.
    straight = trainer(manifest, tmp_path / "straight", RECIPE, fresh)
    straight.folder.path.mkdir()
    seen = []
    straight.train(lambda _: seen.append(jax.device_get(straight.state["parameters"])))

    first = trainer(manifest, tmp_path / "pieces", dataclasses.replace(RECIPE, checkpoint_steps=10), fresh)
    first.folder.path.mkdir()
    with pytest.raises(_Cut):
        first.train(_cut_at(13))
    second = trainer(manifest, tmp_path / "pieces", RECIPE, fresh)
    assert second.resume() == 10
    second.train()

    for a, b in zip(jax.tree.leaves(straight.state), jax.tree.leaves(second.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    logged = [[row["loss"] for row in steps_of(tmp_path / name)] for name in ("straight", "pieces")]
    assert logged[0] == logged[1] and len(logged[0]) == 20

    # What is written is the running mean, and the heads' losses are weighted.
    mean = fresh
    for step, parameters in enumerate(seen):
        decay = min(RECIPE.average, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda a, b, decay=decay: decay * a + (1 - decay) * b, mean, parameters)
    _, written, _ = store.load(straight.folder.model)
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(written), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
    for row in steps_of(tmp_path / "straight"):
        assert row["loss"] == pytest.approx(row["transducer"] + 0.3 * row["ctc"], rel=1e-5)


def test_equal_steps_share_a_program(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    """Whatever their length, learning rate, buckets and checkpoints are."""
    other = changed(RECIPE, steps=7, optimizer={"learning_rate": 0.02}, curriculum={"join_most": 3}, evaluate_steps=1)
    runs = [trainer(manifest, tmp_path, each, fresh) for each in (RECIPE, other)]
    assert runs[0].step == runs[1].step and hash(runs[0].step) == hash(runs[1].step)
    assert trainer(manifest, tmp_path, dataclasses.replace(RECIPE, dropout=0.2), fresh).step != runs[0].step


@pytest.mark.parametrize(
    "hiding",
    [
        {
            "augmentation": dict(
                frequency_masks=2, frequency_mask_bins=80, time_mask_frames=100, time_mask_fraction=1.0
            ),
            "dropout": 0.0,
        },
        {"dropout": 0.9},
    ],
    ids=["augmentation", "dropout"],
)
def test_each_way_of_hiding_changes_the_losses(
    manifest: Path, fresh: Any, tmp_path: Path, hiding: dict[str, Any]
) -> None:
    hidden = changed(RECIPE, **{"augmentation": {"time_masks": 0}, **hiding})
    batch = next(trainer(manifest, tmp_path, RECIPE, fresh).batches(0))

    def at(recipe: Recipe, key: jax.Array | None, strength: float) -> np.ndarray:
        losses = losses_of(tones.model_config(recipe), recipe, fresh, key, strength, *batch.arrays())
        return np.stack([losses.sums["transducer"], losses.sums["ctc"]])

    seen, none, whole = at(RECIPE, None, 1.0), at(hidden, jax.random.key(3), 0.0), at(hidden, jax.random.key(3), 1.0)
    np.testing.assert_allclose(seen, none, rtol=1e-5)
    # Little, since fresh modules add little.
    assert (np.abs(seen - whole) > 1e-3).all()


def test_masks_and_dropout_begin_gently(manifest: Path, trained: Any, tmp_path: Path) -> None:
    """At their first step, counted from 1, nothing is hidden, from their second step on everything that they hide."""
    gentle, full = RECIPE.curriculum.gentle_steps
    assert (gentle, full) == (3, 15)
    config = tones.model_config(RECIPE)
    differences = []
    for done in (gentle - 1, full - 1):
        run = trainer(manifest, tmp_path, RECIPE, trained)
        batch = next(run.batches(0))
        losses = losses_of(config, RECIPE, run.state["parameters"], None, 1.0, *batch.arrays())
        run.state["step"] = run.state["step"] + done
        run.state, facts = run.update(run.state, *run.arguments(done, batch))
        differences.append(abs(float(facts["losses"]["ctc"]) - float(losses.per_token()["ctc"])))
    assert differences[0] < 1e-5 < 1e-3 < differences[1]


def test_bfloat16_computes_what_float32_does(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    facts = []
    for compute in ("float32", "bfloat16"):
        run = trainer(manifest, tmp_path, dataclasses.replace(RECIPE, compute=compute), fresh)
        run.state, made = run.update(run.state, *run.arguments(0, next(run.batches(0))))
        facts.append({**made["losses"], "gradient_norm": made["gradient_norm"]})
        floats = [leaf for leaf in jax.tree.leaves(run.state) if leaf.dtype.kind == "f"]
        assert {str(leaf.dtype) for leaf in floats} == {"float32"}
    for name in ("transducer", "ctc", "gradient_norm"):
        wide, narrow = (float(each[name]) for each in facts)
        assert wide != narrow and narrow == pytest.approx(wide, rel=0.05), name


def test_the_first_epochs_are_clean(manifest: Path) -> None:
    always, never = (
        {"noise_probability": p, "reverberation_probability": p, "telephone_probability": p} for p in (1.0, 0.0)
    )
    corpora = [
        tones.corpus(manifest, changed(RECIPE, augmentation=each, curriculum={"clean_epochs": 1}))
        for each in (always, never)
    ]
    for epoch in (0, 1):
        plans = zip(*(corpus.plan_epoch(epoch, RECIPE.seed) for corpus in corpora), strict=True)
        same = [
            np.array_equal(*(corpus.batch(plan).waveforms for corpus, plan in zip(corpora, pair, strict=True)))
            for pair in plans
        ]
        assert same and (all(same) if epoch == 0 else not any(same))


class _Cut(Exception):
    pass


def _cut_at(step: int) -> Any:
    def report(progress: Any) -> None:
        if progress.step == step:
            raise _Cut

    return report


def test_it_learns_two_tones_and_writes_a_model_that_knows_them(
    manifest: Path, fresh: Any, trained: Any, tmp_path: Path
) -> None:
    """The first steps halve the loss; the last ones start from stored weights, since rounding decides where a run ends.

    600 steps led to the stored weights: their texts are beyond doubt, and the steps taken here are small.
    """
    (tmp_path / "first").mkdir()
    trainer(manifest, tmp_path / "first", RECIPE, fresh).train()
    first = [row["loss"] for row in steps_of(tmp_path / "first")]
    assert np.mean(first[-5:]) < 0.5 * first[0]

    small = changed(RECIPE, optimizer={"learning_rate": 1e-5}, stored="float16")
    run = trainer(manifest, tmp_path, small, trained)
    run.train()
    last = [row["loss"] for row in steps_of(tmp_path)]
    assert np.mean(last[-10:]) < 0.3 * np.mean(first[:10])
    # Stored in 16 bits, loaded like any other.
    _, params, _ = store.load(tmp_path / MODEL)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float16"}
    utterances = read_manifest(manifest)
    recognizer = jaxasr.load_model(tmp_path / MODEL)
    said = [each.text for each in recognizer.transcribe([str(u.pieces[0].path) for u in utterances])]
    assert said == [u.text for u in utterances]


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_checkpoint(
    manifest: Path, fresh: Any, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, checkpoint_steps=2)
    run = trainer(manifest, tmp_path, recipe, fresh)

    def poison(progress: Any) -> None:
        if progress.step == 3:
            run.state["parameters"] = jax.tree.map(lambda leaf: leaf * np.nan, run.state["parameters"])

    with pytest.raises(TrainingError, match=r"step 4: the loss .* not finite; the batch holds .*\.wav"):
        run.train(poison)
    again = trainer(manifest, tmp_path, recipe, fresh)
    assert again.resume() == 2
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(again.state["parameters"]))


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_log_that_cannot_be_written_is_named_and_leaves_no_checkpoint(
    manifest: Path, fresh: Any, tmp_path: Path
) -> None:
    (tmp_path / LOG).mkdir()
    with pytest.raises(TrainingError, match=f"{LOG}: cannot be written"):
        trainer(manifest, tmp_path, RECIPE, fresh).train()
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


@pytest.mark.filterwarnings("ignore:Exception ignored")  # of Orbax' threads; the command line keeps them from users
def test_a_full_disk_leaves_the_checkpoint_before_whole(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    run = trainer(manifest, tmp_path, RECIPE, fresh)
    run.save()
    run.state["step"] = run.state["step"] + 1
    named = (tmp_path / RUN).read_text()
    # A limit on the size of files stands for the full disk: it needs no rights and fails the same calls.
    for limit, name in ((1000, RUN), (max(10000, 2 * len(named)), "checkpoints")):
        with limited_files(limit), pytest.raises(TrainingError, match="cannot be written") as told:
            run.save()
        assert str(told.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(told.value)
        assert (tmp_path / RUN).read_text() == named
    assert "make room and resume" in str(told.value)
    again = trainer(manifest, tmp_path, RECIPE, fresh)
    assert again.resume() == 0
    for a, b in zip(jax.tree.leaves(run.state["parameters"]), jax.tree.leaves(again.state["parameters"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    again.state["step"] = again.state["step"] + 1
    again.save()  # there is room again, and what the failed one left is not in the way
    assert trainer(manifest, tmp_path, RECIPE, fresh).resume() == 1


def test_a_finished_run_takes_no_further_step(manifest: Path, tmp_path: Path) -> None:
    """Of a model with nothing but a CTC head, and by ScaledAdam."""
    assert RECIPE.model is not None
    model = dataclasses.replace(RECIPE.model, transducer=None)
    recipe = dataclasses.replace(RECIPE, steps=2, model=model, optimizer=OptimizerConfig(kind="scaled_adam"))
    done = trainer(manifest, tmp_path, recipe)
    before = jax.device_get(done.state["parameters"])
    done.train()
    assert all(row["loss"] == row["ctc"] > 0 for row in steps_of(tmp_path))
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, done.averaged)), strict=True)]
    assert 0 < max(moved) < 0.1
    shutil.rmtree(tmp_path / MODEL)  # as if the run had been stopped before it was written
    again = trainer(manifest, tmp_path, recipe)
    assert again.resume() == 2
    again.train()
    for a, b in zip(jax.tree.leaves(done.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert store.is_model_directory(tmp_path / MODEL)
    fewer = trainer(manifest, tmp_path, dataclasses.replace(recipe, steps=1))
    fewer.resume()
    with pytest.raises(TrainingError, match="has done 2 steps"):
        fewer.train()


def test_a_model_in_16_bits_is_tuned_in_32(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    narrow = jax.tree.map(lambda leaf: leaf.astype("float16"), fresh)
    run = trainer(manifest, tmp_path, RECIPE, narrow)
    floats = [leaf for leaf in jax.tree.leaves(run.state) if leaf.dtype.kind == "f"]
    assert {str(leaf.dtype) for leaf in floats} == {"float32"}


def test_a_converted_model_is_tuned(goldens: Callable[[str], Golden], shared: Path, tmp_path: Path) -> None:
    golden = goldens("zipformer-streaming-tiny")
    rows = [f"{shared}/golden/audio/{clip}.wav\tTHE SO" for clip in ("digits_a", "espeak_sentence")]
    (tmp_path / "manifest.tsv").write_text("\n".join(["path\ttext", *rows]) + "\n")
    data = DataConfig(bucket_seconds=(4.5,), batch_seconds=9.0)
    # The same two clips at every step, and steps so small that the loss of trained weights falls at each of them: with
    # large ones it rises first, and where it is after a few hangs on the processor's rounding.
    augmentation = AugmentationConfig(
        speed=(1, 1), volume_db=(0, 0), noise_probability=0, reverberation_probability=0, telephone_probability=0,
        frequency_masks=0, time_masks=0,
    )  # fmt: skip
    optimizer = OptimizerConfig(learning_rate=2e-5, warmup_steps=1)
    recipe = dataclasses.replace(
        RECIPE, steps=6, model=None, data=data, dropout=0.0, augmentation=augmentation, optimizer=optimizer
    )
    curriculum = CurriculumConfig()
    good, bad = check(
        read_manifest(tmp_path / "manifest.tsv"), TextEncoder(golden.tokens), golden.config, data, curriculum
    )
    assert not bad
    corpus = Corpus(good, data, curriculum, augmentation)
    run = Trainer(recipe, golden.config, golden.params, golden.tokens, corpus, tmp_path)
    run.train()
    first, *_, last = (row["loss"] for row in steps_of(tmp_path))
    assert last < 0.8 * first
    config, tuned, tokens = store.load(tmp_path / MODEL)
    assert (config, tokens.pieces) == (golden.config, golden.tokens.pieces)
    assert jax.tree.structure(tuned) == jax.tree.structure(golden.params)


@pytest.mark.parametrize("change", [{"seed": 9}, {"data": DataConfig(bucket_seconds=(2.0,), batch_seconds=10.0)}])
def test_a_run_is_resumed_with_what_it_began_with(
    manifest: Path, fresh: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    trainer(manifest, tmp_path, RECIPE, fresh).save()
    (name,) = change
    with pytest.raises(TrainingError, match=f"the recipe's {name} were others"):
        trainer(manifest, tmp_path, dataclasses.replace(RECIPE, **change), fresh).resume()
    assert trainer(manifest, tmp_path, dataclasses.replace(RECIPE, steps=9), fresh).resume() == 0


def test_a_run_of_an_earlier_version_goes_on(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    """What its recipe did not name was at its default; and how the model is searched decides nothing."""
    recipe = dataclasses.replace(RECIPE, dropout=0.0)
    trainer(manifest, tmp_path, recipe, fresh).save()
    before = json.loads((tmp_path / RUN).read_text())
    del before["recipe"]["dropout"], before["recipe"]["curriculum"]["repeat_share"]
    (tmp_path / RUN).write_text(json.dumps(before))
    assert recipe.model is not None
    model = dataclasses.replace(recipe.model, search=JointConfig(beam=8))
    assert trainer(manifest, tmp_path, dataclasses.replace(recipe, model=model), fresh).resume() == 0
    with pytest.raises(TrainingError, match="the recipe's dropout were others"):
        trainer(manifest, tmp_path, dataclasses.replace(recipe, dropout=0.1), fresh).resume()


def test_resuming_nothing_says_so(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint"):
        trainer(manifest, tmp_path, RECIPE, fresh).resume()


def test_two_devices_train_as_one(manifest: Path, fresh: Any, tmp_path: Path) -> None:
    """Two devices in a process of their own, where the CPU is two.

    Compared are the losses and the moving means of the gradients: AdamW makes a whole step of a gradient that is
    nothing but rounding, so that equal parameters would be luck.
    """
    one = trainer(manifest, tmp_path, dataclasses.replace(RECIPE, steps=4), fresh)
    one.train()
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent.parent)]!r}
from pathlib import Path
import dataclasses, jax, numpy as np, tones
from jaxasr import store
output = Path({str(tmp_path)!r}) / "two"
output.mkdir()
recipe = dataclasses.replace(tones.RECIPE, steps=4)
run = tones.trainer(Path({str(manifest)!r}), output, recipe, devices=jax.devices()[:2])
run.train()
assert len(jax.tree.leaves(run.state["parameters"])[0].sharding.device_set) == 2
means = run.state["optimizer"][1][0].mu
np.savez(output / "means.npz", **{{name: np.asarray(leaf) for name, leaf in store.flatten(means).items()}})
"""
    environment = {**with_flags("--xla_force_host_platform_device_count=2"), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=600)
    for here, there in zip(steps_of(tmp_path), steps_of(tmp_path / "two"), strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-3)
    means = store.flatten(one.state["optimizer"][1][0].mu)
    largest = max(float(jnp.abs(leaf).max()) for leaf in means.values())
    with np.load(tmp_path / "two" / "means.npz") as stored:
        assert sorted(stored.files) == sorted(means)
        for name, leaf in means.items():
            np.testing.assert_allclose(stored[name], np.asarray(leaf), atol=2e-3 * largest, rtol=0)
