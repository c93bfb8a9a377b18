"""Writes the test sets of the embedded model's card: held-out digit strings, AN4 and strings in noise and by telephone.

    python benchmarks/test_sets.py AN4/manifest.tsv FSDD/manifest.tsv OUT

OUT gets digits.tsv (300 strings of one to ten test digits of one speaker, gaps of 0.05 to 0.4 s, at 8 kHz), then
an4-20db.tsv, an4-10db.tsv, an4-0db.tsv, digits-20db.tsv ... with noise of our own at that ratio, coloured or babble by
other utterances, and an4-8khz.tsv, AN4 through a telephone band. All is drawn from a fixed seed. The recordings stay
under their own licences.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from jaxasr import audio
from jaxasr.audio import SAMPLE_RATE
from jaxasr.manifests import read_audio, read_manifest
from jaxasr.training.augmentation import add_noise, babble, coloured_noise, telephone

STRINGS = 300
GAPS = (0.05, 0.4)  # s
RATIOS = (20, 10, 0)  # dB
SEED = 20261128
Clip = tuple[np.ndarray, str]  # samples and what is said


def digit_strings(manifest: Path, count: int = STRINGS, seed: int = SEED) -> tuple[list[Clip], int]:
    """`count` strings of the test split's digits, speakers in turn, each string by one; and their sample rate."""
    speakers: dict[str, list[Clip]] = {}
    for utterance in read_manifest(manifest, {"split": ["test"]}):
        samples, rate = read_audio(utterance)
        speakers.setdefault(utterance.columns["speaker"], []).append((samples, utterance.text))
    generator = np.random.default_rng(seed)
    names = sorted(speakers)
    strings = []
    for index in range(count):
        spoken = speakers[names[index % len(names)]]
        chosen = [spoken[i] for i in generator.choice(len(spoken), int(generator.integers(1, 11)), replace=False)]
        gaps = [np.zeros(int(gap * rate), np.float32) for gap in generator.uniform(*GAPS, len(chosen) + 1)]
        parts = [gaps[0]] + [part for (clip, _), gap in zip(chosen, gaps[1:], strict=True) for part in (clip, gap)]
        strings.append((np.concatenate(parts), " ".join(text for _, text in chosen)))
    return strings, rate


def noisy(clips: Sequence[Clip], ratio: float) -> list[Clip]:
    """Each clip (16 kHz) with noise of its own: every other one babble by three to eight of the other clips."""
    changed = []
    for index, (samples, text) in enumerate(clips):
        generator = np.random.default_rng((SEED, index))
        if index % 2:
            others = [clips[i][0] for i in generator.choice(len(clips), 8, replace=False) if i != index]
            noise = babble(len(samples), others, generator)
        else:
            noise = coloured_noise(len(samples), generator.uniform(0, 2), generator, SAMPLE_RATE)
        changed.append((add_noise(samples, noise, ratio), text))
    return changed


def write(folder: Path, name: str, clips: Sequence[Clip], rate: int) -> Path:
    """One FLAC file with all clips of a set, and their manifest."""
    samples = np.concatenate([clip for clip, _ in clips])
    peak = max(1.0, float(np.abs(samples).max()))  # a set that would clip becomes quieter as a whole
    soundfile.write(folder / f"{name}.flac", samples / peak, rate, subtype="PCM_16")
    lines, start = ["path\tstart\tsamples\ttext"], 0
    for clip, text in clips:
        lines.append(f"{name}.flac\t{start}\t{len(clip)}\t{text}")
        start += len(clip)
    manifest = folder / f"{name}.tsv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("an4", type=Path, metavar="AN4/manifest.tsv")
    parser.add_argument("fsdd", type=Path, metavar="FSDD/manifest.tsv")
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    strings, rate = digit_strings(options.fsdd)
    print(write(options.out, "digits", strings, rate))
    digits = [(audio.load(samples, rate), text) for samples, text in strings]
    an4 = [(audio.load(*read_audio(each)), each.text) for each in read_manifest(options.an4, {"split": ["test"]})]
    for name, clips in (("an4", an4), ("digits", digits)):
        for ratio in RATIOS:
            print(write(options.out, f"{name}-{ratio}db", noisy(clips, ratio), SAMPLE_RATE))
    print(write(options.out, "an4-8khz", [(telephone(samples), text) for samples, text in an4], SAMPLE_RATE))


if __name__ == "__main__":
    main()
