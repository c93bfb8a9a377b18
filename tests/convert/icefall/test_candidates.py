"""The files that make an icefall checkpoint, found by names alone, in the order that the module states."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from jaxasr.convert.icefall.candidates import find
from jaxasr.convert.protocol import Candidate
from jaxasr.errors import CheckpointError

PARTS = ("encoder", "decoder", "joiner")


def trio(stem: str, endings: tuple[str, str, str] = ("", "", "")) -> list[str]:
    return [f"{part}{stem}{ending}.onnx" for part, ending in zip(PARTS, endings, strict=True)]


def candidates(names: list[str], precision: str | None = None, named: str | None = None) -> list[Candidate]:
    paths = {PurePosixPath(name) for name in names}
    return list(find(paths, precision, PurePosixPath(named) if named else None))


def found(names: list[str], precision: str | None = None, named: str | None = None) -> list[list[str]]:
    return [[str(file) for file in candidate.files] for candidate in candidates(names, precision, named)]


def test_the_order_of_one_folder() -> None:
    expected = [
        trio("-epoch-30-avg-1"),
        trio("-epoch-9-avg-1"),
        trio(""),
        ["ctc-epoch-1.onnx"],
        ["model-avg.onnx"],
        ["model.onnx"],
        ["model.int8.onnx"],
        ["pretrained.pt"],
        ["pretrained-epoch-30-avg-9.pt"],
        ["pretrained-epoch-9-avg-5.pt"],
        ["pretrained_avg.pt"],
        ["epoch-30.pt"],
        ["epoch-4.pt"],
        ["epoch-30-avg-9.pt"],
        ["iter-400000-avg-8.pt"],
        ["iter-8000.pt"],
        ["checkpoint-8000.pt"],
        ["checkpoint-400.pt"],
        ["best-valid-loss.pt"],
        ["best-train-loss.pt"],
    ]
    others = [
        "pretrained_jit.pt",
        "pretrained-jit_script.pt",
        "jit_script.pt",
        "cpu_jit.pt",
        "optimizer.pt",
        "epoch-x.pt",
        "model_fp16.onnx",
        "silero.onnx",
        "README.md",
        "encoder-of-another.onnx",
    ]
    names = sorted({name for files in expected for name in files} | set(others))
    assert found(names) == expected
    assert found(names[::-1]) == expected


def test_the_shallowest_folder_comes_first() -> None:
    names = [*(f"old/{name}" for name in trio("")), "pretrained.pt", "exp/pretrained.pt", "exp/run/model.onnx"]
    assert found(names) == [["pretrained.pt"], ["exp/pretrained.pt"], [f"old/{name}" for name in trio("")],
                            ["exp/run/model.onnx"]]  # fmt: skip


def test_a_trio_needs_all_its_parts() -> None:
    assert found(["encoder.onnx", "decoder.onnx", "tokens.txt"]) == []
    assert found([*trio("-a")[:2], "joiner-b.onnx"]) == []


BOTH = sorted({*trio(""), *trio("", (".int8",) * 3)})
MIXED = trio("", (".int8", "", ".int8"))


@pytest.mark.parametrize(
    ("names", "precision", "files", "says"),
    [
        (BOTH, None, trio(""), "float32"),
        (BOTH, "float32", trio(""), "float32"),
        (BOTH, "int8", trio("", (".int8",) * 3), "int8"),
        (BOTH, "int8-fp32", MIXED, "int8-fp32"),
        (MIXED, "int8", MIXED, "int8"),
        (MIXED, "float32", MIXED, "int8"),  # there is nothing else, and the candidate says so
        (trio(""), "int8", trio(""), "float32"),
        (["model.onnx", "model.int8.onnx"], "int8", ["model.int8.onnx"], "int8"),
        (["model.onnx", "model.int8.onnx"], None, ["model.onnx"], "float32"),
        (["pretrained.pt"], "int8", ["pretrained.pt"], "float32"),
    ],
)
def test_precisions_are_preferences(names: list[str], precision: str | None, files: list[str], says: str) -> None:
    first = candidates(names, precision)[0]
    assert ([str(file) for file in first.files], first.precision) == (files, says)


@pytest.mark.parametrize(
    ("named", "files"),
    [
        ("joiner.onnx", trio("")),
        ("encoder.int8.onnx", trio("", (".int8",) * 3)),
        ("anything.pt", ["anything.pt"]),
        ("anything.onnx", ["anything.onnx"]),
    ],
)
def test_a_named_file_decides(named: str, files: list[str]) -> None:
    assert found([*BOTH, "model.onnx", "pretrained.pt", "anything.pt", "anything.onnx"], None, named) == [files]


def test_a_named_file_that_is_none_or_has_no_companions() -> None:
    assert found(["weights.safetensors", "pretrained.pt"], None, "weights.safetensors") == []
    with pytest.raises(CheckpointError, match="no decoder and no joiner of the same name"):
        candidates(["encoder-a.onnx", "decoder-b.onnx"], None, "encoder-a.onnx")


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [
        (["exp/tokens.txt", "tokens.txt"], "exp/tokens.txt"),
        (["exp/data/lang_char/tokens.txt", "tokens.txt"], "exp/data/lang_char/tokens.txt"),
        (["tokens.txt", "data/lang_bpe_500/tokens.txt"], "tokens.txt"),
        (["data/lang_bpe_500/tokens.txt", "data/lang_bpe_50/tokens.txt"], "data/lang_bpe_50/tokens.txt"),
        (["other/data/lang/tokens.txt"], "other/data/lang/tokens.txt"),
        (["other/tokens.txt", "data/phones/tokens.txt"], None),
        (["../data/lang_bpe_500/tokens.txt"], "../data/lang_bpe_500/tokens.txt"),
        (["../tokens.txt"], None),
        (["data/lang_bpe_500/bpe.model", "other/data/lang/tokens.txt"], "other/data/lang/tokens.txt"),
        (["data/lang_bpe_500/bpe.model"], "data/lang_bpe_500/bpe.model"),
        (["exp/bpe.model", "data/lang_bpe_500/bpe.model"], "exp/bpe.model"),
        ([], None),
    ],
)
def test_tokens(tokens: list[str], chosen: str | None) -> None:
    (candidate,) = candidates(["exp/pretrained.pt", *tokens])
    assert candidate.tokens == (PurePosixPath(chosen) if chosen else None)
    assert candidate.lacks == ("" if chosen else "tokens.txt")


def test_other_vocabularies_that_may_be_it() -> None:
    names = [
        f"data/{folder}/{file}" for folder in ("lang_bpe_500", "lang_char") for file in ("tokens.txt", "bpe.model")
    ]
    (candidate,) = candidates(["exp/pretrained.pt", *names[::-1]])
    assert [str(path) for path in (candidate.tokens, *candidate.other_tokens)] == [
        "data/lang_bpe_500/tokens.txt", "data/lang_char/tokens.txt",
        "data/lang_bpe_500/bpe.model", "data/lang_char/bpe.model",
    ]  # fmt: skip


def test_tokens_above_the_folder_that_was_named() -> None:
    (candidate,) = candidates(["pretrained.pt", "../data/lang_bpe_500/tokens.txt", "../pretrained.pt"])
    assert str(candidate.tokens) == "../data/lang_bpe_500/tokens.txt"
