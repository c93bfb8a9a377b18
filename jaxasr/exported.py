"""Programs that need no tracing: what an earlier process has lowered is kept in the cache folder.

An entry is one program in the format of `jax.export` (StableHLO and shapes: no pickle, and nothing of it is executed
when it is read), after a SHA-256 of its name and content. Its name is a hash of all that the program is made from, the
source of this package included. A damaged entry is made anew. Where a program cannot be exported, or nothing can be
kept, it is traced in each process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasr.caches import cache_folder, compilation_options, is_compiled, make_room, make_room_for_programs
from jaxasr.configuration import comes_from, to_mapping
from jaxasr.files import replacing_file
from jaxasr.model_config import ModelConfig
from jaxasr.quant.array import QuantizedArray
from jaxasr.search.hypotheses import Hypotheses

logger = logging.getLogger("jaxasr")

LIMIT = 2**27  # bytes of all entries together; that of a large model has about 400 kB

# What a program depends on beside this package: the packages that trace it or that compute its constants.
_PACKAGES = ("flax", "jax", "jaxlib", "numpy", "scipy")
# Fields of a configuration that are read outside of the program. All others are taken to matter to it.
_OUTSIDE = {"name", "text", "ctc_text", "audio"}
# As Linux names them on x86 and ARM; others differ between kernels on one processor.
_VECTOR = re.compile("(sse|ssse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|adx|gfni|sha|asimd|sve|sme|bf16|i8mm|fp)")
_DIGEST_SIZE = hashlib.sha256().digest_size

# Quantized weights are arguments of programs: what tells their trees apart is written as json.
export.register_pytree_node_serialization(
    QuantizedArray,
    serialized_name="jaxasr.QuantizedArray",
    serialize_auxdata=lambda statics: json.dumps([*statics[:-1], statics[-1].name]).encode(),
    deserialize_auxdata=lambda written: (*(read := json.loads(bytes(written)))[:-1], jax.numpy.dtype(read[-1])),
)


def lower(
    config: ModelConfig,
    details: Mapping[str, object],
    mesh: Mesh,
    trace: Callable[[], tuple[Callable[..., Hypotheses], tuple[object, ...]]],
    anew: Callable[[], None],
) -> jax.stages.Lowered:
    """A program ready to be compiled: as an earlier process has kept it, else traced now, and kept.

    A process that traces a program goes on with the form that it has kept, as later processes will: all of them compile
    the same, find it in JAX's cache of compiled programs, and get the same bits from it.

    `config`: the model, with the search that is asked for.
    `details`: what else tells programs of one model apart, as json can write it; devices, versions and JAX's settings
        are added here.
    `mesh`: the devices that run it, along one axis.
    `trace`: gives the function, whose results have rows along that axis, and its abstract arguments with shardings. It
        is called where no entry fits.
    `anew`: called before the program is traced, and where it has yet to be compiled, so that someone waits for long.
    """
    entry = _entry(config, details, mesh)
    kept = _read(entry) if entry is not None else None
    if entry is not None and not is_compiled(_name(entry)):
        make_room_for_programs()
        anew()
    if entry is not None and kept is not None:
        try:
            return _lower_kept(entry, kept, mesh)
        except Exception as error:  # of many kinds
            logger.debug("%s cannot be used: %s", entry, error)
    anew()
    function, arguments = trace()
    if entry is not None:
        try:
            kept = _export(function, arguments, mesh)
            lowered = _lower_kept(entry, kept, mesh)
        except Exception as error:  # of many kinds; what is wrong with the program itself is raised below once more
            logger.debug("a program cannot be exported: %s", error)
        else:
            _write(entry, kept)
            return lowered
    return jax.jit(function).lower(*arguments)


def is_kept(config: ModelConfig, details: Mapping[str, object], mesh: Mesh) -> bool:
    """Whether a program of these arguments of `lower` needs neither to be traced nor to be compiled."""
    entry = _entry(config, details, mesh)
    return entry is not None and _read(entry) is not None and is_compiled(_name(entry))


def _export(function: Callable[..., Hypotheses], arguments: tuple[object, ...], mesh: Mesh) -> bytes:
    """The function, lowered for these arguments and devices, as bytes."""
    # Of tuples the format knows only the plain ones.
    flat = jax.jit(lambda *arguments: tuple(function(*arguments)), out_shardings=_by_row(mesh))
    return bytes(export.export(flat, platforms=(_platform(mesh),))(*arguments).serialize())


def _platform(mesh: Mesh) -> str:
    """The platform of these devices as jax.export calls it: of a "gpu" its maker's."""
    device = mesh.devices.flat[0]
    if device.platform != "gpu":
        return str(device.platform)
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def _lower_kept(entry: Path, kept: bytes, mesh: Mesh) -> jax.stages.Lowered:
    """What `_export` gave, lowered for these devices. Raises whatever JAX raises for bytes that it cannot read."""
    exported = export.deserialize(bytearray(kept))
    if b"lapack_" not in exported.mlir_module_serialized:
        # For a program of the CPU JAX would load LAPACK, and with it SciPy, in twice the time that all else here takes.
        exported = dataclasses.replace(
            exported, platforms=(), disabled_safety_checks=(export.DisabledSafetyCheck.platform(),)
        )
    arguments, _ = jax.tree.unflatten(
        exported.in_tree,
        [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for leaf, sharding in zip(exported.in_avals, exported.in_shardings_jax(mesh), strict=True)
        ],
    )

    def recognize(*arguments: object) -> Hypotheses:
        return Hypotheses(*exported.call(*arguments))

    recognize.__name__ = _name(entry)
    return jax.jit(recognize, out_shardings=_by_row(mesh)).lower(*arguments)


