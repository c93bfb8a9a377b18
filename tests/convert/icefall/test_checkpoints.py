"""icefall's PyTorch checkpoints: weights, arguments, both ways of averaging, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxasr.convert.formats.torch.pickles import read_torch
from jaxasr.convert.icefall.checkpoints import read_checkpoint
from jaxasr.errors import CheckpointError

RECORD = b"c__main__\nWeight\n)\x81"
FLOAT = np.float32


def weights(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"a.weight": rng.normal(size=(3, 4)).astype(FLOAT), "a.bias": rng.normal(size=4).astype(FLOAT)}


def training(seed: int, batch: int, **others: Any) -> dict[str, Any]:
    return {
        "model": weights(seed),
        "model_avg": weights(seed + 50),
        "batch_idx_train": batch,
        "average_period": 200,
    } | (others)


def message(path: Path, average: list[Path] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, average or [])
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


# Goldens


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden/zipformer-tiny"


def test_averaging_two_epochs_gives_the_exported_model_bit_for_bit(golden: Path) -> None:
    averaged = read_checkpoint(golden / "epoch-2.pt", [golden / "epoch-1.pt"])
    exported = read_checkpoint(golden / "pretrained.pt")
    assert list(averaged.tensors) == list(exported.tensors) and len(averaged.tensors) == 299
    for name, array in averaged.tensors.items():
        assert isinstance(array, np.ndarray) and bits(array) == bits(exported.tensors[name]), name
    assert "3000 (excluded) to 6400" in averaged.notes[0]
    assert averaged.files == [golden / "epoch-2.pt", golden / "epoch-1.pt"] and exported.notes == []


def test_plain_mean_of_two_epochs_has_the_originals_sums(golden: Path, write_torch: Callable[..., Path]) -> None:
    files = []
    for epoch in ("epoch-1.pt", "epoch-2.pt"):  # without model_avg, as recipes write them that keep none
        model = read_torch(golden / epoch)["model"]
        files.append(write_torch({"model": {name: np.array(array) for name, array in model.items()}}, name=epoch))
    mean = read_checkpoint(files[0], files[1:])
    (expected,) = (v for k, v in json.loads((golden / "averaging.json").read_text()).items() if "per parameter" in k)
    assert list(mean.tensors) == list(expected)
    for name, (total, magnitude, first) in expected.items():
        array = mean.tensors[name].astype(np.float64)
        assert array.flat[0] == first, name
        np.testing.assert_allclose([array.sum(), np.abs(array).sum()], [total, magnitude], rtol=1e-10, err_msg=name)
    assert "plain mean" in mean.notes[0]


def test_a_training_checkpoint_brings_its_model_and_its_arguments(golden: Path) -> None:
    checkpoint = read_checkpoint(golden / "epoch-2.pt")
    model = read_torch(golden / "epoch-2.pt")["model"]
    assert {name: bits(array) for name, array in checkpoint.tensors.items()} == {n: bits(a) for n, a in model.items()}
    assert checkpoint.settings == {
        "num_encoder_layers": (1, 2, 1, 1, 1),
        "downsampling_factor": (1, 2, 4, 2, 1),
        "feedforward_dim": (32, 40, 48, 40, 24),
        "num_heads": (4, 2, 4, 8, 4),
        "encoder_dim": (16, 32, 44, 28, 20),
        "query_head_dim": (8, 12, 8, 6, 10),
        "value_head_dim": (6, 8, 12, 4, 5),
        "pos_head_dim": (3, 4, 3, 2, 5),
        "cnn_module_kernel": (31, 15, 15, 31, 15),
        "chunk_size": (16, 32, 64, -1),
        "left_context_frames": (64, 128, 256, -1),
        "feature_dim": 80,
        "pos_dim": 8,
        "decoder_dim": 40,
        "joiner_dim": 36,
        "context_size": 2,
        "vocab_size": 48,
        "blank_id": 0,
        "causal": False,
        "use_transducer": True,
        "use_ctc": False,
    }
    assert len(checkpoint.notes) == 1 and "average" in checkpoint.notes[0]


def test_an_exported_model_states_nothing(golden: Path) -> None:
    assert read_checkpoint(golden / "pretrained.pt").settings == {}


# Small ones


def test_the_prefix_of_distributed_training_is_dropped(write_torch: Callable[..., Path]) -> None:
    state = weights(0)
    path = write_torch({"model": {f"module.{name}": array for name, array in state.items()}})
    assert {name: bits(array) for name, array in read_checkpoint(path).tensors.items()} == {
        name: bits(array) for name, array in state.items()
    }


@pytest.mark.parametrize(
    ("entry", "prefix"),
    [
        ("model", "_orig_mod."),
        ("model", "module._orig_mod."),
        ("model", "_orig_mod.module."),
        ("state_dict", "model."),
        ("state_dict", "model.module._orig_mod."),
        ("state_dict", "_orig_mod.model."),
        ("model_state_dict", "module.module."),
        ("model", "_fsdp_wrapped_module."),
        (None, ""),
        (None, "model."),
        (None, "module."),
    ],
)
def test_a_state_dict_is_found_under_what_people_put_around_it(
    write_torch: Callable[..., Path], entry: str | None, prefix: str
) -> None:
    """Of DistributedDataParallel, torch.compile, FSDP, Lightning and torch's own tutorials; the arguments beside it."""
    named = {f"{prefix}{name}": array for name, array in weights(0).items()}
    beside: dict[str, Any] = {"epoch": 3, "num_heads": "4,8", "optimizer": {"state": {0: np.ones(3, FLOAT)}}}
    if entry is None and prefix == "module.":
        named["n_averaged"] = np.array(3)  # swa_utils.AveragedModel counts
    found = read_checkpoint(write_torch(beside | ({entry: named} if entry else named)))
    assert {name: bits(array) for name, array in found.tensors.items()} == {
        name: bits(array) for name, array in weights(0).items()
    }
    assert found.settings == {"num_heads": (4, 8)}


