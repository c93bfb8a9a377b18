"""Synthetic speech for what a corpus is short of: dates, numbers, spelled words, strings of digits, commands.

    python benchmarks/synthesis.py FOLDER --count 500

writes FLAC files and a manifest that `jaxasr train` reads. Needs the program espeak-ng, or with `--program flite` that
program, whose voices were made from recordings of people. The embedded model was trained on such speech, among others.
"""

from __future__ import annotations

import argparse
import functools
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from jaxasr.audio import SAMPLE_RATE
from jaxasr.errors import JaxasrError, TrainingError

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
TEENS = (
    *("TEN", "ELEVEN", "TWELVE", "THIRTEEN", "FOURTEEN"),
    *("FIFTEEN", "SIXTEEN", "SEVENTEEN", "EIGHTEEN", "NINETEEN"),
)
TENS = ("TWENTY", "THIRTY", "FORTY", "FIFTY", "SIXTY", "SEVENTY", "EIGHTY", "NINETY")
ORDINALS = (
    *("FIRST", "SECOND", "THIRD", "FOURTH", "FIFTH", "SIXTH", "SEVENTH", "EIGHTH", "NINTH", "TENTH"),
    *("ELEVENTH", "TWELFTH", "THIRTEENTH", "FOURTEENTH", "FIFTEENTH"),
    *("SIXTEENTH", "SEVENTEENTH", "EIGHTEENTH", "NINETEENTH", "TWENTIETH"),
)
MONTHS = (
    *("JANUARY", "FEBRUARY", "MARCH", "APRIL", "MAY", "JUNE"),
    *("JULY", "AUGUST", "SEPTEMBER", "OCTOBER", "NOVEMBER", "DECEMBER"),
)
COMMANDS = ("ENTER", "RUBOUT", "ERASE", "REPEAT", "HELP", "START", "STOP", "GO", "YES", "NO")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (*(f"m{i}" for i in range(1, 9)), *(f"f{i}" for i in range(1, 6)))
FLITE_VOICES = ("awb", "rms", "slt", "kal16")


