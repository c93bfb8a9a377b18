"""Synthetic speech: what is said, and how the programs that say it are called."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest

from conftest import REPOSITORY
from jaxasr.errors import TrainingError
from jaxasr.manifests import duration, read_manifest


def script(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthesis = script("synthesis")

# Takes flite's arguments and writes a thousand samples a letter, times the stretch; one of its voices is broken.
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
    stretch = float(values["--setf"].removeprefix("duration_stretch="))
    with wave.open(values["-o"], "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * round(1000 * stretch) * len(values["-t"])))
"""


# Takes espeak-ng's and writes 3,000 samples a word at 100 words a minute; knows English voices only.
ESPEAK = """#!{python}
import re, struct, sys
markup, _, voice, _, pitch, _, pace, output, text = sys.argv[1:]
if (markup, output) != ("-m", "--stdout") or not 0 <= int(pitch) <= 99 or not voice.startswith("en"):
    print("Error: The specified voice does not exist.", file=sys.stderr)
    sys.exit(1)
words = len(re.sub("<[^>]*>", "", text).split())
data = bytes(2 * (300000 // int(pace)) * words)
form = (16, 1, 1, 22050, 44100, 2, 16, b"data", len(data))
header = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVEfmt ", *form)
sys.stdout.buffer.write(header + data)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("flite", FLITE), ("espeak-ng", ESPEAK)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


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


@pytest.mark.usefixtures("programs")
def test_espeak_says_letters_by_name_at_a_pace() -> None:
    for pace in (100, 150):
        seconds = len(synthesis.say("A BEE", "en-gb+f2", words_per_minute=pace)) / 16000
        assert seconds == pytest.approx(2 * (300000 // pace) / 22050, abs=1e-3)
    with pytest.raises(TrainingError, match="espeak-ng does not say 'A' as xx: Error: The specified voice"):
        synthesis.say("A", "xx")


@pytest.mark.usefixtures("programs")
def test_flite_says_letters_by_name(tmp_path: Path) -> None:
    # "ay b", 4 letters with the space, at 8 kHz.
    assert synthesis.say_by_flite("A B").shape == (2 * 4000,)
    assert synthesis.say_by_flite("A B", stretch=1.25).shape == (2 * 5000,)
    with pytest.raises(TrainingError, match="does not know the voice nobody"):
        synthesis.say_by_flite("A", "nobody")
    with pytest.raises(TrainingError, match="flite does not say 'A' as broken: no such file"):
        synthesis.say_by_flite("A", "broken")


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("program", ["espeak-ng", "flite"])
def test_a_corpus_is_a_function_of_its_seed(tmp_path: Path, program: Literal["espeak-ng", "flite"]) -> None:
    one, same, other = (
        synthesis.write_corpus(tmp_path / name, 6, seed, program) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    utterances = read_manifest(one, {"split": ["train"]})
    speakers = {each.columns["speaker"].split("+")[0] for each in utterances}
    known = synthesis.FLITE_VOICES if program == "flite" else synthesis.VOICES
    assert len(utterances) == 6 and 1 < len(speakers) and speakers <= set(known)
    assert [duration(each) for each in utterances] == [duration(each) for each in read_manifest(same)]
    assert one.read_text() == same.read_text() != other.read_text()


@pytest.mark.parametrize("program", ["espeak-ng", "flite"])
def test_a_missing_program_is_named(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["synthesis", str(tmp_path / "said"), "--program", program])
    assert synthesis.main() == 1
    assert f"{program} is not installed (apt install {program}" in capsys.readouterr().err
