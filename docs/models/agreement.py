"""Converts reference models as a user would, transcribes their recordings and prints how far both agree, as Markdown.

    python docs/models/agreement.py REFERENCES            prints the table
    python docs/models/agreement.py REFERENCES --write    writes it into docs/models/README.md

REFERENCES holds audio/ and a folder a model: the publisher's files with what the original made of the recordings
(sherpa_onnx.json of sherpa-onnx; texts.json and golden.npz of NeMo; results.json of FunASR). What Transformers made
lies in tests/data/transformers-tiny, and what NeMo made of other networks of blocks in tests/data/nemo-blocks. The
models are small and have random weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxasr
from jaxasr.audio import load

PAGE = Path(__file__).resolve().parent / "README.md"
DATA = PAGE.parent.parent.parent / "tests" / "data"
_TABLE = re.compile(r"(<!-- agreement -->\n).*?(<!-- end -->)", re.DOTALL)
LONGEST = 8 * 16000  # samples of a recording
# The time of a token may differ by the roundings of its decimals alone.
SAME_TIME = 2e-3


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an original made of recordings: by the recording's name text, tokens, times (s), encoded frames (T, D).

    Where the encoded frames are those of a part of the recording, `part` has its first sample and the one after it.
    `model`: the reference model's name. `source`: the checkpoint, a file or a folder, whose weights lie in files of the
    kind `weights`; `recordings`: the folder of the recordings; `options` of the conversion; `head`: the one that was
    searched.
    """

    model: str
    source: Path
    weights: str
    recordings: Path
    options: Mapping[str, Any]
    original: str
    head: str | None
    heard: Mapping[str, Mapping[str, Any]]


def sherpa_onnx(folder: Path) -> Iterator[Reference]:
    """icefall's checkpoint and its exports in float32 and int8, by greedy search of sherpa-onnx."""
    stored = json.loads((folder / "sherpa_onnx.json").read_text("utf-8"))
    original = f"{stored['package']} {stored['version']}"
    recipe = {"config": folder / "config.yaml"}
    encoded: dict[str, np.ndarray] = {}
    if not (folder / "encoder_chunk_mask.npz").exists():  # else whole utterances differ
        with np.load(folder / "encoder_single.npz") as arrays:
            encoded = {name.split("/")[0]: arrays[name] for name in arrays.files if name.endswith("/encoder_out")}
    head = "ctc" if (folder / "model.onnx").exists() else None
    exports = [
        (folder / "pretrained.pt", ".pt", "greedy_search", recipe),
        (folder, ".onnx", "greedy_search", {}),
        (folder, ".int8.onnx", "int8 greedy_search", {"precision": "int8"}),
    ]
    for source, weights, run, options in exports:
        heard = {
            clip: {"text": of["text"], "tokens": of["tokens"], "times": of["timestamps"]}
            for clip, of in stored["runs"][run].items()
        }
        if "int8" not in run:  # sherpa-onnx rounds activations to int8 too: its encoded frames are not those stored
            heard = {clip: of | {"encoded": encoded.get(clip)} for clip, of in heard.items()}
        yield Reference(folder.name, source, weights, folder.parent / "audio", options, original, head, heard)


def nemo(folder: Path) -> Iterator[Reference]:
    """A .nemo archive by each of its heads, files one by one."""
    texts = json.loads((folder / "texts.json").read_text("utf-8"))
    with np.load(folder / "golden.npz") as arrays:
        stored = dict(arrays)
    for head, prefix in (("transducer", "rnnt"), ("ctc", "ctc")):
        if any(name.endswith(f"/{prefix}_ids") for name in stored):
            heard = {
                clip: {
                    "text": text,
                    "ids": stored[f"{clip}/{prefix}_ids"].tolist(),
                    "frames": stored[f"{clip}/{prefix}_frames"],
                    "encoded": stored[f"{clip}/enc"][0].T[: int(stored[f"{clip}/enc_len"][0])],
                }
                for clip, text in texts.get(f"{head}_head", texts)["files_batch1"].items()
            }
            source, recordings = folder / "model.nemo", folder.parent / "audio"
            yield Reference(folder.name, source, ".nemo", recordings, {}, "NeMo 3.0.0", head, heard)


def nemo_blocks(folder: Path) -> Iterator[Reference]:
    """QuartzNet and other networks of blocks, one recording, and the encoded frames of its beginning."""
    for name, text in json.loads((folder / "texts.json").read_text("utf-8")).items():
        with np.load(folder / f"{name}.npz") as arrays:
            encoded = arrays["first/encoded"]
        heard = {"espeak_sentence": {"text": text, "encoded": encoded, "part": (0, 19200)}}
        yield Reference(name, folder / f"{name}.nemo", ".nemo", DATA, {}, "NeMo 3.0.0", "ctc", heard)