def number(value: int) -> str:
    """0..9999 in words, without AND."""
    if value < 10:
        return DIGITS[value]
    if value < 20:
        return TEENS[value - 10]
    for size, name in ((1000, "THOUSAND"), (100, "HUNDRED")):
        if value >= size:
            rest = f" {number(value % size)}" if value % size else ""
            return f"{number(value // size)} {name}{rest}"
    return TENS[value // 10 - 2] + (f" {DIGITS[value % 10]}" if value % 10 else "")


def text(generator: np.random.Generator) -> str:
    """Something to say, in upper case: a date, a number, a spelled word, a string of digits, or a command."""

    def below(top: int) -> int:
        return int(generator.integers(top))

    def spelled(shortest: int, longest: int) -> str:
        return " ".join(LETTERS[below(26)] for _ in range(int(generator.integers(shortest, longest + 1))))

    match below(7):
        case 0 | 1:
            day = 1 + below(31)
            tens = f"{TENS[day // 10 - 2]} " if day > 20 and day % 10 else ""
            ordinal = "THIRTIETH" if day == 30 else tens + ORDINALS[(day % 10 if tens else day) - 1]
            year = "" if below(4) == 0 else f" {number(10 + below(90))}"
            century = " NINETEEN" if year and below(2) else ""
            return f"{MONTHS[below(12)]} {ordinal}{century}{year}"
        case 2:
            return number(below((20, 100, 1000, 10000)[below(4)]))
        case 3 | 4:
            return spelled(2, 8)
        case 5:
            zero = ("ZERO", "OH")[below(2)]
            return " ".join((zero, *DIGITS[1:])[below(10)] for _ in range(1 + below(10)))
        case _:
            command = COMMANDS[below(len(COMMANDS))]
            return command if below(3) == 0 else f"{command} {spelled(1, 5)} {number(below(100))}"


def say(words: str, voice: str = "en-us", *, pitch: int = 50, words_per_minute: int = 150) -> np.ndarray:
    """Words as espeak-ng's `voice` (en-us, en-gb+f3, …) says them: (S,) float32 at 16 kHz; single letters by name.

    `pitch` 0 to 99. Raises TrainingError where espeak-ng is missing or does not know the voice.
    """
    program = _program("espeak-ng")
    # A single A is read as an article unless it is asked for by name.
    marked = " ".join(
        f'<say-as interpret-as="characters">{word}</say-as>' if len(word) == 1 else word.lower()
        for word in words.split()
    )
    command = [program, "-m", "-v", voice, "-p", str(pitch), "-s", str(words_per_minute), "--stdout", marked]
    return _spoken(command, words, voice)


def say_by_flite(words: str, voice: str = "slt", *, stretch: float = 1.0) -> np.ndarray:
    """Words as flite's `voice` (awb, rms, slt, kal16) says them: (S,) float32 at 16 kHz; single letters by name.

    `stretch` is a factor on durations. Raises TrainingError where flite is missing or does not know the voice.
    """
    program = _program("flite")
    # A single A is read as an article, the word AY like the letter.
    spelled = " ".join("ay" if word == "A" else word.lower() for word in words.split())
    if voice not in _flite_voices(program):  # it would take its default
        raise TrainingError(f"flite does not know the voice {voice}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        command = [program, "-voice", voice, "--setf", f"duration_stretch={stretch}", "-t", spelled, "-o", str(path)]
        return _spoken(command, words, voice, path)


@functools.cache
def _flite_voices(program: str) -> list[str]:
    return subprocess.run([program, "-lv"], capture_output=True, text=True).stdout.split()


def _program(name: str) -> str:
    if (program := shutil.which(name)) is None:
        raise TrainingError(f"{name} is not installed (apt install {name}, brew install {name})")
    return program


def _spoken(command: list[str], words: str, voice: str, path: Path | None = None) -> np.ndarray:
    """What a command says, on its standard output or in a file."""
    import soundfile
    import soxr

    done = subprocess.run(command, capture_output=True)
    if done.returncode or not (path.exists() if path else done.stdout):
        said = done.stderr.decode(errors="replace").split("\n")[0].strip() or f"exit status {done.returncode}"
        raise TrainingError(f"{Path(command[0]).name} does not say {words!r} as {voice}: {said}")
    samples, rate = soundfile.read(path or io.BytesIO(done.stdout), dtype="float32")
    return soxr.resample(samples, rate, SAMPLE_RATE)


def write_corpus(folder: Path, count: int, seed: int, program: Literal["espeak-ng", "flite"] = "espeak-ng") -> Path:
    """`count` utterances by many voices of a program as FLAC files in `folder`, and the path of their manifest.

    Texts and voices are drawn from `seed`. TrainingError where the program is missing or fails.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path\tspeaker\tsplit\ttext"]
    generator = np.random.default_rng(seed)
    for index in range(count):
        words = text(generator)
        name = f"{index:05d}.flac"
        if program == "flite":
            voice = FLITE_VOICES[generator.integers(len(FLITE_VOICES))]
            samples = say_by_flite(words, voice, stretch=float(generator.uniform(0.8, 1.3)))
        else:
            voice = f"{VOICES[generator.integers(len(VOICES))]}+{VARIANTS[generator.integers(len(VARIANTS))]}"
            pitch, pace = int(generator.integers(20, 80)), int(generator.integers(100, 190))
            samples = say(words, voice, pitch=pitch, words_per_minute=pace)
        soundfile.write(folder / name, samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append(f"{name}\t{voice}\ttrain\t{words}")
    manifest = folder / "manifest.tsv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def main() -> int:
    """The command: writes a corpus and prints where its manifest is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the FLAC files and manifest.tsv go")
    parser.add_argument("--count", type=int, default=500, help="utterances (500)")
    parser.add_argument(
        "--program", choices=("espeak-ng", "flite"), default="espeak-ng", help="what speaks (espeak-ng)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of texts and voices (1)")
    options = parser.parse_args()
    try:
        print(write_corpus(options.folder, options.count, options.seed, options.program))
    except (JaxasrError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
