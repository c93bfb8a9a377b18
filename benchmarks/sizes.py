"""How many bytes a configuration takes with weights of 8, 4 and 2 bits, and print a table in Markdown.

    python benchmarks/sizes.py reazonspeech_k2_v2 stt_en_conformer_ctc_large
    python benchmarks/sizes.py librispeech_zipformer_small --write FOLDER

Counted from shapes alone, so that nothing is made: on disk, all arrays as `jaxasr quantize` stores them (packed
integers, scales and zeros in 16 bits, other floats in 16 bits but those of features in 32), and in a device's memory
the same with all floats in 32 bits. The files of a model directory beside its arrays (tokens, configuration, manifest,
card, the index of Orbax) are not counted. `--write` makes model directories of random numbers and adds the bytes of all
their files; their integers are uniform, so that Orbax cannot compress them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxasr import store
from jaxasr.compression.post_training import fitting_rules, stored_float
from jaxasr.configs import named_configs
from jaxasr.model import AbstractModel
from jaxasr.model_config import ModelConfig
from jaxasr.quant.array import QuantizedArray
from jaxasr.quant.rules import QuantizationConfig, default_rules
from jaxasr.quant.tree import abstract_tree
from jaxasr.text.tokens import TokenTable

# What `jaxasr quantize` is asked for, and the options of `default_rules` that say so.
ROWS: dict[str, dict[str, Any] | None] = {
    "16 bits, float": None,
    "--bits 8": {"bits": 8},
    "--bits 4 --block 128": {"bits": 4, "block": 128},
    "--bits 2 --block 128": {"bits": 2, "block": 128},
    "--bits 2 --block 64 --asymmetric": {"bits": 2, "block": 64, "symmetric": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="make model directories here, in new folders")
    arguments = parser.parse_args()
    heads = ["configuration", "parameters", "weights", "bits a quantized weight", "MB on disk", "MB in memory"]
    heads += ["MB of files"] if arguments.write else []
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in arguments.configs:
        config = store.read_config(named_configs()[name])
        floats = AbstractModel(config).floats
        numbers = store.parameter_count(floats)
        for row, options in ROWS.items():
            rules = _rules(config, options)
            leaves = store.flatten(abstract_tree(rules, floats))
            disk, memory = (sum(_bytes(path, leaf, kept) for path, leaf in leaves.items()) for kept in (True, False))
            cells = [name, f"{numbers:,}", row, _bits(leaves), f"{disk / 1e6:.1f}", f"{memory / 1e6:.1f}"]
            if arguments.write:
                folder = arguments.write / f"{name}-{row.replace(' ', '')}"
                cells.append(f"{_written(folder, config, rules, leaves) / 1e6:.1f}")
            print("| " + " | ".join(cells) + " |", flush=True)


def _rules(config: ModelConfig, options: dict[str, Any] | None) -> QuantizationConfig | None:
    if options is None:
        return None
    defaults = default_rules(**options)
    return fitting_rules(config, QuantizationConfig(rules=defaults), defaults=len(defaults))


def _bits(leaves: dict[str, Any]) -> str:
    """Bits of the quantized weights with their scales and zeros, a weight."""
    arrays = [leaf for leaf in leaves.values() if isinstance(leaf, QuantizedArray)]
    taken = sum(_size(part) for array in arrays for part in jax.tree.leaves(array))
    return f"{8 * taken / sum(math.prod(array.shape) for array in arrays):.2f}" if arrays else ""


def _bytes(path: str, leaf: Any, stored: bool) -> int:
    """What a leaf takes on disk, where floats are `stored` in 16 bits, or in memory."""
    if isinstance(leaf, QuantizedArray):
        return sum(map(_size, jax.tree.leaves(leaf)))
    kept = stored_float(path, np.broadcast_to(np.float32(1), leaf.shape), "float16")
    return math.prod(leaf.shape) * (kept.dtype.itemsize if stored else 4)


def _size(part: Any) -> int:
    return math.prod(part.shape) * int(part.dtype.itemsize)


def _written(folder: Path, config: ModelConfig, rules: QuantizationConfig | None, leaves: dict[str, Any]) -> int:
    """Bytes of a model directory with random numbers for the leaves."""
    generator = np.random.default_rng(0)

    def numbers(part: Any) -> np.ndarray:
        if part.dtype.kind in "iu":
            return generator.integers(0, 256, part.shape, np.uint8).view(part.dtype)
        return generator.uniform(0.01, 1, part.shape).astype(np.float32).astype(part.dtype)

    made = {}
    for path, leaf in leaves.items():
        made[path] = jax.tree.map(numbers, leaf)
        if not isinstance(leaf, QuantizedArray):
            made[path] = stored_float(path, made[path], "float16")
    tokens = TokenTable(("<blk>", *(f"{number}" for number in range(1, config.vocabulary_size))))
    whole = dataclasses.replace(config, quantization=rules)
    card = store.ModelCard(config.name, (), ("random numbers",), trained=True)
    store.save(folder, whole, store.unflatten(made), tokens, card)
    return int(store.describe(folder)["bytes"])


if __name__ == "__main__":
    main()
