"""`jaxasr.quantize`: a model directory to a smaller one whose weights are integers, and what that changes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from jaxasr import store
from jaxasr.compression.agreement import Words, compare_words, encoded_difference
from jaxasr.compression.calibrated import hear
from jaxasr.compression.calibration import Windows, read_windows
from jaxasr.compression.post_training import (
    Quantized,
    check_finite,
    fitting_rules,
    open_recogniser,
    quantize_stored,
)
from jaxasr.configuration import from_mapping
from jaxasr.detector_config import DetectorConfig
from jaxasr.errors import ConfigError, ModelError
from jaxasr.files import read_yaml
from jaxasr.loading import locate
from jaxasr.manifests import read_manifest
from jaxasr.model_config import ModelConfig
from jaxasr.quant.rules import QuantizationConfig, default_rules
from jaxasr.recognizer import Recognizer
from jaxasr.store import ModelCard, StoredModel, stored_bytes


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """What a quantization changed.

    `parameters`: how many numbers the model has. `bytes_before`, `bytes_after`: of the files of the model directories.
    `memory_before`, `memory_after`: of the arrays, those of the features too, with weights and scales as they lie in a
    device's memory; what is float takes four bytes there, stored in fewer or not. `weight_error`: root mean square of
    what rounding changed in the quantized weights, as a share of that of the weights. `encoded_error`: the same of what
    the encoder makes of noise that is like speech. `words`: errors on recordings, where some were given.
    """

    parameters: int
    bytes_before: int
    bytes_after: int
    memory_before: int
    memory_after: int
    weight_error: float
    encoded_error: float
    words: Words | None = None

    def facts(self) -> dict[str, int | float]:
        """All of it as one mapping of numbers."""
        fields = {name: value for name, value in vars(self).items() if name != "words"}
        return {**fields, **(self.words.facts() if self.words is not None else {})}


def quantize(
    model: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    spec: QuantizationConfig | str | os.PathLike[str] | None = None,
    *,
    bits: Literal[8, 4, 3, 2] | None = None,
    symmetric: bool = True,
    block: int | None = None,
    clip: bool | None = None,
    method: Literal["nearest", "calibrated"] = "nearest",
    calibrate: str | os.PathLike[str] | None = None,
    where: Mapping[str, Iterable[str]] | None = None,
    evaluate: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[float, float | None], None] | None = None,
) -> QuantizationReport:
    """Write a model directory with the weights of `model` as integers of few bits, and say what that changes.

    The integers are packed: two of 4 bits, or four of 2 bits, to a byte, eight of 3 bits to three bytes. `out_dir`
    stands second, as in `convert_checkpoint` and on the command line; `spec` is third, since `bits` may do without it.

    `model`: a recogniser's model directory, a published model's name, or "embedded"; not one that is quantized already.
    `out_dir`: the model directory to make; it appears whole or not at all.
    `spec`: which weights are quantized, and how: a QuantizationConfig or a yaml file of one. Its rules come before
        those of `bits`.
    `bits`: 8, 4, 3 or 2 for the encoder; heads and dense layers of front ends keep 8.
    `symmetric`: without a zero beside each scale.
    `block`: weights that share a scale, along the inputs of each output; all of an output's inputs if unset.
    `clip`: look for the bound of least squared error of each scale, instead of the largest weight; by default at 3 and
        2 bits.
    `method`: round weights to the nearest integers; or, calibrated, the encoder's dense layers and convolutions to
        those that give most nearly what the float ones give on recordings.
    `calibrate`: a manifest of such recordings, of which some minutes are heard; their texts do not matter. Rules with
        static ranges of activations measure these on them too, whatever the method.
    `where`: of the recordings to calibrate with only those whose column has one of the values given for it.
    `evaluate`: a manifest of transcribed recordings, on which both models are compared.
    `overwrite`: replace the model directory `out_dir`.
    `progress`: called with (seconds done, seconds known) while recordings are heard, and again while they are compared.

    Raises ConfigError for rules that do not fit the model, ModelError for directories, AudioError for recordings.
    """
    stored = open_recogniser(locate(model))
    if Path(out_dir).exists() and not overwrite:
        raise ModelError(f"{os.fspath(out_dir)} exists: choose another folder or set overwrite")
    rules = _rules(stored.config, spec, bits, symmetric, block, clip)
    if method not in ("nearest", "calibrated"):
        raise ConfigError(f"method must be nearest or calibrated, not {method!r}")
    static = any(rule.ranges == "static" for rule in rules.rules)
    if (method == "calibrated" or static) != (calibrate is not None):
        why = "the method calibrated and static ranges of activations need calibrate, a manifest of recordings"
        raise ConfigError(f"{why}; nothing else takes it")
    utterances = read_manifest(evaluate) if evaluate is not None else []
    windows = read_windows(read_manifest(calibrate, where)) if calibrate is not None else None
    params = stored.params()
    check_finite(stored, params, rules)
    heard = None
    if windows is not None:
        heard = hear(stored.config, params, windows, rules, progress, calibrated=method == "calibrated")
    quantized = quantize_stored(stored, params, rules, heard)
    before = Recognizer(stored.config, params, stored.tokens, parameters=stored.parameters)
    after = Recognizer(quantized.config, quantized.params, stored.tokens, parameters=stored.parameters)
    with before, after:
        encoded_error = encoded_difference(before, after)
        words = compare_words(before, after, utterances, progress) if utterances else None
    card = _Card(
        stored.manifest["name"],
        _sources(stored),
        readme=_readme(stored),
        section=_section(quantized, method, windows, words),
    )
    store.save(out_dir, quantized.config, quantized.params, stored.tokens, card, overwrite=overwrite)
    made = store.open_model(out_dir, verify=False)
    return QuantizationReport(
        parameters=stored.parameters,
        bytes_before=store.describe(stored.folder)["bytes"],
        bytes_after=store.describe(out_dir)["bytes"],
        memory_before=_memory(stored),
        memory_after=_memory(made),
        weight_error=quantized.error,
        encoded_error=encoded_error,
        words=words,
    )


def _rules(
    model: ModelConfig,
    spec: QuantizationConfig | str | os.PathLike[str] | None,
    bits: Literal[8, 4, 3, 2] | None,
    symmetric: bool,
    block: int | None,
    clip: bool | None,
) -> QuantizationConfig:
    """The rules that are asked for, those of `spec` first, as far as they decide anything in the model."""
    if spec is None and bits is None:
        raise ConfigError("give bits (8, 4, 3 or 2), a spec, or both")
    if bits not in (None, 8, 4, 3, 2):
        raise ConfigError(f"bits must be 8, 4, 3 or 2, not {bits}")
    if isinstance(spec, str | os.PathLike):
        spec = from_mapping(QuantizationConfig, read_yaml(spec), os.fspath(spec))
    if bits is None:
        if block is not None or clip is not None or not symmetric:
            raise ConfigError("block, clip and symmetric belong to bits; a spec says them in its rules")
        assert spec is not None
        return fitting_rules(model, spec)
    try:
        defaults = default_rules(bits, block=block, symmetric=symmetric, clip=clip)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    given = spec.rules if spec is not None else ()
    whole = QuantizationConfig(rules=(*given, *defaults), floats=spec.floats if spec is not None else "float16")
    return fitting_rules(model, whole, defaults=len(defaults))


@dataclasses.dataclass(frozen=True)
class _Card(ModelCard):
    """The card of the float model, and what was done to it."""

    readme: str = ""
    section: str = ""

    def text(self, config: ModelConfig | DetectorConfig, parameters: int) -> str:
        return f"{self.readme.rstrip()}\n\n{self.section}"


def _sources(stored: StoredModel) -> tuple[tuple[str, int, str], ...]:
    return tuple((row["file"], row["bytes"], row["sha256"]) for row in stored.manifest["source"])


def _readme(stored: StoredModel) -> str:
    try:
        return (stored.folder / store.CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ModelCard(stored.manifest["name"], _sources(stored)).text(stored.config, stored.parameters)


def _section(quantized: Quantized, method: str, windows: Windows | None, words: Words | None) -> str:
    """What the card says of the quantization."""
    rules = quantized.config.quantization
    assert rules is not None
    sound = f"{windows.seconds:.0f} s of sound" if windows is not None else ""
    how = "to the nearest" if method == "nearest" else f"the encoder's by what it makes of {sound}"
    if sound and method == "nearest":
        how += f", with ranges of activations from {sound}"
    lines = ["## Quantization", "", f"Rounded after training, {how}; the first rule that fits a weight decides."]
    lines += ["", "| weights | bits | grid | activations |", "|---|---|---|---|"]
    for rule in rules.rules:
        named = f"`{rule.path}`" + (f" ({rule.layer})" if rule.layer else "")
        if rule.bits is None:
            lines.append(f"| {named} | float | | |")
            continue
        shared = f"blocks of {rule.block}" if rule.block else f"per {rule.per}"
        kind = "symmetric" if rule.symmetric else "asymmetric"
        acting = rule.activations + (f", {rule.ranges}" if rule.activations != "float" else "")
        lines.append(f"| {named} | {rule.bits} | {kind}, {shared}, bounds: {rule.bounds} | {acting} |")
    lines += ["", f"Error of the quantized weights: {100 * quantized.error:.2f} % (root mean square)."]
    if words is not None:
        before, after = 100 * words.before.rate, 100 * words.after.rate
        lines.append(f"Word error rate: {before:.2f} % before, {after:.2f} % after.")
    return "\n".join(lines) + "\n"


def _memory(stored: StoredModel) -> int:
    """Bytes of the arrays in a device's memory: integers and scales as stored, all else in float32."""
    quantized = tuple(f"{path}." for path in stored.manifest.get("quantized", {}))
    arrays = stored.manifest["arrays"]
    packed = {path: entry for path, entry in arrays.items() if path.startswith(quantized)}
    floats = {path: {**entry, "dtype": "float32"} for path, entry in arrays.items() if path not in packed}
    return stored_bytes({**packed, **floats})
