"""How many tokens narrower types change, against float32, and print a table in Markdown.

    python benchmarks/precision.py MODEL... --audio FILE...

MODEL are model directories. For bfloat16 and float16: clips whose tokens are not those of float32, the edit distance
over all clips; in the clips with the same tokens, how many of these moved to another frame, and the largest difference
of a log-probability of one that did not.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

import jaxasr
from jaxasr.evaluation import count_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--audio", nargs="+", required=True, metavar="FILE")
    arguments = parser.parse_args()
    jaxasr.configure_process()
    print(f"Device: {jax.devices()[0].device_kind}, jax {jax.__version__}.\n")
    print("| model | type | clips | clips changed | tokens | edits | moved | largest change of a log-probability |")
    print("|---|---|---|---|---|---|---|---|")
    for model in arguments.models:
        exact = list(jaxasr.load_model(model).transcribe(arguments.audio))
        for dtype in ("bfloat16", "float16"):
            recognizer = jaxasr.load_model(model, dtype=dtype)
            narrow = list(recognizer.transcribe(arguments.audio))
            changed = edits = moved = 0
            largest = 0.0
            for theirs, ours in zip(exact, narrow, strict=True):
                distance = count_errors(list(map(str, theirs.token_ids)), list(map(str, ours.token_ids))).total
                changed, edits = changed + bool(distance), edits + distance
                if not distance:
                    stayed = np.equal(theirs.timestamps, ours.timestamps)
                    differences = np.abs(np.subtract(theirs.log_probs, ours.log_probs))[stayed]
                    moved += int((~stayed).sum())
                    largest = max(largest, float(differences.max(initial=0.0)))
            tokens = sum(len(each.token_ids) for each in exact)
            name = recognizer.config.name
            print(
                f"| {name} | {dtype} | {len(exact)} | {changed} | {tokens} | {edits} | {moved} | {largest:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