def _name(entry: Path) -> str:
    """What the function of an entry is called, and thus the file of its compiled program in JAX's cache."""
    return f"recognize_{entry.name[:16]}"


def _by_row(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*mesh.axis_names))


def _source() -> str | None:
    """A hash of the package's source; None where there are no files of it."""
    package = Path(__file__).parent
    hashed = hashlib.sha256()
    files = sorted(package.rglob("*.py"))
    try:
        for file in files:
            content = file.read_bytes()
            hashed.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    except OSError:
        return None
    return hashed.hexdigest() if files else None


_SOURCE = _source()


def _entry(config: ModelConfig, details: Mapping[str, object], mesh: Mesh) -> Path | None:
    """The file of a program, named by a hash of all that it is made from.

    None where programs are not to be kept, or depend on source that is not known: this package's has no files, or the
    model has parts of another package.
    """
    if _SOURCE is None or not comes_from(__name__.partition(".")[0], config):
        return None
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    places = compilation_options()
    made_from = {
        "model": {name: value for name, value in to_mapping(config).items() if name not in _OUTSIDE},
        "details": details,
        "source": _SOURCE,
        "devices": [[device.platform, device.device_kind] for device in mesh.devices.flat],
        "machine": [platform.machine(), *sys.version_info[:2]],
        "instructions": _instructions() if mesh.devices.flat[0].platform == "cpu" else "",
        # By which JAX tells compiled programs apart.
        "flags": [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        "versions": [importlib.metadata.version(package) for package in _PACKAGES],
        # As they are in this thread. Most of them change no program, but which ones do is JAX's to know.
        "settings": {
            name: repr(getattr(jax.config, name, value))
            for name, value in jax.config.values.items()
            if name not in places
        },
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "exported" / name


@functools.cache
def _instructions() -> str:
    """Instructions that the processor has beyond its kind's first (Linux): XLA uses all that it finds.

    JAX's cache does not look at them, and a cache folder may come with a container or a drive from another machine.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    flags = next((line.partition(":")[2].split() for line in lines if re.match("flags|Features", line)), [])
    return " ".join(sorted({flag for flag in flags if _VECTOR.match(flag)}))


def _read(entry: Path) -> bytes | None:
    """What an entry holds; None where there is none or it is damaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    kept = content[_DIGEST_SIZE:]
    if content[:_DIGEST_SIZE] != _digest(entry, kept):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # when it was last used
    return kept


def _write(entry: Path, kept: bytes) -> None:
    """Keep a program, and no more than LIMIT of all. What cannot be written is not kept."""
    if _source() != _SOURCE:
        return  # edited since it was imported: what was traced may be of another source than the name says
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(entry) as file:
            file.write(_digest(entry, kept) + kept)
        make_room(entry.parent, 0, LIMIT)


def _digest(entry: Path, kept: bytes) -> bytes:
    return hashlib.sha256(entry.name.encode() + kept).digest()
