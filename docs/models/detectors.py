"""Writes the table of detectors in nemo.md: what they decide on recordings that were joined with known gaps.

python docs/models/detectors.py SHARED    SHARED: the folder with published/nemo-marblenet-vad and speech/

Recordings of a set are joined, each after a gap of 0.5 to 2.5 s in which there is noise and nothing else; the last one
is followed by one. A frame is speech where its probability is above 0.5. Within GUARD of a gap's ends nothing is
counted, since windows hear both sides there.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

import jaxasr
from jaxasr.audio import SAMPLE_RATE

PAGE = Path(__file__).with_name("nemo.md")
FILES = {
    "windows (MarbleNet-3x2x64)": "MarbleNet-3x2x64.nemo",
    "frames (Frame_VAD_Multilingual_MarbleNet_v2.0)": "frame-vad-multilingual-marblenet-v2.0.onnx",
}
SETS = {"an4": 60, "librispeech": 32}  # recordings of the split test
NOISE = {
    "quiet": 3e-4,
    "loud": 1e-2,
}  # deviations of the noise in gaps; the recordings have an RMS of 0.03 (AN4) and 0.055
GUARD = 0.3  # s
THRESHOLD = 0.5
_PART = re.compile(r"(<!-- detectors.py -->\n).*?(<!-- end of detectors.py -->)", re.DOTALL)


def recordings(folder: Path, most: int) -> Iterator[np.ndarray]:
    """The first ones of the split test, float32."""
    with open(folder / "manifest.tsv", encoding="utf-8", newline="") as file:
        rows = (row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["split"] == "test")
        for row in itertools.islice(rows, most):
            start, size = int(row["start"]), int(row["samples"])
            yield soundfile.read(folder / row["path"], start=start, frames=size, dtype="float32")[0]


def join(clips: Iterator[np.ndarray], deviation: float) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The clips with gaps before, between and after them, and the times of the gaps (s)."""
    rng = np.random.default_rng(1)
    parts: list[np.ndarray] = []
    gaps = []
    time = 0.0
    for clip in itertools.chain(clips, [np.zeros(0, np.float32)]):
        noise = deviation * rng.standard_normal(rng.integers(8000, 40000))
        parts += [noise.astype(np.float32), clip]
        gaps.append((time, time + len(noise) / SAMPLE_RATE))
        time += (len(noise) + len(clip)) / SAMPLE_RATE
    return np.concatenate(parts), gaps


def row(name: str, detector: object, samples: np.ndarray, gaps: list[tuple[float, float]], what: str) -> str:
    """A line of the table."""
    speech = detector(samples) > THRESHOLD  # type: ignore[operator]
    times = np.arange(len(speech)) * detector.frame_seconds  # type: ignore[attr-defined]
    inside = [(times > start + GUARD) & (times < end - GUARD) for start, end in gaps if end - start > 2 * GUARD]
    between = [(times > end + GUARD) & (times < start - GUARD) for (_, end), (start, _) in itertools.pairwise(gaps)]
    of_gaps, of_clips = (np.concatenate([speech[part] for part in parts]) for parts in (inside, between))
    kept = sum(bool(speech[part].any()) for part in between)
    silent = sum(not speech[part].any() for part in inside)
    return (
        f"| {name} | {what} | {of_clips.mean():.1%} | {kept} of {len(between)} | {of_gaps.mean():.1%} "
        f"| {silent} of {len(inside)} |"
    )


def main() -> None:
    shared = Path(sys.argv[1])
    jaxasr.configure_process()
    lines = [
        "| detector | recordings, noise in the gaps | speech in recordings | recordings with speech | speech in gaps "
        "| gaps without speech |",
        "|---|---|---|---|---|---|",
    ]
    for name, file in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            jaxasr.convert_checkpoint(shared / "published/nemo-marblenet-vad" / file, Path(folder) / "model")
            detector = jaxasr.load_detector(Path(folder) / "model")
        for corpus, most in SETS.items():
            for level, deviation in NOISE.items():
                samples, gaps = join(recordings(shared / "speech" / corpus, most), deviation)
                lines.append(row(name, detector, samples, gaps, f"{most} of {corpus}, {level}"))
                print(lines[-1])
    text = PAGE.read_text("utf-8")
    table = "\n".join(lines)
    PAGE.write_text(_PART.sub(lambda part: f"{part[1]}{table}\n{part[2]}", text), "utf-8")


if __name__ == "__main__":
    main()