def test_wrappers_of_parts(write_torch: Callable[..., Path]) -> None:
    """Whoever compiles the encoder alone gets the wrapper in the middle of its names."""
    names = ("encoder._orig_mod.layers.0.module.w", "module.encoder.b", "decoder.w")
    path = write_torch({"model": {name: np.ones(2, FLOAT) for name in names}})
    assert list(read_checkpoint(path).tensors) == ["encoder.layers.0.w", "encoder.b", "decoder.w"]


def test_a_tensor_that_is_there_wrapped_and_unwrapped(write_torch: Callable[..., Path]) -> None:
    two = {"model": {"_orig_mod.w": np.ones(2, FLOAT), "w": np.zeros(2, FLOAT)}}
    assert "_orig_mod.w, w are one tensor twice" in message(write_torch(two))


def test_names_of_tensors_cannot_speak_to_a_terminal(write_torch: Callable[..., Path]) -> None:
    hostile = {f"\x1b[2J{i}\n": np.array([np.nan], FLOAT) for i in range(300)}
    said = message(write_torch({"model": hostile}))
    assert "\\x1b[2J0\\n" in said and "and 295 more" in said and said.isprintable() and len(said) < 500


def test_a_compiled_checkpoint_is_the_checkpoint(shared: Path) -> None:
    """Saved by torch under torch.compile."""
    compiled = read_checkpoint(shared / "field" / "compiled_prefix.pt").tensors
    plain = read_checkpoint(shared / "golden/zipformer-tiny/pretrained.pt").tensors
    assert list(compiled) == list(plain)
    assert all(bits(compiled[name]) == bits(plain[name]) for name in plain)


def test_the_mean_over_batches_is_the_formula(write_torch: Callable[..., Path]) -> None:
    """(end · last - start · first) / (last - first) with both batches floored to the period of the earlier file."""
    start, end = training(1, 1099, average_period=100), training(2, 4150)
    paths = write_torch(end, name="end.pt"), write_torch(start, name="start.pt")
    averaged = read_checkpoint(paths[0], [paths[1]])
    for name, array in averaged.tensors.items():
        expected = (4100 * end["model_avg"][name].astype(float) - 1000 * start["model_avg"][name]) / 3100
        assert array.dtype == FLOAT
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def test_three_files_give_the_plain_mean(write_torch: Callable[..., Path]) -> None:
    """Also where all of them have a running average; counters are divided as integers."""
    states = [training(seed, 1000 * (seed + 1)) for seed in range(3)]
    for index, state in enumerate(states):
        state["model"]["batches"] = np.array(10 + index, np.int64)
    paths = [write_torch(state, name=f"{index}.pt") for index, state in enumerate(states)]
    mean = read_checkpoint(paths[0], paths[1:]).tensors
    for name in weights(0):
        first, second, third = (state["model"][name] for state in states)
        assert bits(mean[name]) == bits((first + second + third) / FLOAT(3))
    assert mean["batches"] == 11 and mean["batches"].dtype == np.int64