def funasr(folder: Path) -> Iterator[Reference]:
    """A FunASR folder, recordings one by one; of a streaming model what its chunks give over whole utterances."""
    stored = json.loads((folder / "results.json").read_text("utf-8"))
    results = stored
    if "_offline" in stored:
        results = {clip: of["chunked"] for clip, of in stored["_offline"].items()}
    heard: dict[str, Mapping[str, Any]] = {}
    for clip, of in results.items():
        if clip.startswith("_"):
            continue
        encoded = None
        if (file := folder / f"clip_{clip}.npz").exists():
            with np.load(file) as arrays:
                encoded = arrays["enc_out"] if "enc_out" in arrays.files else None
        ids = [
            token for token in of.get("ids", []) if token > 2
        ]  # blank and the marks of beginning and end are no tokens
        heard[clip] = {"text": of.get("text", ""), "ids": ids, "encoded": encoded, "spaced": "timestamp" in of}
    yield Reference(folder.name, folder, ".pt", folder.parent / "audio", {}, "FunASR 1.4.16", None, heard)


def transformers(folder: Path) -> Iterator[Reference]:
    """A folder as Transformers writes one, and one recording."""
    said = json.loads((folder / "expected.json").read_text("utf-8"))["long"]
    with np.load(folder / "expected.npz") as arrays:
        last = max(name for name in arrays.files if name.startswith("second/layer"))
        encoded = {"encoded": arrays[last], "part": (8000, 24000)}
    heard = {
        "espeak_sentence": {"text": said["text"], "ids": said["ids"], "frames": np.array(said["frames"]), **encoded}
    }
    name = f"Parakeet, {folder.name}"
    yield Reference(name, folder, ".safetensors", DATA, {}, "Transformers 5.24.0", None, heard)


def references_of(model: Path) -> Iterator[Reference]:
    """What the original of a reference model made of the recordings; nothing where its form is not known here."""
    if (model / "encoder_single.npz").exists():
        yield from sherpa_onnx(model)
    elif (model / "golden.npz").exists():
        yield from nemo(model)
    elif (model / "results.json").exists() and (model / "tokens.json").exists():  # a detector has none
        yield from funasr(model)


def references(folder: Path) -> Iterator[Reference]:
    """All models of a folder, and those of this project's tests."""
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from references_of(model)
    yield from nemo_blocks(DATA / "nemo-blocks")
    for made in sorted((DATA / "transformers-tiny").glob("*/expected.json")):
        yield from transformers(made.parent)


def compare(reference: Reference, directory: Path) -> str:
    """The row of a table."""
    jaxasr.convert_checkpoint(reference.source, directory, **reference.options)
    files = [reference.recordings / f"{clip}.wav" for clip in reference.heard]
    with jaxasr.load_model(directory, head=reference.head, shortest_seconds=LONGEST / 16000) as recognizer:
        transcripts = list(recognizer.transcribe(files))
        config, model = recognizer.config, recognizer.model
    encode = jax.jit(model.encode)
    texts = 0
    tokens: list[bool] = []
    times: list[bool] = []
    encoded: list[float] = []
    for heard, file, transcript in zip(reference.heard.values(), files, transcripts, strict=True):
        text, theirs = transcript.text, heard["text"]
        if heard.get("spaced"):  # with times FunASR puts a space after each word, Chinese ones too
            text, theirs = text.replace(" ", ""), theirs.replace(" ", "")
        texts += text == theirs
        same = True
        if "tokens" in heard or "ids" in heard:
            same = transcript.tokens == heard["tokens"] if "tokens" in heard else transcript.token_ids == heard["ids"]
            tokens.append(same)
        if same and ("times" in heard or "frames" in heard):
            placed = heard["times"] if "times" in heard else heard["frames"] * config.seconds_per_frame
            times.append(np.allclose(transcript.timestamps, placed, rtol=0, atol=SAME_TIME))
        if heard.get("encoded") is not None:
            samples = load(file)[slice(*heard.get("part", (None,)))]
            waveform = np.zeros((1, LONGEST), np.float32)
            waveform[0, : len(samples)] = samples
            ours, _ = encode(waveform, np.array([len(samples)], np.int32))
            frames = np.asarray(ours)[0, : len(heard["encoded"])]
            encoded.append(float(np.abs(frames - heard["encoded"]).max() / np.abs(heard["encoded"]).max()))
    count = len(reference.heard)
    cells = (
        reference.model,
        f"{config.encoder.kind}{', causal' if config.encoder.facts().get('causal') else ''}",
        f"`{reference.weights}`",
        reference.head or next(iter(config.heads)),
        reference.original,
        f"{max(encoded):.1e}" if encoded else "",
        f"{sum(tokens)} of {len(tokens)}" if tokens else "",
        ("same" if all(times) else "differ") if times else "",
        f"{texts} of {count}",
    )
    row = "| " + " | ".join(cells) + " |"
    print(row, file=sys.stderr)
    return row


def table(folder: Path) -> str:
    """The rows of all references of a folder."""
    rows = [
        "| model | encoder | from | head | original | encoded frames, largest difference | same tokens | their times | "
        "same texts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for number, reference in enumerate(references(folder)):
            rows.append(compare(reference, Path(scratch) / str(number)))
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    jaxasr.configure_process()
    made = table(options.references)
    if options.write:
        PAGE.write_text(_TABLE.sub(lambda part: part[1] + made + part[2], PAGE.read_text("utf-8")), "utf-8")
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
