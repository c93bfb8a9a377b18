"""The recipe's own arguments, and a checkpoint and options to a whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from golden_models import Golden
from jaxasr.convert import describe
from jaxasr.convert.icefall.models import convert, read, read_tokens, recipe_arguments
from jaxasr.convert.protocol import Candidate, Options
from jaxasr.errors import CheckpointError, ConfigError
from jaxasr.text.tokens import TokenTable
from onnx_writer import field


@pytest.mark.parametrize(
    ("mapping", "arguments"),
    [
        ({"num_encoder_layers": "2,2,3", "causal": True}, {"num_encoder_layers": (2, 2, 3), "causal": True}),
        ({"arguments": {"encoder-dim": "6, 8"}, "recipe": "x", "blank_id": 0}, {"encoder_dim": (6, 8), "blank_id": 0}),
        ({"chunk_size": "16,-1", "max_duration": 600}, {"chunk_size": (16, -1), "max_duration": 600}),
        ({"use_cr_ctc": True, "use_ctc": False}, {"use_cr_ctc": True, "use_ctc": False}),
    ],
)  # fmt: skip
def test_recipe_arguments(mapping: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert recipe_arguments(mapping) == arguments


@pytest.mark.parametrize(
    ("mapping", "saying"),
    [
        ({"num_encoder_layrs": "1"}, "unknown key num_encoder_layrs; did you mean num_encoder_layers"),
        ({"arguments": [1]}, "must be a mapping"),
        ({"max_duration": 600}, "neither a configuration of jaxasr nor arguments"),
        ({}, "neither a configuration of jaxasr nor arguments"),
    ],
)
def test_recipe_arguments_that_are_none(mapping: dict[str, Any], saying: str) -> None:
    with pytest.raises(ConfigError, match=saying):
        recipe_arguments(mapping)


def test_a_checkpoint_under_options(bundled: Golden) -> None:
    candidate = Candidate("", (PurePosixPath("pretrained.pt"),), folder=bundled.folder)
    options = Options(name="mine", tokens=bundled.folder / "tokens.txt", recipe={"unk_id": 7, **heads_of(bundled)})
    converted = convert(read(candidate, options), options)
    transducer = converted.config.transducer
    assert transducer is not None and (converted.config.name, transducer.silent_ids) == ("mine", (7,))
    assert converted.tokens == bundled.tokens
    given = dataclasses.replace(options, config=bundled.config, recipe=None)
    assert convert(read(candidate, given), given).config == bundled.config


def heads_of(bundled: Golden) -> dict[str, Any]:
    return {"num_heads": bundled.config.encoder.num_heads}


def with_blank_at(bundled: Golden, folder: Path, blank: int) -> Path:
    """The bundled vocabulary in which `<blk>` and the token at `blank` have changed places."""
    pieces = list(bundled.tokens.pieces)
    pieces[0], pieces[blank] = pieces[blank], pieces[0]
    TokenTable(tuple(pieces)).write(folder / "tokens.txt")
    return folder / "tokens.txt"


@pytest.mark.parametrize("blank", [2, 7])
def test_the_blank_is_that_of_the_vocabulary(bundled: Golden, tmp_path: Path, blank: int) -> None:
    assert bundled.tokens.blank_id == 0
    candidate = Candidate("", (PurePosixPath("pretrained.pt"),), folder=bundled.folder)
    options = Options(tokens=with_blank_at(bundled, tmp_path, blank), recipe=heads_of(bundled))
    config = convert(read(candidate, options), options).config
    assert {role: head.blank_id for role, head in config.heads.items()} == {"transducer": blank, "ctc": blank}


def test_a_blank_that_is_another_one_in_the_vocabulary_is_refused(bundled: Golden, tmp_path: Path) -> None:
    """Whether a checkpoint, the recipe's arguments or a whole configuration states it."""
    candidate = Candidate("", (PurePosixPath("pretrained.pt"),), folder=bundled.folder)
    tokens = with_blank_at(bundled, tmp_path, 2)
    saying = r"tokens\.txt: <blk> has id 2, but the transducer's blank_id is 0 .*: give the vocabulary of this model"
    for given in (
        Options(tokens=tokens, recipe={"blank_id": 0, **heads_of(bundled)}),
        Options(tokens=tokens, config=bundled.config),
    ):
        with pytest.raises(CheckpointError, match=saying):
            convert(read(candidate, given), given)
    checkpoint = read(candidate, Options())
    stated = dataclasses.replace(checkpoint, settings={"blank_id": 0, **heads_of(bundled)})
    with pytest.raises(CheckpointError, match=saying):
        convert(stated, Options(tokens=tokens))