def test_the_plain_mean_where_one_of_two_has_no_running_average(write_torch: Callable[..., Path]) -> None:
    one = write_torch(training(1, 1000), name="one.pt")
    other = write_torch({"model": weights(2)}, name="other.pt")
    mean = read_checkpoint(one, [other]).tensors["a.bias"]
    assert bits(mean) == bits((weights(1)["a.bias"] + weights(2)["a.bias"]) / FLOAT(2))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_stay_and_average_in_float32(write_torch: Callable[..., Path], dtype: Any) -> None:
    states = [{"model": {"a": np.linspace(1, 2 + seed, 5).astype(dtype)}} for seed in range(2)]
    paths = [write_torch(state, name=f"{index}.pt") for index, state in enumerate(states)]
    assert read_checkpoint(paths[0]).tensors["a"].dtype == dtype
    mean = read_checkpoint(paths[0], paths[1:]).tensors["a"]
    expected = sum(state["model"]["a"].astype(FLOAT) for state in states) / FLOAT(2)
    assert bits(mean) == bits(expected)


@pytest.mark.parametrize(
    "stated, parsed",
    [
        ({"num_heads": "4, 4,8"}, {"num_heads": (4, 4, 8)}),
        ({"num_heads": 4}, {"num_heads": (4,)}),
        ({"num_heads": [4, 8]}, {"num_heads": (4, 8)}),
        ({"query_head_dim": "32"}, {"query_head_dim": (32,)}),
        ({"chunk_size": "16,-1", "causal": 1}, {"chunk_size": (16, -1), "causal": True}),
        ({"vocab_size": None, "exp_dir": b"cpathlib\nPosixPath\n)R", "lr": 0.1, "encoder": "4"}, {}),
    ],
)
def test_arguments(write_torch: Callable[..., Path], stated: dict[str, Any], parsed: dict[str, Any]) -> None:
    assert read_checkpoint(write_torch({"model": weights(0)} | stated)).settings == parsed


# What is refused


@pytest.mark.parametrize(
    "checkpoint, saying",
    [
        ([weights(0)], "no entry 'model', 'state_dict' or 'model_state_dict'"),
        ({"epoch": 3, "optimizer": {"state": {}}}, "no entry 'model'"),
        ({"model": None}, "not a state dict"),
        ({"model": {}}, "not a state dict"),
        ({"model": [weights(0)]}, "not a state dict"),
        ({"model": RECORD}, "an object of __main__.Weight"),
        ({"model": weights(0) | {"b": RECORD}}, "not tensors under names: b (__main__.Weight)"),
        ({"model": weights(0) | {"b": b"ctorch\nfloat16\n"}}, "not tensors under names: b (torch.float16)"),
        ({"model": weights(0) | {"b": 1.0, "c": [2]}}, "not tensors under names: b (float), c (list)"),
        ({"model": weights(0) | {"b": {"c": np.ones(2, FLOAT)}}}, "not tensors under names: b (dict)"),
        ({"model": weights(0) | {7: np.ones(2, FLOAT)}}, "not tensors under names: 7"),
        ({"model": {f"w{i}": np.array([1, np.nan], FLOAT) for i in range(9)}}, "w0, w1, w2, w3, w4 and 4 more"),
        ({"model": {"big": np.array(-np.inf, np.float16)}}, "not finite numbers: big"),
        ({"model": {"big": np.array([np.inf], ml_dtypes.bfloat16)}}, "not finite numbers: big"),
        ({"model": weights(0), "num_heads": "4,x"}, "num_heads"),
        ({"model": weights(0), "num_heads": ""}, "num_heads"),
        ({"model": weights(0), "num_heads": 0}, "num_heads"),
        ({"model": weights(0), "num_heads": [True]}, "num_heads"),
        ({"model": weights(0), "encoder_dim": "9" * 5000}, "encoder_dim"),
        ({"model": weights(0), "chunk_size": "-2"}, "chunk_size"),
        ({"model": weights(0), "vocab_size": -1}, "vocab_size"),
        ({"model": weights(0), "vocab_size": RECORD}, "vocab_size"),
        ({"model": weights(0), "causal": "yes"}, "causal"),
    ],
)
def test_checkpoints_that_do_not_fit(write_torch: Callable[..., Path], checkpoint: Any, saying: str) -> None:
    assert saying in message(write_torch(checkpoint))


