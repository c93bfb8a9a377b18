"""The training loop: it learns, resumes bit for bit, shares its work among devices, and stops as it should."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
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
import soundfile

import jaxasr
from golden_models import Golden
from jaxasr import store
from jaxasr.encoders.zipformer import ZipformerConfig
from jaxasr.errors import TrainingError
from jaxasr.features.kaldi import KaldiConfig
from jaxasr.heads.ctc import CTCConfig
from jaxasr.heads.predictors import StatelessConfig
from jaxasr.heads.transducer import TransducerConfig
from jaxasr.manifests import read_manifest
from jaxasr.model import ModelConfig
from jaxasr.search import JointConfig
from jaxasr.text.encoding import TextEncoder
from jaxasr.text.sherpa_onnx import SherpaOnnxConfig
from jaxasr.text.tokens import TokenTable
from jaxasr.training.augmentation import AugmentationConfig
from jaxasr.training.data import Corpus, DataConfig, check
from jaxasr.training.loop import LOG, MODEL, RUN, Trainer, losses, new_parameters, with_vocabulary
from jaxasr.training.recipe import OptimizerConfig, Recipe

RATE = 16000
TOKENS = TokenTable(("<blk>", "<unk>", "▁A", "▁B"))
TONES = {"A": 400.0, "B": 1800.0}  # Hz
DATA = DataConfig(bucket_seconds=(2.0,), batch_seconds=8.0, join_below=0.6, join_most=2, gap_seconds=(0.05, 0.2))


def encoder() -> ZipformerConfig:
    one = {"encoder_dim": 16, "feedforward_dim": 16, "num_heads": 2, "query_head_dim": 8, "value_head_dim": 4}
    sizes: dict[str, Any] = {name: (size, size) for name, size in one.items()}
    return ZipformerConfig(
        num_layers=(1, 1),
        downsampling=(1, 2),
        pos_head_dim=(4, 4),
        conv_kernel=(7, 7),
        embed_channels=(4, 4, 4),
        **sizes,
    )


RECIPE = Recipe(
    steps=4,
    model=ModelConfig(
        name="toy",
        encoder=encoder(),
        features=KaldiConfig(),
        text=SherpaOnnxConfig(recognizer="offline_transducer"),
        transducer=TransducerConfig(4, StatelessConfig(dim=16), 16),
        ctc=CTCConfig(4),
    ),
    data=DATA,
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=5),
    checkpoint_steps=100,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short tones, low ones called A and high ones B, and their mixtures of two."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(5)
    rows = ["path\tspeaker\ttext"]
    for index in range(12):
        text = " ".join(generator.choice(["A", "B"], 1 + index % 2))
        parts = []
        for word in text.split():
            time = np.arange(int(0.35 * RATE)) / RATE
            parts += [0.3 * np.sin(2 * np.pi * TONES[word] * time), np.zeros(RATE // 10)]
        soundfile.write(folder / f"{index}.wav", np.concatenate(parts), RATE)
        rows.append(f"{index}.wav\tx\t{text}")
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.tsv"


def trainer(manifest: Path, output: Path, recipe: Recipe = RECIPE, **options: Any) -> Trainer:
    good, bad = check(read_manifest(manifest), TextEncoder(TOKENS), recipe.data)
    assert not bad
    config = with_vocabulary(recipe.model, TOKENS)
    parameters = new_parameters(config, recipe.seed)
    return Trainer(recipe, config, parameters, TOKENS, Corpus(good, recipe.data), output, **options)


def steps_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / LOG).read_text().splitlines()]


@pytest.mark.slow
def test_twenty_steps_are_ten_and_ten_resumed_bit_for_bit(manifest: Path, tmp_path: Path) -> None:
    # One schedule for all: it is a function of the step, and knows nothing of where a run was cut.
    whole = dataclasses.replace(RECIPE, steps=20, dropout=0.1, gentle_steps=(3, 15))
    straight = trainer(manifest, tmp_path / "straight", whole)
    straight.output.mkdir()
    seen = []
    straight.train(lambda _: seen.append(jax.device_get(straight.state["parameters"])))

    first = trainer(manifest, tmp_path / "pieces", dataclasses.replace(whole, checkpoint_steps=10))
    first.output.mkdir()
    with pytest.raises(_Cut):
        first.train(_cut_at(13))
    second = trainer(manifest, tmp_path / "pieces", whole)
    assert second.resume() == 10
    second.train()

    for a, b in zip(jax.tree.leaves(straight.state), jax.tree.leaves(second.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    logged = [[row["loss"] for row in steps_of(tmp_path / name)] for name in ("straight", "pieces")]
    assert logged[0] == logged[1] and len(logged[0]) == 20

    # What is written is the running mean, and the heads' losses are weighted.
    mean = new_parameters(straight.config, whole.seed)
    for step, parameters in enumerate(seen):
        decay = min(whole.average, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda a, b, decay=decay: decay * a + (1 - decay) * b, mean, parameters)
    _, written, _ = store.load(straight.output / MODEL)
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(written), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
    for row in steps_of(straight.output):
        assert row["loss"] == pytest.approx(row["transducer"] + 0.3 * row["ctc"], rel=1e-5)


NOTHING_HIDDEN = AugmentationConfig(frequency_masks=0, time_masks=0)


@pytest.mark.parametrize(
    "hiding",
    [
        {"augmentation": AugmentationConfig(frequency_mask_bins=80, time_mask_fraction=1.0)},
        {"dropout": 0.9},
    ],
    ids=lambda hiding: next(iter(hiding)),
)
def test_each_way_of_hiding_changes_the_losses(manifest: Path, tmp_path: Path, hiding: dict[str, Any]) -> None:
    recipe = dataclasses.replace(RECIPE, **{"augmentation": NOTHING_HIDDEN, **hiding})
    run = trainer(manifest, tmp_path, recipe)
    _, batch = next(run._batches(0))

    @jax.jit
    def loss(parameters: Any, key: jax.Array | None, strength: float) -> tuple[jax.Array, jax.Array]:
        model = run.skeleton.fill(parameters)
        made = losses(model, recipe, *batch.arrays(), key=key, dtype=jnp.float32, strength=strength)
        return made["transducer"], made["ctc"]

    def at(key: jax.Array | None, strength: float) -> np.ndarray:
        return np.stack(loss(run.state["parameters"], key, strength))

    seen, none, whole = at(None, 1.0), at(jax.random.key(3), 0.0), at(jax.random.key(3), 1.0)
    np.testing.assert_allclose(seen, none, rtol=1e-5)
    # Little, since fresh modules add little.
    assert (np.abs(seen - whole) > 1e-3).all()


def test_masks_and_dropout_begin_gently(manifest: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, augmentation=NOTHING_HIDDEN, dropout=0.9, gentle_steps=(1, 2))
    run = trainer(manifest, tmp_path, recipe)
    plain = jax.jit(
        lambda parameters, *batch: losses(run.skeleton.fill(parameters), recipe, *batch, key=None, dtype=jnp.float32)
    )
    differences = []
    for _, batch in itertools.islice(run._batches(0), 2):
        sums = plain(run.state["parameters"], *batch.arrays())
        run.state, facts = run._update(run.state, *batch.arrays())
        differences.append(abs(float(facts["ctc"]) - float(sums["ctc"] / sums["tokens"])))
    assert differences[0] < 1e-5 < 1e-3 < differences[1]


def test_bfloat16_computes_what_float32_does(manifest: Path, tmp_path: Path) -> None:
    facts = {}
    for compute in ("float32", "bfloat16"):
        run = trainer(manifest, tmp_path, dataclasses.replace(RECIPE, compute=compute))
        _, batch = next(run._batches(0))
        run.state, facts[compute] = run._update(run.state, *batch.arrays())
        floats = [leaf for leaf in jax.tree.leaves(run.state) if leaf.dtype.kind == "f"]
        assert {str(leaf.dtype) for leaf in floats} == {"float32"}
    for name in ("transducer", "ctc", "gradient_norm"):
        wide, narrow = (float(each[name]) for each in facts.values())
        assert wide != narrow and narrow == pytest.approx(wide, rel=0.05), name


def test_the_first_epochs_are_clean(manifest: Path, tmp_path: Path) -> None:
    changed = AugmentationConfig(noise_probability=1.0, reverberation_probability=1.0, telephone_probability=1.0)
    clean = AugmentationConfig(noise_probability=0.0, reverberation_probability=0.0, telephone_probability=0.0)
    runs = [
        trainer(manifest, tmp_path, dataclasses.replace(RECIPE, augmentation=augmentation, clean_epochs=1))
        for augmentation in (changed, clean)
    ]
    same = {0: [], 1: []}
    for (epoch, one), (_, other) in zip(*(run._batches(0) for run in runs), strict=False):
        if epoch > 1:
            break
        same[epoch].append(np.array_equal(one.waveforms, other.waveforms))
    assert same[0] and all(same[0]) and same[1] and not any(same[1])


class _Cut(Exception):
    pass


def _cut_at(step: int) -> Any:
    def report(progress: Any) -> None:
        if progress.step == step:
            raise _Cut

    return report


@pytest.mark.slow
def test_it_learns_two_tones_and_writes_a_model_that_knows_them(manifest: Path, tmp_path: Path) -> None:
    # Masks over frequencies and loud noise may hide a tone altogether.
    mild = AugmentationConfig(noise_probability=0.0, reverberation_probability=0.0, frequency_masks=0, time_masks=0)
    slow = OptimizerConfig(learning_rate=0.003, warmup_steps=20)
    recipe = dataclasses.replace(RECIPE, steps=600, average=0.95, stored="float16", augmentation=mild, optimizer=slow)
    run = trainer(manifest, tmp_path, recipe)
    run.train()
    rows = steps_of(tmp_path)
    assert np.mean([row["loss"] for row in rows[-10:]]) < 0.3 * np.mean([row["loss"] for row in rows[:10]])
    # Stored in 16 bits, loaded like any other.
    _, params, _ = store.load(tmp_path / MODEL)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float16"}
    utterances = read_manifest(manifest)
    recognizer = jaxasr.load_model(tmp_path / MODEL)
    said = [each.text for each in recognizer.transcribe([str(u.pieces[0].path) for u in utterances])]
    assert said == [u.text for u in utterances]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_checkpoint(manifest: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, checkpoint_steps=2)
    run = trainer(manifest, tmp_path, recipe)

    def poison(progress: Any) -> None:
        if progress.step == 3:
            run.state["parameters"] = jax.tree.map(lambda leaf: leaf * np.nan, run.state["parameters"])

    with pytest.raises(TrainingError, match=r"step 4: the loss .* not finite; the batch holds .*\.wav"):
        run.train(poison)
    again = trainer(manifest, tmp_path, recipe)
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


def test_a_log_that_cannot_be_written_is_named_and_leaves_no_checkpoint(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    with pytest.raises(TrainingError, match=f"{LOG}: cannot be written"):
        trainer(manifest, tmp_path).train()
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


@pytest.mark.filterwarnings("ignore:Exception ignored")  # of Orbax' threads; the command line keeps them from users
def test_a_full_disk_leaves_the_checkpoint_before_whole(manifest: Path, tmp_path: Path) -> None:
    run = trainer(manifest, tmp_path)
    run.save()
    run.state["step"] = run.state["step"] + 1
    named = (tmp_path / RUN).read_text()
    # A limit on the size of files stands for the full disk: it needs no rights and fails the same calls.
    for limit, name in ((1000, RUN), (max(10000, 2 * len(named)), "checkpoints")):
        with limited_files(limit), pytest.raises(TrainingError, match="cannot be written") as told:
            run.save()
        assert str(told.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(told.value)
        assert (tmp_path / RUN).read_text() == named
    assert "make room and --resume" in str(told.value)
    again = trainer(manifest, tmp_path)
    assert again.resume() == 0
    for a, b in zip(jax.tree.leaves(run.state["parameters"]), jax.tree.leaves(again.state["parameters"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    again.state["step"] = again.state["step"] + 1
    again.save()  # there is room again, and what the failed one left is not in the way
    assert trainer(manifest, tmp_path).resume() == 1


@pytest.mark.slow
def test_a_finished_run_takes_no_further_step(manifest: Path, tmp_path: Path) -> None:
    """Of a model with nothing but a CTC head, and by ScaledAdam."""
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


def test_a_model_in_16_bits_is_tuned_in_32(manifest: Path, tmp_path: Path) -> None:
    config = with_vocabulary(RECIPE.model, TOKENS)
    narrow = jax.tree.map(lambda leaf: leaf.astype("float16"), new_parameters(config, 1))
    good, _ = check(read_manifest(manifest), TextEncoder(TOKENS), DATA)
    run = Trainer(RECIPE, config, narrow, TOKENS, Corpus(good, DATA), tmp_path)
    floats = [leaf for leaf in jax.tree.leaves(run.state) if leaf.dtype.kind == "f"]
    assert {str(leaf.dtype) for leaf in floats} == {"float32"}


@pytest.mark.slow
def test_a_converted_model_is_tuned(goldens: Callable[[str], Golden], shared: Path, tmp_path: Path) -> None:
    golden = goldens("zipformer-streaming-tiny")
    rows = [f"{shared}/golden/audio/{clip}.wav\tTHE SO" for clip in ("digits_a", "espeak_sentence")]
    (tmp_path / "manifest.tsv").write_text("\n".join(["path\ttext", *rows]) + "\n")
    data = DataConfig(bucket_seconds=(10.0,), batch_seconds=20.0)
    recipe = dataclasses.replace(RECIPE, steps=6, model=None, data=data, augmentation=NOTHING_HIDDEN)
    good, bad = check(read_manifest(tmp_path / "manifest.tsv"), TextEncoder(golden.tokens), data)
    assert not bad
    run = Trainer(recipe, golden.config, golden.params, golden.tokens, Corpus(good, data), tmp_path)
    run.train()
    first, *_, last = (row["loss"] for row in steps_of(tmp_path))
    assert last < 0.8 * first
    config, tuned, tokens = store.load(tmp_path / MODEL)
    assert (config, tokens.pieces) == (golden.config, golden.tokens.pieces)
    assert jax.tree.structure(tuned) == jax.tree.structure(golden.params)


@pytest.mark.parametrize("change", [{"seed": 9}, {"data": dataclasses.replace(DATA, batch_seconds=10.0)}])
def test_a_run_is_resumed_with_what_it_began_with(manifest: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    trainer(manifest, tmp_path).save()
    (name,) = change
    with pytest.raises(TrainingError, match=f"the recipe's {name} were others"):
        trainer(manifest, tmp_path, dataclasses.replace(RECIPE, **change)).resume()
    assert trainer(manifest, tmp_path, dataclasses.replace(RECIPE, steps=9)).resume() == 0


def test_a_run_of_an_earlier_version_goes_on(manifest: Path, tmp_path: Path) -> None:
    """What its recipe did not name was at its default; and how the model is searched decides nothing."""
    trainer(manifest, tmp_path).save()
    before = json.loads((tmp_path / RUN).read_text())
    del before["recipe"]["dropout"], before["recipe"]["data"]["repeat_share"]
    (tmp_path / RUN).write_text(json.dumps(before))
    model = dataclasses.replace(RECIPE.model, search=JointConfig(beam=8))
    assert trainer(manifest, tmp_path, dataclasses.replace(RECIPE, model=model)).resume() == 0
    with pytest.raises(TrainingError, match="the recipe's dropout were others"):
        trainer(manifest, tmp_path, dataclasses.replace(RECIPE, dropout=0.1)).resume()


def test_resuming_nothing_says_so(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint"):
        trainer(manifest, tmp_path).resume()


@pytest.mark.slow
def test_two_devices_train_as_one(manifest: Path, tmp_path: Path) -> None:
    """In a process of its own, where the CPU is two devices."""
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from pathlib import Path
import jax, numpy as np
from test_loop import *
runs = []
for count in (1, 2):
    recipe = dataclasses.replace(RECIPE, dropout=0.1)
    run = trainer(Path({str(manifest)!r}), Path({str(tmp_path)!r}) / str(count), recipe, devices=jax.devices()[:count])
    run.output.mkdir()
    run.train()
    runs.append(run)
for a, b in zip(*(jax.tree.leaves(run.state["parameters"]) for run in runs)):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-3)
assert len(jax.tree.leaves(runs[1].state["parameters"])[0].sharding.device_set) == 2
"""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, **environment}, timeout=600)
