"""Synthetic speech: what is said, and how the programs that say it are called."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxasr.errors import TrainingError
from jaxasr.manifests import read_manifest
from jaxasr.training import synthesis

# Takes flite's arguments, writes as many samples as the text has letters, times a thousand, and knows two voices.
FLITE = """#!{python}
import sys, wave
arguments = sys.argv[1:]
if arguments == ["-lv"]:
    print("Voices available: awb slt rms kal16 broken")
elif "broken" in arguments:
    print("no such file", file=sys.stderr)
    sys.exit(1)
else:
    values = dict(zip(arguments[::2], arguments[1::2]))
    with wave.open(values["-o"], "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 1000 * len(values["-t"])))
"""


@pytest.fixture
def flite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "flite"
    program.parent.mkdir()
    program.write_text(FLITE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "ZERO"),
        (13, "THIRTEEN"),
        (40, "FORTY"),
        (105, "ONE HUNDRED FIVE"),
        (9999, "NINE THOUSAND NINE HUNDRED NINETY NINE"),
    ],
)
def test_numbers(value: int, words: str) -> None:
    assert synthesis.number(value) == words


def test_texts_say_every_letter_digit_and_month() -> None:
    generator = np.random.default_rng(1)
    said = {word for _ in range(1000) for word in synthesis.text(generator).split()}
    assert said >= {*synthesis.LETTERS, *synthesis.DIGITS, *synthesis.MONTHS, *synthesis.COMMANDS, "OH", "THIRTIETH"}


@pytest.mark.usefixtures("flite")
def test_flite_says_letters_by_name(tmp_path: Path) -> None:
    # "ay b", 4 letters with the space, at 8 kHz.
    assert synthesis.say_by_flite("A B").shape == (2 * 4000,)
    with pytest.raises(TrainingError, match="does not know the voice nobody"):
        synthesis.say_by_flite("A", "nobody")
    with pytest.raises(TrainingError, match="flite does not say 'A' as broken: no such file"):
        synthesis.say_by_flite("A", "broken")

    manifest = synthesis.write_corpus(tmp_path / "said", 6, seed=3, program="flite")
    utterances = read_manifest(manifest, {"split": ["train"]})
    assert len(utterances) == 6 and {each.columns["speaker"] for each in utterances} <= set(synthesis.FLITE_VOICES)
    again = synthesis.write_corpus(tmp_path / "again", 6, seed=3, program="flite")
    assert again.read_text() == manifest.read_text()


@pytest.mark.parametrize("program", ["espeak-ng", "flite"])
def test_a_missing_program_is_named(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["synthesis", str(tmp_path / "said"), "--program", program])
    assert synthesis.main() == 1
    assert f"{program} is not installed (apt install {program}" in capsys.readouterr().err
