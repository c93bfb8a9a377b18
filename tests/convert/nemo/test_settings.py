"""model_config.yaml in every spelling that NeMo has written, and as nobody should have written it."""

from __future__ import annotations

from typing import Any

import pytest

from jaxasr.convert.nemo.settings import Section, read_settings
from jaxasr.errors import CheckpointError


def read(text: str) -> dict[str, Any]:
    return read_settings(text.encode(), "model.nemo: model_config.yaml")


def test_the_old_spelling_becomes_the_new_one() -> None:
    old = """
    preprocessor:
      cls: nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor
      params: {features: 64, window_size: 0.02}
    encoder: {cls: a.ConvASREncoder, params: {jasper: [{cls: b.Block, params: {filters: 3}}]}}
    decoder: {cls: a.ConvASRDecoder, params: null}
    """
    settings = read(old)
    assert settings["preprocessor"] == {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "features": 64,
        "window_size": 0.02,
    }
    assert settings["encoder"]["jasper"] == [{"_target_": "b.Block", "filters": 3}]
    assert Section(settings, "encoder").target == "ConvASREncoder"
    assert settings["decoder"] == {"_target_": "a.ConvASRDecoder"}


def test_interpolations_are_followed_as_far_as_the_file_goes() -> None:
    settings = read(
        """
        sample_rate: 16000
        again: ${model.sample_rate}
        labels: [a, b]
        encoder: {cls: x.E, params: {d_model: 176}}
        decoder: {feat_in: "${model.encoder.d_model}", rate: "${again}", vocabulary: "${model.labels}",
                  home: "${oc.env:HOME}", self: "${decoder.self}", part: "a ${sample_rate}", away: "${absent.key}"}
        """
    )
    decoder = settings["decoder"]
    assert (decoder["feat_in"], decoder["rate"]) == (176, 16000)
    assert decoder["home"] == "${oc.env:HOME}"
    for key in ("self", "part", "away"):
        assert "${" in decoder[key]
    with pytest.raises(CheckpointError, match=r"decoder.away is '\$\{absent.key\}': model_config.yaml should"):
        Section(settings, "decoder").integer("away", 1)


def test_numbers_are_those_of_omegaconf_and_labels_stay_texts() -> None:
    numbers = "preprocessor: {dither: 1e-05, a: 1e-5, b: '1e-5', c: 1.0e-05}\n"
    settings = read(numbers + "labels: ['1', 'no', y, 'e', 'null']")
    section = Section(settings, "preprocessor")
    assert [section.number(key, 0.0) for key in ("dither", "a", "c")] == [1e-5] * 3
    assert section.text("b", "") == "1e-5"
    assert settings["labels"] == ["1", "no", "y", "e", "null"]


def test_the_training_programs_file_holds_the_models() -> None:
    assert read("name: x\nmodel: {encoder: {_target_: a.B}, rate: 3, again: '${model.rate}'}")["again"] == 3


def test_values_are_checked_where_they_are_asked_for() -> None:
    section = Section(read("s: {n: three, f: 1.5, b: 'yes', t: 3, l: [1, x], whole: 4.0, none: null, inf: .inf}"), "s")
    for ask in (
        lambda: section.integer("n", 0),
        lambda: section.integer("f", 0),
        lambda: section.integer("inf", 0),
        lambda: section.number("n", 0.0),
        lambda: section.flag("b", True),
        lambda: section.text("t", ""),
        lambda: section.texts("l"),
        lambda: section.integers("l"),
    ):
        with pytest.raises(CheckpointError, match=r"s\.\w+ is .*: model_config.yaml should have "):
            ask()
    assert section.integer("whole", 0) == 4 and section.integer("none", 7) == 7
    assert section.texts("absent") is None and section.integers("absent") is None


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{number}: &a{number} [{','.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"- a\n- b",
        b"a: [",
        b"a: !!python/object/apply:os.system [true]",
        b"[" * 100_000,
        b"",
        BOMB.encode(),
        b"a: &a {b: *a}",
    ],
)
def test_what_is_no_configuration_is_one_line(text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^model.nemo: model_config.yaml (is not|holds more)[^\n]*$"):
        read_settings(text, "model.nemo: model_config.yaml")