def test_a_vocabulary_of_another_folder_where_the_first_does_not_fit(bundled: Golden, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "pretrained.pt").write_bytes((bundled.folder / "pretrained.pt").read_bytes())
    for folder, text in (("lang_bpe_50", "<blk> 0\n<unk> 1\n"), ("lang_bpe_500", None)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        content = (bundled.folder / "tokens.txt").read_text() if text is None else text
        (tmp_path / "data" / folder / "tokens.txt").write_text(content)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"num_heads": list(bundled.config.encoder.num_heads)}))
    for source in (tmp_path, tmp_path / "exp"):
        facts = describe(source, tmp_path / "config.yaml")
        assert facts["vocabulary"] == len(bundled.tokens)
        assert "lang_bpe_500/tokens.txt, the first found that fits" in str(facts["notes"])
    (tmp_path / "data" / "lang_bpe_500" / "tokens.txt").unlink()
    with pytest.raises(CheckpointError, match="lang_bpe_50/tokens.txt: has 2 tokens where"):
        describe(tmp_path, tmp_path / "config.yaml")


def test_the_vocabulary_in_a_bpe_model(bundled: Golden, tmp_path: Path) -> None:
    """What the recipe writes tokens.txt from: the same pieces, in the order of their ids."""

    def model(pieces: Sequence[str]) -> bytes:
        return b"".join(field(1, field(1, piece) + field(2, -1.5) + field(3, 1)) for piece in pieces) + field(
            2, b"\x08\x01"
        )

    (tmp_path / "bpe.model").write_bytes(model(bundled.tokens.pieces))
    assert read_tokens(tmp_path / "bpe.model", len(bundled.tokens)) == bundled.tokens
    with pytest.raises(CheckpointError, match=r"bpe\.model: has 48 pieces where 47 are needed"):
        read_tokens(tmp_path / "bpe.model", 47)
    for content in (b"", model(["a", ""]), b"<blk> 0\n", model(["a"])[:-5], field(1, field(2, -1.5))):
        (tmp_path / "bpe.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bpe\.model: is no SentencePiece model"):
            read_tokens(tmp_path / "bpe.model", 48)


def test_the_published_bpe_models(shared: Path) -> None:
    for name in ("zipformer-tiny", "zipformer-streaming-tiny", "zipformer-ctc-tiny"):
        folder = shared / "golden" / name
        assert read_tokens(folder / "bpe.model", 48) == TokenTable.read(folder / "tokens.txt", 48)


def test_what_options_cannot_ask_for(bundled: Golden) -> None:
    candidate = Candidate("", (PurePosixPath("pretrained.pt"),), folder=bundled.folder)
    with pytest.raises(CheckpointError, match=r"no tokens.txt or bpe.model lies beside pretrained.pt"):
        convert(read(candidate, Options()), Options())
    options = Options(tokens=bundled.folder / "tokens.txt", recipe={"causl": 1}, config_file=Path("my.yaml"))
    with pytest.raises(ConfigError, match="my.yaml: unknown key causl"):
        convert(read(candidate, options), options)
    export = Candidate("", (PurePosixPath("model.onnx"),), folder=bundled.folder)
    with pytest.raises(ConfigError, match="average is for training checkpoints"):
        read(export, Options(average=(Path("epoch-1.pt"),)))
