"""A model directory: config.yaml, params/ (Orbax), tokens.txt, README.md (the card) and manifest.json.

That of a detector of speech has no tokens.txt, and its config.yaml a `classifier`.

The directory is written to a sibling and renamed, so that an interruption leaves either nothing or a whole one. The
manifest holds the SHA-256, shape and type of every array and the SHA-256 of every other file; loading checks them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxasr import mapped
from jaxasr.caches import FORMAT
from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.detector_config import DetectorConfig
from jaxasr.errors import ModelError, listing, printable
from jaxasr.files import file_hash, read_yaml, reason, refuse_pointer, require_utf8, writing_folder
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.process import return_freed_memory
from jaxasr.quant.rules import QuantizationConfig, layer_of, multiplied
from jaxasr.search import searched_head
from jaxasr.text.tokens import TokenTable

CONFIG, PARAMS, TOKENS, CARD, MANIFEST = "config.yaml", "params", "tokens.txt", "README.md", "manifest.json"
SAVE_CONCURRENT_GB = 0.1
SMALL_ARRAY = 1 << 18  # bytes
# How quantized weights are multiplied, in words.
WAYS = {
    "float": "weights dequantized in the product",
    "int8": "integers, activations of 8 bits",
    "uint8": "integers, activations of 8 bits with a zero point",
    "fake": "integers' values in float arithmetic",
}
_TRANSPOSED = (
    "The parameters are the source's, transposed; nothing was trained or rounded unless a line above says so. "
)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a person should know of a model directory.

    `source`: (file name, bytes, SHA-256) of each file that the model was made from. `summary`: lines that the
    conversion reported. `origin`, `licence`: as far as they are known. `trained`: the model was trained on the
    manifests in `source` instead of converted from a checkpoint.
    """

    name: str
    source: tuple[tuple[str, int, str], ...]
    summary: tuple[str, ...] = ()
    origin: str = "local files"
    licence: str = "that of the source"
    trained: bool = False

    def text(self, config: ModelConfig | DetectorConfig, parameters: int) -> str:
        """The README.md of the directory."""
        files = [(printable(name).replace("|", "\\|"), size, digest) for name, size, digest in self.source]
        rows = "\n".join(f"| {name} | {size:,} | `{digest}` |" for name, size, digest in files)
        notes = "\n".join(f"- {printable(line)}" for line in self.summary) or "- nothing of note"
        origin, process = ("Trained on", "Training") if self.trained else ("Converted from", "Conversion")
        if isinstance(config, DetectorConfig):
            what = f"A voice activity detector for jaxasr: {config.encoder.kind} encoder, {parameters:,} parameters"
            what += f", a probability of speech every {config.frame_seconds:g} s"
            use = "Use it with `jaxasr.load_detector`"
        else:
            what = f"A speech recogniser for jaxasr: {config.encoder.kind} encoder, {' and '.join(config.heads)}"
            what += f", {parameters:,} parameters, vocabulary {config.vocabulary_size:,}"
            use = "Measure agreement with `jaxasr evaluate MANIFEST.tsv --model .`"
        return (
            f"# {printable(self.name)}\n\n{what}.\n\n"
            f"Origin: {printable(self.origin)}. Licence: {printable(self.licence)}.\n\n"
            f"## {origin}\n\n| file | bytes | SHA-256 |\n|---|---|---|\n{rows}\n\n## {process}\n\n{notes}\n\n"
            f"## Agreement\n\n{'' if self.trained else _TRANSPOSED}{use}\n"
        )


