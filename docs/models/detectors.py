"""Writes the tables of detectors in nemo.md and fsmn_vad.md: what they decide on recordings joined with known gaps.

python docs/models/detectors.py SHARED    SHARED: the folder with published/ and speech/

Recordings of a set are joined, each after a gap of 0.5 to 2.5 s in which there is noise and nothing else; the last one
is followed by one. A frame is speech where its probability is above a threshold. Within GUARD of a gap's ends nothing
is counted, since windows hear both sides there.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

import jaxasr
from jaxasr.audio import SAMPLE_RATE

# By page: name, file below published/, and from which probability on a frame is speech.
PAGES = {
    "nemo.md": (
        ("windows (MarbleNet-3x2x64)", "nemo-marblenet-vad/MarbleNet-3x2x64.nemo", 0.5),
        (
            "frames (Frame_VAD_Multilingual_MarbleNet_v2.0)",
            "nemo-marblenet-vad/frame-vad-multilingual-marblenet-v2.0.onnx",
            0.5,
        ),
    ),
    "fsmn_vad.md": (
        ("frames (FSMN-VAD)", "funasr-fsmn-vad-zh-cn-16k/model.pt", 0.8),
        ("frames (FSMN-VAD, quantized ONNX)", "funasr-fsmn-vad-zh-cn-16k/model_quant.onnx", 0.8),
    ),
}
SETS = {"an4": 60, "librispeech": 32}  # recordings of the split test
NOISE = {
    "quiet": 3e-4,
    "loud": 1e-2,
}  # deviations of the noise in gaps; the recordings have an RMS of 0.03 (AN4) and 0.055
GUARD = 0.3  # s
_BEGIN, _END = "<!-- detectors.py -->", "<!-- end of detectors.py -->"
_PART = re.compile(rf"{_BEGIN}\n.*?{_END}", re.DOTALL)


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


def row(
    name: str, detector: object, threshold: float, samples: np.ndarray, gaps: list[tuple[float, float]], what: str
) -> str:
    """A line of the table."""
    speech = detector(samples) > threshold  # type: ignore[operator]
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
    for page, files in PAGES.items():
        path = Path(__file__).with_name(page)
        begin, end = _PART.split(path.read_text("utf-8"))
        table = "\n".join([_BEGIN, *lines(shared, files), _END])
        path.write_text(f"{begin}{table}{end}", "utf-8")


def lines(shared: Path, files: Sequence[tuple[str, str, float]]) -> Iterator[str]:
    """The table of detectors: their names, files below published/, and thresholds."""
    yield from (
        "| detector | recordings, noise in the gaps | speech in recordings | recordings with speech | speech in gaps "
        "| gaps without speech |",
        "|---|---|---|---|---|---|",
    )
    for name, file, threshold in files:
        with tempfile.TemporaryDirectory() as folder:
            jaxasr.convert_checkpoint(shared / "published" / file, Path(folder) / "model")
            detector = jaxasr.load_detector(Path(folder) / "model")
        for corpus, most in SETS.items():
            for level, deviation in NOISE.items():
                samples, gaps = join(recordings(shared / "speech" / corpus, most), deviation)
                line = row(name, detector, threshold, samples, gaps, f"{most} of {corpus}, {level}")
                print(line)
                yield line


if __name__ == "__main__":
    main()
