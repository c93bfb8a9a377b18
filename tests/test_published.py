"""A real published checkpoint on real speech gives the words that sherpa-onnx gave (docs/published.md)."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

import jaxasr
from jaxasr import audio
from jaxasr.convert import convert_checkpoint
from jaxasr.evaluation import count_errors
from jaxasr.manifests import read_audio, read_manifest

CHECKPOINT = "sherpa-onnx-kws-zipformer-gigaspeech-3.3M-2024-01-01-mobile"


def manifests(shared: Path, folder: Path) -> list[Path]:
    """The table's sets as manifests, by the script that docs/published.md names."""
    import runpy

    script = Path(__file__).resolve().parent.parent / "benchmarks" / "published_manifests.py"
    table = shared / "published" / CHECKPOINT / "sherpa-onnx-greedy-dequantized.tsv"
    return runpy.run_path(str(script))["write_manifests"](table, shared / "speech", folder)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_for_users")
def test_words_and_ids_of_sherpa_onnx(shared: Path, tmp_path: Path) -> None:
    convert_checkpoint(shared / "published" / CHECKPOINT, tmp_path / "model")
    # Few buckets, since each is a program to compile; what buckets do is the subject of test_promises.py.
    recognizer = jaxasr.load_model(tmp_path / "model", shortest_seconds=5.0)
    sets = {manifest: read_manifest(manifest) for manifest in manifests(shared, tmp_path / "manifests")}
    # One job for all sets: each would have programs of its own.
    utterances = [utterance for each in sets.values() for utterance in each]
    transcripts = recognizer.transcribe([audio.load(*read_audio(utterance)) for utterance in utterances])
    equal = total = shifted = tokens = 0
    for manifest, utterances in sets.items():
        with open(manifest, encoding="utf-8", newline="") as file:
            theirs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert len(utterances) == len(theirs) > 0
        ours = list(itertools.islice(transcripts, len(utterances)))
        wrong = [
            sum(count_errors(row["text"].split(), text.split()).total for row, text in zip(theirs, texts, strict=True))
            for texts in ([each.text for each in ours], [row["hypothesis"] for row in theirs])
        ]
        words = sum(len(row["text"].split()) for row in theirs)
        assert abs(wrong[0] - wrong[1]) <= max(2, 0.003 * words), manifest.stem
        ids = [row["token_ids"].split() for row in theirs]
        equal += sum(list(map(str, each.token_ids)) == row for each, row in zip(ours, ids, strict=True))
        total += len(ours)
        for each, row in zip(ours, theirs, strict=True):
            if list(map(str, each.token_ids)) == row["token_ids"].split():
                late = np.abs(np.array(each.timestamps) - np.array(row["timestamps"].split(), float)) > 0.021
                shifted, tokens = shifted + int(late.sum()), tokens + len(late)
    assert total == 275
    assert equal >= 0.99 * total
    # One token in the set is emitted a frame earlier; why is not known (the exporter folded the position weights away,
    # and those fitted to its table are the only parameters that are not the file's own).
    assert shifted <= 0.005 * tokens