def save(
    directory: str | os.PathLike[str],
    config: ModelConfig | DetectorConfig,
    params: Mapping[str, Any],
    tokens: TokenTable | None,
    card: ModelCard,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model directory. ModelError where it cannot be written.

    `params`: a nested dictionary of arrays, some of them quantized as `config` says. `tokens`: the vocabulary; None of
    a detector, which has none.
    """
    from jaxasr.quant import tree  # JAX, which who only looks at a directory does not need

    target = Path(directory)
    require_utf8(target, ModelError)
    if target.exists():
        if not overwrite:
            raise ModelError(f"{target} exists: choose another folder or set overwrite")
        if target.samefile(os.curdir):
            raise ModelError(f"{target} is the folder that you are in: go elsewhere to overwrite it")
        if not is_model_directory(target):
            raise ModelError(f"{target} exists and is no model directory: overwrite will not remove it")
    with writing_folder(target, ModelError) as folder:
        (folder / CONFIG).write_text(_yaml(config), encoding="utf-8")
        if tokens is not None:
            tokens.write(folder / TOKENS)
        leaves, quantized = tree.taken_apart(flatten(params))
        # Of JAX's arrays Orbax writes their devices too, 300 bytes for each, which nobody reads; of numpy's it holds a
        # copy of all until they are written.
        leaves = {path: np.asarray(leaf) if leaf.nbytes < SMALL_ARRAY else leaf for path, leaf in leaves.items()}
        size = sum(leaf.nbytes for leaf in leaves.values())
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _save_arrays(folder / PARAMS, unflatten(leaves))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "name": card.name,
            "source": [dict(zip(("file", "bytes", "sha256"), row, strict=True)) for row in card.source],
            "files": {name: file_hash(folder / name) for name in (CONFIG, TOKENS) if (folder / name).exists()},
            "arrays": _describe_arrays(leaves),
        }
        if quantized:
            manifest["quantized"] = {path: list(shape) for path, shape in quantized.items()}
        (folder / CARD).write_text(card.text(config, _parameters(manifest)), encoding="utf-8")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """An opened model directory, whose arrays `params` reads."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """How many numbers the parameters have together, or stand for."""
        return _parameters(self.manifest)

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Which of the arrays are stored as integers of few bits, and how."""
        return None

    def params(self, *, verify: bool = True) -> Parameters:
        """Nested arrays of numpy, read-only; ModelError where a shape or, with `verify`, a hash is wrong.

        Quantized ones are QuantizedArrays over such arrays. JAX on a CPU takes them without a copy. They are what
        `mapped` has kept of this folder, else Orbax reads them.
        """
        require_utf8(self.folder, ModelError)
        folder, described = self.folder / PARAMS, self.manifest["arrays"]
        try:
            kept = mapped.entry(described, folder)
        except OSError as error:
            raise ModelError(f"{folder} cannot be read ({reason(error)}): convert the model again") from None
        arrays = mapped.read(kept, described)
        if arrays is None:
            restored = _restore_arrays(folder, described)
            if verify:
                _verify_arrays(folder, described, restored)
                arrays = mapped.keep(kept, described, restored)
            arrays = arrays or mapped.pack(described, restored)
            restored.clear()
            return_freed_memory()
        if not (shapes := _quantized(self.manifest)):
            return unflatten(arrays)
        from jaxasr.quant.tree import put_together

        try:
            return unflatten(put_together(arrays, shapes, self.quantization))
        except ValueError as error:
            raise ModelError(f"{folder} does not fit {CONFIG} ({error}): quantize the model again") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel(_Stored):
    """An opened model directory of a recogniser: everything but its arrays, which `params` reads."""

    config: ModelConfig
    tokens: TokenTable

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Which of the arrays are stored as integers of few bits, and how."""
        return self.config.quantization


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredDetector(_Stored):
    """An opened model directory of a detector: everything but its arrays, which `params` reads."""

    config: DetectorConfig


def open_model(directory: str | os.PathLike[str], *, verify: bool = True) -> StoredModel:
    """Read and check all of a recogniser's directory but its arrays; ModelError and ConfigError name what is wrong."""
    folder = Path(directory)
    manifest = _read_manifest(folder)
    if verify:
        _verify_file(folder, CONFIG, manifest["files"])
    config = load_config(folder)
    if verify:
        _verify_file(folder, TOKENS, manifest["files"])
    tokens = TokenTable.read(folder / TOKENS, config.vocabulary_size)
    return StoredModel(folder=folder, config=config, tokens=tokens, manifest=manifest)


def open_detector(directory: str | os.PathLike[str], *, verify: bool = True) -> StoredDetector:
    """Read and check all of a detector's directory but its arrays; ModelError and ConfigError name what is wrong."""
    folder = Path(directory)
    manifest = _read_manifest(folder)
    if verify:
        _verify_file(folder, CONFIG, manifest["files"])
    config = load_any_config(folder)
    if not isinstance(config, DetectorConfig):
        raise ModelError(f"{folder} is a recogniser, not a voice activity detector: jaxasr.load_model takes it")
    return StoredDetector(folder=folder, config=config, manifest=manifest)


def load(directory: str | os.PathLike[str], *, verify: bool = True) -> tuple[ModelConfig, Parameters, TokenTable]:
    """Read a whole model directory and check every shape and, with `verify`, every hash.

    The arrays are on the first local device.
    """
    import jax

    opened = open_model(directory, verify=verify)
    params: Parameters = jax.device_put(opened.params(verify=verify), jax.local_devices()[0])
    return opened.config, params, opened.tokens


def load_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """The configuration of a recogniser's directory; ConfigError where there is none or a key is wrong.

    ModelError for the directory of a detector.
    """
    config = load_any_config(directory)
    if isinstance(config, DetectorConfig):
        raise ModelError(f"{directory} is a voice activity detector, not a recogniser: jaxasr.load_detector takes it")
    return config


def load_any_config(directory: str | os.PathLike[str]) -> ModelConfig | DetectorConfig:
    """The configuration of a model directory, a recogniser's or a detector's."""
    path = Path(directory) / CONFIG
    mapping = read_yaml(path)
    if isinstance(mapping, Mapping) and "classifier" in mapping:
        return from_mapping(DetectorConfig, mapping, str(path))
    return from_mapping(ModelConfig, mapping, str(path))


def read_config(path: Path) -> ModelConfig:
    """A yaml file that is the literal image of a ModelConfig."""
    return from_mapping(ModelConfig, read_yaml(path), str(path))


def is_model_directory(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like what `save` writes."""
    return (Path(path) / MANIFEST).is_file() and (Path(path) / CONFIG).is_file()


def describe(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What `jaxasr info` shows of a model directory, without reading its arrays."""
    folder = Path(directory)
    manifest = _read_manifest(folder)
    config = load_any_config(folder)
    arrays = {path: (entry["shape"], entry["dtype"]) for path, entry in manifest["arrays"].items()}
    return {
        "kind": "model directory",
        "path": str(folder),
        **facts(config, arrays),
        "parameters": _parameters(manifest),
        **_low_bits(config, manifest),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "source": manifest["source"],
    }


def facts(config: ModelConfig | DetectorConfig, arrays: Mapping[str, tuple[Sequence[int], str]]) -> dict[str, Any]:
    """What `jaxasr info` shows of any model: its configuration in short, and the sum of its arrays (shape, type)."""
    sums = {
        "parameters": sum(math.prod(shape) for path, (shape, _) in arrays.items() if is_parameter(path)),
        "dtype": ", ".join(sorted({dtype for _, dtype in arrays.values()})),
    }
    architecture = {"name": config.name, "architecture": config.encoder.kind}
    if isinstance(config, DetectorConfig):
        heard = {"longest_s": config.longest} if config.window is None else {"window_s": config.window.seconds}
        steps = {"detects": "speech", "frame_s": config.frame_seconds, **heard, "segments": config.segments.kind}
        return {**architecture, **steps, **sums, **config.encoder.facts()}
    return {
        **architecture,
        "heads": list(config.heads),
        "search": config.search.kind,
        "head": searched_head(config.search, config.heads),
        "beam": config.search.beam,
        **sums,
        "vocabulary": config.vocabulary_size,
        **config.encoder.facts(),
        "silence_before_s": config.audio.silence_before,
        "silence_after_s": config.audio.silence_after,
        "longest_s": config.audio.longest,
    }


def is_parameter(path: str) -> bool:
    """Whether training changes the array at `path`: not a front end's constants, not the averages of a batch norm.

    A model's size is counted so by its publishers too.
    """
    return not path.startswith("features.") and path.rpartition(".")[2] not in ("mean", "variance")


def parameter_count(shapes: Parameters) -> int:
    """How many numbers the parameters among nested arrays, or shapes of such, have or stand for."""
    return sum(math.prod(leaf.shape) for path, leaf in flatten(shapes).items() if is_parameter(path))


def stored_bytes(arrays: Mapping[str, Any]) -> int:
    """Bytes that the arrays of a manifest take in the memory of a device in the types in which they are stored."""
    return sum(math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize for entry in arrays.values())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one with dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _save_arrays(path: Path, params: Mapping[str, Any]) -> None:
    """Write the arrays. Raises OSError, also for the ValueError that TensorStore makes of a failed write."""
    import orbax.checkpoint as ocp

    # One array at a time: by default Orbax holds a second copy of everything until it is written.
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=SAVE_CONCURRENT_GB)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            _uninterrupted(checkpointer.save, path.absolute(), args=ocp.args.PyTreeSave(params))
    except ValueError as error:
        full = os.strerror(errno.ENOSPC)
        raise OSError(errno.EIO, full if full in str(error) else reason(error)) from None


def _restore_arrays(folder: Path, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that Orbax finds in the folder, by path; ModelError where there are others than described."""
    import orbax.checkpoint as ocp

    for file in sorted(folder.rglob("*")):
        refuse_pointer(file, ModelError)
    # As arrays of the host, in which they are hashed: in half the time that arrays of a device take.
    try:
        plain = unflatten(dict.fromkeys(described, ocp.RestoreArgs(restore_type=np.ndarray)))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(folder.absolute(), args=ocp.args.PyTreeRestore(plain, restore_args=plain))
        restored = flatten(tree)
    except Exception as error:  # Orbax and TensorStore raise many kinds for one cause: a damaged params folder
        raise ModelError(f"{folder} is damaged ({reason(error)}): convert the model again") from None
    wrong = [
        path
        for path, array in described.items()
        if restored[path].shape != tuple(array["shape"]) or restored[path].dtype != np.dtype(array["dtype"])
    ]
    if wrong:
        raise ModelError(
            f"{folder} is damaged: the manifest states other shapes or types for {listing(wrong, 3)}; convert it again"
        )
    return restored


def _uninterrupted(call: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Run `call` where no signal reaches it; an interruption is raised when it has ended.

    For Orbax, whose own threads would write on while what was written is removed.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(call, *arguments, **options)
        try:
            running.result()
        finally:
            while not running.done():  # interrupted, perhaps again and again
                with contextlib.suppress(KeyboardInterrupt):
                    wait([running])


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise ModelError(f"{folder} does not exist: make a model directory with `jaxasr convert`")
    refuse_pointer(folder / MANIFEST, ModelError)
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(
            f"{folder} is no model directory: it has no {MANIFEST}; make one with `jaxasr convert`"
        ) from None
    except (ValueError, RecursionError):
        manifest = None
    if not _is_manifest(manifest):
        raise ModelError(f"{folder / MANIFEST} is damaged: convert the model again")
    if manifest["format"] != FORMAT:
        raise ModelError(f"{folder} has format {manifest['format']}, this jaxasr reads {FORMAT}: convert it again")
    checked: dict[str, Any] = manifest
    return checked


def _quantized(manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that are stored as integers, by path."""
    return {path: tuple(shape) for path, shape in manifest.get("quantized", {}).items()}


def _parameters(manifest: Mapping[str, Any]) -> int:
    """How many numbers the parameters have together, or stand for."""
    quantized = _quantized(manifest)
    entries = _parameter_entries(manifest).items()
    floats = (entry["shape"] for path, entry in entries if path.rpartition(".")[0] not in quantized)
    return sum(map(math.prod, (*floats, *quantized.values())))


def _parameter_entries(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of the arrays that are, or belong to, parameters, by path."""
    return {path: entry for path, entry in manifest["arrays"].items() if is_parameter(path)}


def _low_bits(config: ModelConfig | DetectorConfig, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `jaxasr info` shows of quantized weights: how many of each number of bits, and how they are multiplied.

    On every device alike: integers of fewer bits are widened to 8 as a product reads them.
    """
    if isinstance(config, DetectorConfig) or config.quantization is None:
        return {}
    bits: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for path, shape in _quantized(manifest).items():
        rule, layer = config.quantization.rule(path, shape), layer_of(path, shape)
        if rule is not None and layer is not None:
            bits[f"{rule.bits} bits"] += math.prod(shape)
            way = multiplied(rule.activations, layer, shape, rule.per)
            static = rule.ranges == "static" and way != "float"
            ways[f"{WAYS[way]}{', of static ranges' if static else ''}"] += math.prod(shape)
    stored = stored_bytes(_parameter_entries(manifest))
    return {
        "weights": {**bits, "float": _parameters(manifest) - bits.total()},
        "products": dict(ways),
        "bits_per_parameter": round(8 * stored / _parameters(manifest), 3),
    }


def _is_manifest(manifest: Any) -> bool:
    try:
        return all(
            isinstance(path, str) and len(entry["sha256"]) == 64 and np.dtype(entry["dtype"]) is not None
            and all(type(size) is int and size >= 0 for size in entry["shape"])
            for path, entry in manifest["arrays"].items()
        ) and all(
            isinstance(row["file"], str) and type(row["bytes"]) is int for row in manifest["source"]
        ) and all(
            f"{path}.integers" in manifest["arrays"] and all(type(size) is int and size >= 0 for size in shape)
            for path, shape in manifest.get("quantized", {}).items()
        ) and isinstance(manifest["files"], dict) and type(manifest["format"]) is int  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        return False


def _verify_file(folder: Path, name: str, files: Mapping[str, str]) -> None:
    refuse_pointer(folder / name, ModelError)
    try:
        digest = file_hash(folder / name)
    except OSError as error:
        raise ModelError(f"{folder / name} cannot be read ({reason(error)}): convert the model again") from None
    if digest != files.get(name):
        edited = ", with --config and your copy of the file if you meant to change it" if name == CONFIG else ""
        raise ModelError(
            f"{folder / name} is not what was converted (its hash differs): convert the model again{edited}"
        )


def _verify_arrays(folder: Path, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    if wrong := mapped.differing(arrays, described):
        raise ModelError(f"{folder} is damaged: {listing(wrong, 3)} differ from the manifest; convert it again")


def _describe_arrays(leaves: Mapping[str, Any]) -> dict[str, Any]:
    digests = mapped.hashes(leaves)
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": digests[path]}
        for path, leaf in leaves.items()
    }


def _yaml(config: ModelConfig | DetectorConfig) -> str:
    return yaml.safe_dump(to_mapping(config), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
