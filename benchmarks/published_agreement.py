"""How a model agrees with sherpa-onnx on published recordings, set by set: equal token ids and both word error rates.

    python benchmarks/published_agreement.py MODEL SET.tsv... [--alone]

SET.tsv is what published_manifests.py writes. Prints a table in Markdown, and the utterances with equal ids in all, of
which those that are one recording, not several joined. `--alone` transcribes each utterance by itself too, and counts
those that get other ids than in batches.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import jaxasr
from jaxasr import audio
from jaxasr.evaluation import count_errors
from jaxasr.manifests import read_audio, read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET.tsv")
    parser.add_argument("--alone", action="store_true", help="compare with each utterance by itself")
    arguments = parser.parse_args()
    jaxasr.configure_process()
    sets = [(manifest, read_manifest(manifest)) for manifest in arguments.sets]
    clips = [audio.load(*read_audio(utterance)) for _, utterances in sets for utterance in utterances]
    print("| set | utterances | same token ids | jaxasr | sherpa-onnx |\n|---|---|---|---|---|")
    all_equal = all_single = single = 0
    heard: list[jaxasr.Transcript] = []
    with jaxasr.load_model(arguments.model, dtype="float32") as recognizer:
        transcripts = recognizer.transcribe(clips)
        for manifest, utterances in sets:
            with open(manifest, encoding="utf-8", newline="") as file:
                theirs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
            ours = list(itertools.islice(transcripts, len(utterances)))
            heard += ours
            pairs = list(zip(ours, theirs, strict=True))
            equal = [list(each.token_ids) == [int(token) for token in row["token_ids"].split()] for each, row in pairs]
            alone = ["," not in row["path"] for row in theirs]
            words = sum(len(row["text"].split()) for row in theirs)
            wrong = (
                sum(
                    count_errors(row["text"].split(), text.split()).total
                    for row, text in zip(theirs, texts, strict=True)
                )
                for texts in ([each.text for each in ours], [row["hypothesis"] for row in theirs])
            )
            rates = " | ".join(f"{100 * errors / words:.2f} %" for errors in wrong)
            print(f"| {manifest.stem} | {len(theirs)} | {sum(equal)} | {rates} |", flush=True)
            all_equal, single = all_equal + sum(equal), single + sum(alone)
            all_single += sum(same and one for same, one in zip(equal, alone, strict=True))
        print(f"\nEqual ids: {all_equal} of {len(clips)}; of single recordings {all_single} of {single}.")
        if arguments.alone:
            singly = (next(recognizer.transcribe(clip)) for clip in clips)
            others = sum(each.token_ids != by_itself.token_ids for each, by_itself in zip(heard, singly, strict=True))
            print(f"Other ids by itself than in a batch: {others}.")


if __name__ == "__main__":
    main()
