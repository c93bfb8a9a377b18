"""Makes the recordings beside it with espeak-ng: python tests/samples/make.py"""

from __future__ import annotations

import sys
from pathlib import Path

import soundfile

from jaxasr.audio import SAMPLE_RATE

# File name -> (words, voice).
SAMPLES = {
    "digits": ("THREE ONE FOUR ONE FIVE NINE TWO SIX", "en-us"),
    "name": ("G R A C E", "en-gb"),
    "date": ("NOVEMBER TWENTY EIGHTH", "en-us+f3"),
}

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from synthesis import say

    for name, (words, voice) in SAMPLES.items():
        samples = say(words, voice, words_per_minute=130)
        soundfile.write(Path(__file__).with_name(f"{name}.wav"), samples, SAMPLE_RATE, subtype="PCM_16")
