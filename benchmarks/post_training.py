"""What quantization after training costs a model, by bits and methods: word errors, words that differ, sizes.

    python benchmarks/post_training.py MODEL SET.tsv... --calibrate MANIFEST --results DIR [ROW...]
    python benchmarks/post_training.py --results DIR

The first makes the named rows, or all, one after another, and keeps the model and the result of each in DIR, so that an
interrupted run goes on with the rows that are missing; MANIFEST's training split is what calibration hears. The second
prints the table of what is there, in Markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxasr
from jaxasr import store
from jaxasr.compression.calibrated import Heard, hear
from jaxasr.compression.calibration import read_windows
from jaxasr.compression.post_training import fitting_rules, quantize_stored
from jaxasr.configuration import from_mapping
from jaxasr.evaluation import count_errors, evaluate, units
from jaxasr.files import read_yaml, replacing_file
from jaxasr.manifests import read_manifest
from jaxasr.quant.array import QuantizedArray
from jaxasr.quant.rules import QuantizationConfig, Rule, default_rules
from jaxasr.recognizer import Recognizer
from jaxasr.store import flatten, unflatten

FLOAT = "float32"
NEAREST: dict[str, Any] = {"clip": False}
CLIPPED: dict[str, Any] = {"clip": True}
CALIBRATED: dict[str, Any] = {"clip": True, "calibrated": True}
BLOCKS: dict[str, Any] = {"symmetric": False, "block": 32}
# What decides what a frame attends to, a tenth of the weights, which suffer most (`jaxasr sensitivity`).
SCORES: dict[str, Any] = {"rules": (Rule(path="encoder.*attention_weights*", bits=8),)}
# Rows by name, the most telling first: what `default_rules` is given, rules before these, and whether to calibrate.
ROWS: dict[str, dict[str, Any]] = {
    FLOAT: {},
    "2 bits, blocks of 32, attention 8, calibrated": {"bits": 2, **BLOCKS, **SCORES, **CALIBRATED},
    "4 bits, blocks of 32, calibrated": {"bits": 4, **BLOCKS, **CALIBRATED},
    "3 bits, blocks of 32, attention 8, calibrated": {"bits": 3, **BLOCKS, **SCORES, **CALIBRATED},
    "2 bits, blocks of 32, calibrated": {"bits": 2, **BLOCKS, **CALIBRATED},
    "3 bits, blocks of 32, calibrated": {"bits": 3, **BLOCKS, **CALIBRATED},
    "2 bits, blocks of 16, attention 8, calibrated": {"bits": 2, **BLOCKS, "block": 16, **SCORES, **CALIBRATED},
    "4 bits, blocks of 32, nearest": {"bits": 4, **BLOCKS, **NEAREST},
    "2 bits, blocks of 32, clipped": {"bits": 2, **BLOCKS, **CLIPPED},
    "3 bits, blocks of 32, clipped": {"bits": 3, **BLOCKS, **CLIPPED},
    "8 bits, nearest": {"bits": 8, **NEAREST},
    "3 bits, blocks of 32, nearest": {"bits": 3, **BLOCKS, **NEAREST},
    "4 bits, blocks of 32, clipped": {"bits": 4, **BLOCKS, **CLIPPED},
    "2 bits, blocks of 32, nearest": {"bits": 2, **BLOCKS, **NEAREST},
    "4 bits, calibrated": {"bits": 4, **CALIBRATED},
    "4 bits, nearest": {"bits": 4, **NEAREST},
    "8 bits, clipped": {"bits": 8, **CLIPPED},
    "8 bits, calibrated": {"bits": 8, **CALIBRATED},
}


class Table:
    """What the rows of one run share: the float model, its programs, and what calibration has heard."""

    def __init__(self, model: Path, sets: Sequence[Path], calibrate: Path, results: Path) -> None:
        self.stored = store.open_model(model)
        self.params = self.stored.params()
        self.sets = {manifest.stem: read_manifest(manifest) for manifest in sets}
        self.calibrate, self.results = calibrate, results
        self.recognizer = Recognizer(self.stored.config, self.params, self.stored.tokens)

    @functools.cached_property
    def heard(self) -> Heard:
        """What calibration hears, which is the same for all rows: kept with their results."""
        kept = self.results / "heard.npz"
        if not kept.exists():
            windows = read_windows(read_manifest(self.calibrate, {"split": ["train"]}))
            rules = QuantizationConfig(rules=default_rules(4))
            with replacing_file(kept) as file:
                np.savez(file, allow_pickle=False, **hear(self.stored.config, self.params, windows, rules).grams)
        with np.load(kept) as arrays:
            return Heard(dict(arrays), {})

    def make(self, name: str) -> None:
        """Quantize as the row says, recognise all sets, and keep what was heard.

        The words are those of the float model's program over dequantized weights, which are the same floats that
        products of the quantized model multiply with.
        """
        directory, params = self.stored.folder, self.params
        if name != FLOAT:
            options = dict(ROWS[name])
            heard = self.heard if options.pop("calibrated", False) else None
            given = options.pop("rules", ())
            defaults = default_rules(**options) if "bits" in options else ()
            rules = QuantizationConfig(rules=(*given, *defaults))
            rules = fitting_rules(self.stored.config, rules, defaults=len(defaults))
            made = quantize_stored(self.stored, self.params, rules, heard)
            directory = self.results / _slug(name)
            card = store.ModelCard(name, ())
            store.save(directory, made.config, made.params, self.stored.tokens, card, overwrite=True)
            params = unflatten({path: _floats(leaf) for path, leaf in flatten(made.params).items()})
        self.recognizer.programs.replace_params(params)
        words: dict[str, list[list[str]]] = {}
        for set_name, utterances in self.sets.items():
            scored = list(evaluate(self.recognizer, utterances))
            if faults := [each.error for each in scored if each.error is not None]:
                raise faults[0]
            words[set_name] = [[each.utterance.text, each.hypothesis] for each in scored]
        result = {"row": name, "bytes": store.describe(directory)["bytes"], "bits": _bits(directory), "heard": words}
        with replacing_file(self.results / f"{_slug(name)}.json") as file:
            file.write(json.dumps(result, ensure_ascii=False).encode())


def _floats(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.dequantize() if isinstance(leaf, QuantizedArray) else leaf, np.float32)


def print_table(results: Path) -> None:
    """The rows that are there, in Markdown."""
    rows = [json.loads(path.read_text("utf-8")) for path in results.glob("*.json")]
    whole = next((row for row in rows if row["row"] == FLOAT), None)
    if whole is None:
        raise SystemExit(f"post_training: {results} has no row {FLOAT}: make it first")
    sets = list(whole["heard"])
    print(
        "| row | bits a weight | MB on disk |", *(f"{each} |" for each in sets), "all | relative | words that differ |"
    )
    print("|---" * (6 + len(sets)) + "|")
    for row in sorted(rows, key=lambda row: (-row["bits"], row["row"])):
        rates = [
            _rate([pair for each in chosen for pair in row["heard"][each]]) for chosen in (*([s] for s in sets), sets)
        ]
        wanted = _rate([pair for each in sets for pair in whole["heard"][each]])
        differing = words = 0
        for each in sets:
            for (text, before), (_, after) in zip(whole["heard"][each], row["heard"][each], strict=True):
                differing += count_errors(units(before, "wer"), units(after, "wer")).total
                words += len(units(text, "wer"))
        cells = [
            row["row"],
            f"{row['bits']:.2f}",
            f"{row['bytes'] / 1e6:.2f}",
            *(f"{100 * rate:.2f} %" for rate in rates),
        ]
        cells += [f"{100 * (rates[-1] / wanted - 1):+.1f} %", f"{100 * differing / words:.2f} %"]
        print("|", " | ".join(cells), "|")


def _rate(pairs: Sequence[Sequence[str]]) -> float:
    errors = [count_errors(units(text, "wer"), units(hypothesis, "wer")) for text, hypothesis in pairs]
    return sum(each.total for each in errors) / sum(each.reference_length for each in errors)


def _bits(directory: Path) -> float:
    """Bits that a quantized weight of the encoder takes, its share of scales and zeros included."""
    manifest = store.open_model(directory, verify=False).manifest
    quantized = {path: shape for path, shape in manifest.get("quantized", {}).items() if path.startswith("encoder.")}
    if not quantized:
        return 32.0
    entries = [entry for path, entry in manifest["arrays"].items() if path.rpartition(".")[0] in quantized]
    stored = sum(np.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize for entry in entries)
    return float(8 * stored / sum(np.prod(shape) for shape in quantized.values()))


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="MODEL SET.tsv... ROW...")
    parser.add_argument("--calibrate", type=Path, metavar="MANIFEST")
    parser.add_argument("--spec", type=Path, action="append", default=[], metavar="SPEC.yaml", help="rows of it too")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_intermixed_args()
    if not arguments.inputs:
        print_table(arguments.results)
        return
    for file in arguments.spec:
        rules = from_mapping(QuantizationConfig, read_yaml(file), str(file)).rules
        ROWS.update(
            {
                f"{file.stem}, clipped": {"rules": rules},
                f"{file.stem}, calibrated": {"rules": rules, "calibrated": True},
            }
        )
    names = [each for each in arguments.inputs if each in ROWS] or list(ROWS)
    sets = [Path(each) for each in arguments.inputs[1:] if each not in ROWS]
    if not sets or arguments.calibrate is None:
        parser.error("a model, sets and --calibrate are needed to make rows")
    arguments.results.mkdir(parents=True, exist_ok=True)
    jaxasr.configure_process()
    table = Table(Path(arguments.inputs[0]), sets, arguments.calibrate, arguments.results)
    for name in names:
        if not (arguments.results / f"{_slug(name)}.json").exists():
            table.make(name)
            print(name, flush=True)


if __name__ == "__main__":
    main()