def test_weights_that_share_one_storage_without_end(write_torch: Callable[..., Path]) -> None:
    """Tied weights are fine; a thousand names for one storage would fill the memory when they are copied."""
    whole = np.ones(1 << 16, FLOAT)
    reference = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x01\x00tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + reference
        + b"K\x00J\x00\x00\x01\x00\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )
    tied = write_torch({"model": {"a": tensor, "b": tensor}}, {"0": whole.tobytes()})
    assert np.shares_memory(*read_checkpoint(tied).tensors.values())
    swollen = write_torch({"model": {f"w{i}": tensor for i in range(1000)}}, {"0": whole.tobytes()}, name="bomb.pt")
    assert "swell" in message(swollen)


@pytest.mark.parametrize(
    "end, start, saying",
    [
        (training(1, 1000), training(2, 2000), "not after"),
        (training(1, 1000), training(2, 1100), "not after"),  # the same after flooring
        (training(1, 1000, batch_idx_train=None), training(2, 100), "batch_idx_train"),
        (training(1, 1000), training(2, 500, average_period=0), "average_period"),
        (training(1, 1000), training(2, 500, average_period=2.5), "average_period"),
        (training(1, 1000), training(2, 500, model_avg=weights(0) | {"b": np.ones(2, FLOAT)}), "tensors differ: b"),
        (training(1, 1000), training(2, 500, model_avg={"a.bias": np.ones(4, FLOAT)}), "tensors differ: a.weight"),
        (
            training(1, 1000),
            training(2, 500, model_avg=weights(0) | {"a.bias": np.ones(5, FLOAT)}),
            "a.bias (5,) and (4,)",
        ),
        (training(1, 1000), training(2, 500, model_avg=weights(0) | {"a.bias": np.ones(4, np.int64)}), "a.bias"),
        (training(1, 1000, model_avg=RECORD), training(2, 500), "an object of __main__.Weight"),
        (
            training(1, 1000, model_avg=weights(0) | {"a.bias": np.full(4, 3e38, FLOAT)}),
            training(2, 800),
            "not finite numbers: a.bias",
        ),
        ({"model": weights(0)}, {"model": {"a.bias": np.ones(4, FLOAT)}}, "tensors differ: a.weight"),
        ({"model": weights(0)}, {"optimizer": None}, "no entry 'model'"),
    ],
)
def test_files_that_cannot_be_averaged(write_torch: Callable[..., Path], end: Any, start: Any, saying: str) -> None:
    paths = write_torch(end, name="end.pt"), write_torch(start, name="start.pt")
    with pytest.raises(CheckpointError, match=re.escape(saying)) as caught:
        read_checkpoint(paths[0], [paths[1]])
    assert "\n" not in str(caught.value) and ".pt" in str(caught.value)


def test_one_file_twice(write_torch: Callable[..., Path]) -> None:
    path = write_torch(training(1, 1000))
    assert "twice" in message(path, [path.parent / "." / path.name])


def test_a_file_that_names_code_is_never_averaged(
    write_torch: Callable[..., Path], nothing_runs: Callable[[], Any]
) -> None:
    good = write_torch(training(1, 1000), name="good.pt")
    code = write_torch(training(0, 500, sampler=b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R"), name="code.pt")
    with nothing_runs(), pytest.raises(CheckpointError, match=r"code\.pt: it names 'os\.system'"):
        read_checkpoint(good, [code])
