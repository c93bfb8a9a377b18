"""Checkpoints read by our own pickle interpreter: equal to torch's reading, inert, bounded, and never another error."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import mmap
import os
import pickle
import pickletools
import random
import struct
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxasr.convert.formats.mapped import release
from jaxasr.convert.formats.torch import pickles
from jaxasr.convert.formats.torch.pickles import Record, read_torch
from jaxasr.errors import CheckpointError

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOAT = b"ctorch\nFloatStorage\n"
PACKAGES = ("icefall", "k2", "lhotse")  # whose objects a training program left beside its weights
FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}  # the storage of the tensors made by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(
    kind: bytes = FLOAT, key: bytes = text("0"), size: bytes = b"K\x04", first: bytes = text("storage")
) -> bytes:
    return b"(" + first + kind + key + text("cpu") + size + b"tQ"


def tensor(offset: Any = 0, size: Any = (4,), stride: Any = (1,), source: bytes | None = None) -> list[Any]:
    """A tensor over the storage of four floats, spelt for `write_torch` as opcodes and values."""
    return [source or storage(), offset, size, stride, False, ORDERED_DICT]


def opcodes(parts: list[Any]) -> bytes:
    """`parts`, opcodes, integers or tuples of them, between MARK and TUPLE."""
    return b"(" + b"".join(_opcodes(part) for part in parts) + b"t"


def _opcodes(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, tuple):
        return opcodes(list(part))
    if isinstance(part, bool):
        return b"\x88" if part else b"\x89"
    data = part.to_bytes(part.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def rebuilt(*arguments: Any, **named: Any) -> bytes:
    return REBUILD + opcodes(tensor(*arguments, **named)) + b"R"


def message(path: Path) -> str:
    """The one line of the error that reading `path` ends in."""
    with pytest.raises(CheckpointError) as caught:
        read_torch(path, PACKAGES)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and str(caught.value).isascii()
    return str(caught.value)


def pickled_alone(folder: Path, pickled: bytes, stored: bytes = b"") -> Path:
    """A checkpoint whose pickle is given byte by byte, with one storage."""
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/data/0", stored)
    return folder / "model.pt"


# What is read


def test_containers_and_scalars(write_torch: Callable[..., Path]) -> None:
    value = {
        "model": {"語": "▁the", "list": [1, [2.5, None]], "tuple": (True, -(2**62)), 3: ()},
        "unsigned": b"K\xff",
        "two": b"M\xff\xff",
        "negative": b"J\xfe\xff\xff\xff",
    }
    got = read_torch(write_torch(value))
    assert got == value | {"unsigned": 255, "two": 65535, "negative": -2}
    assert type(got["model"]["tuple"][0]) is bool


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_that_torch_can_write(tmp_path: Path, protocol: int) -> None:
    value = {
        "model": {f"name{i}": [i, float(i), str(i) * 300, bytes([i % 256])] for i in range(300)},
        "b": bytearray(b"x"),
    }
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(value, protocol=protocol))
    got = read_torch(path)
    assert [got["model"][f"name{i}"][:3] for i in range(300)] == [value["model"][f"name{i}"][:3] for i in range(300)]
    if protocol >= 3:  # protocol 2 writes bytes as a call of _codecs.encode
        assert got["model"]["name7"][3] == b"\x07"


SIDE_ENTRIES = {
    "range": range(2, 9, 3),
    "slice": slice(1, None),
    "ellipsis": ...,
    "not implemented": NotImplemented,
    "set": {1, 2},
    "frozenset": frozenset("a"),
    "path": PurePosixPath("exp/run"),
    "namespace": argparse.Namespace(lr=0.1),
    "counter": Counter("aab"),
    "complex": 1 + 2j,
    "decimal": Decimal("0.1"),
    "date": datetime.date(2024, 1, 2),
    "function": os.getcwd,
}


@pytest.mark.parametrize("protocol", range(6))
def test_harmless_side_entries_are_inert_records(
    tmp_path: Path, nothing_runs: Callable[[], Any], protocol: int
) -> None:
    entries = {name: value for name, value in SIDE_ENTRIES.items() if name != "function"}
    plain = {"text": "é\n\\語\x1b", "big": -(2**62), "float": 1e-300, "nan": float("inf"), "no": [True, False, None]}
    path = pickled_alone(tmp_path, pickle.dumps(entries | plain, protocol=protocol))
    with nothing_runs():
        got = read_torch(path)
    assert {name: got[name] for name in plain} == plain and got["no"][0] is True
    assert all(type(got[name]) is Record for name in entries)
    assert got["range"].arguments == (2, 9, 3) and got["slice"].arguments == (1, None, None)
    assert str(got["ellipsis"]).endswith(".Ellipsis") and str(got["namespace"]) == "argparse.Namespace"
    assert got["namespace"].state == {"lr": 0.1}
    refused = pickled_alone(tmp_path, pickle.dumps(SIDE_ENTRIES, protocol=protocol))
    assert "getcwd" in message(refused)


EARLY_TENSOR = (
    b"(dp0\nVmodel\np1\n(dp2\nVw\np3\nctorch._utils\n_rebuild_tensor_v2\np4\n"
    b"(P('storage', <class 'torch.FloatStorage'>, '0', 'cpu', 4)\nI1\n(I2\ntp5\n(I2\ntp6\nI00\n"
    b"ccollections\nOrderedDict\np7\n(tRp8\ntp9\nRp10\nss."
)


def test_a_tensor_of_protocol_0(tmp_path: Path) -> None:
    """Copied from what torch 2.13 writes with pickle_protocol=0, and cannot read itself."""
    assert read_torch(pickled_alone(tmp_path, EARLY_TENSOR, FOUR["0"]))["model"]["w"].tolist() == [1, 3]


EARLY = {
    "REDUCE": b"(dVa\ncos\nsystem\n(Vls\ntRs.",
    "REDUCE of eval": b"(dVa\nc__builtin__\neval\n(V1\ntRs.",
    "GLOBAL": b"cos\nsystem\n.",
    "INST": b"(dVa\n(Vls\nios\nsystem\ns.",
    "OBJ": b"(dVa\n(cos\nsystem\nVls\nos.",
    "another persistent id": EARLY_TENSOR.replace(b"'storage'", b"'module'"),
    "a persistent id of another module": EARLY_TENSOR.replace(b"torch.FloatStorage", b"os.FloatStorage"),
    "a persistent id that goes on": EARLY_TENSOR.replace(b"'cpu', 4)", b"'cpu', 4), os.system('ls'"),
    "another storage": EARLY_TENSOR.replace(b"'0', 'cpu'", b"'../data.pkl', 'cpu'"),
    "reconstructing code": b"(dVa\nccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtRs.",
    "reconstructing on code": b"(dVa\nccopy_reg\n_reconstructor\n(cx.y\nZ\ncsubprocess\nPopen\nNtRs.",
    "reconstructing a tensor": b"(dVa\nccopy_reg\n_reconstructor\n(ctorch._utils\n_rebuild_parameter\n"
    b"c__builtin__\nobject\nNtRs.",
    "text of Python 2": b"(dS'a'\nI1\ns.",
    "an opcode of protocol 2": b"(dVa\n\x88s.",
    "a number that is code": b"(dVa\nI__import__('os')\ns.",
    "a vast number": b"(dVa\nI" + b"9" * 40 + b"\ns.",
    "a number of more than 64 bits": b"(dVa\nL99999999999999999999L\ns.",
    "a float that is none": b"(dVa\nF1_0\ns.",
    "half an escape": b"(dV\\u12\nI1\ns.",
    "a surrogate": b"(dV\\ud800\nI1\ns.",
    "a text without an end": b"(dVa",
    "a memo that is none": b"(dg7\n.",
    "two keys": b"(dVa\nI1\nsVa\nI2\ns.",
    "a dictionary of three": b"(Va\nI1\nVb\nd.",
    "no header and no container": b"Vos.system\n.",
}


def outcome(path: Path, nothing_runs: Callable[[], Any]) -> str:
    """Whether a file is "read", or "refused" in one line; nothing runs meanwhile."""
    with nothing_runs():
        try:
            read_torch(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            return "refused"
    return "read"


@pytest.mark.parametrize("kind", EARLY)
def test_protocols_0_and_1_name_no_code_either(tmp_path: Path, nothing_runs: Callable[[], Any], kind: str) -> None:
    path = pickled_alone(tmp_path, EARLY[kind], FOUR["0"])
    with nothing_runs():
        message(path)


def test_fuzzed_pickles_of_protocol_0(tmp_path: Path, nothing_runs: Callable[[], Any]) -> None:
    whole = EARLY_TENSOR[:-1] + pickle.dumps([1, -2.5, "x", (None, True), {"a": 2**40}], 0)[:-1] + b"0."
    rng, outcomes = random.Random(22), {"read": 0, "refused": 0}
    for _ in range(200):
        mutant = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(mutant))
            mutant[place : place + rng.randrange(3)] = rng.choice([b"", b"\n", bytes([rng.randrange(256)]), b"R", b"("])
        path = pickled_alone(tmp_path, bytes(mutant), FOUR["0"])
        outcomes[outcome(path, nothing_runs)] += 1
    assert outcomes["refused"] > 50


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float16", ml_dtypes.bfloat16, "float64", "int64", "int32", "int16", "int8", "uint8", "bool"],
)
def test_every_storage_type(write_torch: Callable[..., Path], dtype: Any) -> None:
    array = (np.random.default_rng(0).normal(size=(3, 4, 2)) * 4).astype(dtype)
    got = read_torch(write_torch({"model": {"array": array, "scalar": np.array(array[0, 0, 0])}}))["model"]
    assert got["array"].dtype == array.dtype and got["array"].shape == (3, 4, 2) and got["scalar"].shape == ()
    assert got["array"].tobytes() == array.tobytes() and got["scalar"].tobytes() == array[0, 0, 0].tobytes()


def test_windows_of_one_storage_share_memory_and_are_read_only(write_torch: Callable[..., Path]) -> None:
    shared_storage = storage() + b"q\x07"  # remembered, as torch's pickles do
    value = {
        "whole": rebuilt(source=shared_storage),
        "transposed": rebuilt(0, (2, 2), (1, 2), source=b"h\x07"),
        "every_second": rebuilt(1, (2,), (2,)),
        "parameter": b"ctorch._utils\n_rebuild_parameter\n" + opcodes([b"h\x08", True, ORDERED_DICT]) + b"R",
        "empty": rebuilt(4, (0, 300), (300, 1)),
    }
    value["every_second"] += b"q\x08"
    got = read_torch(write_torch(value, FOUR))
    assert got["whole"].tolist() == [0, 1, 2, 3]
    assert got["transposed"].tolist() == [[0, 2], [1, 3]]
    assert got["every_second"].tolist() == got["parameter"].tolist() == [1, 3]
    assert got["empty"].shape == (0, 300)
    assert np.shares_memory(got["whole"], got["transposed"])
    assert not got["whole"].flags.writeable


def test_arrays_are_windows_of_the_mapped_file(write_torch: Callable[..., Path]) -> None:
    path = write_torch({"model": {"big": np.full(8 << 20, 1.5, np.float32)}})
    tracemalloc.start()
    big = read_torch(path)["model"]["big"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(big.base, mmap.mmap)
    assert peak < 4 << 20  # of 32 MiB
    release(big[1:])
    assert float(big[-1]) == 1.5  # released pages come back


TORCH_READS = {  # SHA-256 over name, shape and bytes of each tensor, computed with torch 2.13's own loading
    ("zipformer-tiny/pretrained.pt", "model"): "e9e7721d79e58a288885e7679a7cc87caea3a0a41182a05d07a28e200555ca1f",
    ("zipformer-tiny/epoch-1.pt", "model_avg"): "0e079252026cdb75a939f376e12f71e87883d1fea5c9756552709ceb210fecb6",
    ("zipformer-tiny/epoch-2.pt", "model"): "5708ddd4eceb2bf9527e96be2440ddc3326473876e2d02362858f3131b1062d4",
    ("zipformer-tiny/epoch-2.pt", "model_avg"): "57b348b00be429457906575b949f0dfd44a77a06e203c4ecf4402a1353ebc802",
    ("zipformer-streaming-tiny/pretrained.pt", "model"): (
        "5d7f60f11ee84fb90598b69c259fad3ccc2c23b5f04a4cd6d1889c17b78a4205"
    ),
    ("zipformer-ctc-tiny/pretrained.pt", "model"): "82b56d6d411509806702995b1aa019da10bae45b12461a3fbda1a7b94f2edcee",
    ("zipformer-ja-tiny/pretrained.pt", "model"): "42955165c7605df9975379a83fe881780d668fb08101215f3ced5c5ee1e214f4",
}


@pytest.mark.parametrize("name, entry", TORCH_READS)
def test_equal_to_torch(shared: Path, nothing_runs: Callable[[], Any], name: str, entry: str) -> None:
    with nothing_runs():
        checkpoint = read_torch(shared / "golden" / name, PACKAGES)
    digest = hashlib.sha256()
    for key, array in checkpoint[entry].items():
        digest.update(key.encode() + str(array.shape).encode() + array.tobytes())
    assert digest.hexdigest() == TORCH_READS[name, entry]


def test_side_entries_of_a_training_checkpoint_become_records(shared: Path) -> None:
    checkpoint = read_torch(shared / "golden/zipformer-tiny/epoch-2.pt", PACKAGES)
    exp_dir, dtype = checkpoint["exp_dir"], checkpoint["dtype"]
    assert (str(exp_dir), exp_dir.arguments) == ("pathlib.PosixPath", ("zipformer", "exp"))
    assert (str(dtype), dtype.arguments) == ("torch.float16", None)
    assert checkpoint["grad_scaler"]["growth_interval"] == 2000
    assert sum(isinstance(v, np.ndarray) for s in checkpoint["optimizer"]["state"].values() for v in s.values()) == 118


def test_classes_beside_the_weights_are_never_made(
    write_torch: Callable[..., Path], nothing_runs: Callable[[], Any]
) -> None:
    value = {
        "device": b"ctorch\ndevice\n" + opcodes([text("cpu")]) + b"R",
        "thing": b"c__main__\nThing\n)\x81}(" + text("a") + b"K\x01ub",  # NEWOBJ, BUILD
        "named": b"cmy.package\nThing\n)}\x92",  # NEWOBJ_EX
        "params": b"cicefall.utils\nAttributeDict\n)\x81(" + text("a") + b"K\x01u}b",  # a dict subclass
        "counts": b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R",
        "enum": b"clhotse.utils\nKind\nK\x01\x85R",
    }
    with nothing_runs():
        got = read_torch(write_torch(value), PACKAGES)
    assert all(type(record) is Record for record in got.values())
    assert got["thing"].state == {"a": 1} and got["named"].arguments == ({},)
    assert str(got["counts"].arguments[0]) == "__builtin__.list"


def test_packages_that_nobody_admitted_are_not_called(write_torch: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"asks to call 'lhotse\.utils\.Kind'"):
        read_torch(write_torch({"enum": b"clhotse.utils\nKind\nK\x01\x85R"}))


# What names code


def call(module: str, name: str, argument: str = "touch it_ran") -> bytes:
    return f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"


SYSTEM = call("os", "system")
MALICIOUS = {
    "REDUCE": SYSTEM,
    "REDUCE posix": call("posix", "system"),
    "REDUCE nt": call("nt", "system"),
    "REDUCE subprocess": call("subprocess", "check_output"),
    "REDUCE eval": call("builtins", "eval", "1"),
    "REDUCE eval of Python 2": call("__builtin__", "eval", "1"),
    "REDUCE getattr": b"cbuiltins\ngetattr\ncos\npath\n" + text("join") + b"\x86R",
    "REDUCE __import__": call("builtins", "__import__", "os"),
    "REDUCE import_module": call("importlib", "import_module", "os"),
    "REDUCE of runpy": call("runpy", "run_path"),
    "REDUCE of pydoc.locate": call("pydoc", "locate", "os.system"),
    "REDUCE of pip": call("pip", "main"),
    "REDUCE of torch.load": call("torch.storage", "_load_from_bytes"),
    "REDUCE of torch.hub": call("torch.hub", "load"),
    "REDUCE of numpy's runstring": call("numpy.testing._private.utils", "runstring"),
    "REDUCE of an unknown class": call("__main__", "Thing"),
    "REDUCE of copyreg": b"ccopyreg\n_reconstructor\nc__main__\nThing\ncbuiltins\nobject\nN\x87R",
    "REDUCE of functools": b"cfunctools\npartial\ncos\nsystem\n\x85R",
    "REDUCE of operator": b"coperator\nattrgetter\n" + text("system") + b"\x85R",
    "REDUCE of a storage type": b"ctorch\nFloatStorage\nK\x04\x85R",
    "REDUCE of a result": b"ccollections\nOrderedDict\n)R)R",
    "REDUCE of text": text("os.system") + b")R",
    "REDUCE without a tuple": b"ccollections\nOrderedDict\n]R",
    "nested in a tensor's hooks": REBUILD + opcodes([storage(), 0, (4,), (1,), False, SYSTEM]) + b"R",
    "nested in the arguments of a path": b"cpathlib\nPosixPath\n" + SYSTEM + b"\x85R",
    "nested in the state of a thing": b"c__main__\nThing\n)\x81" + SYSTEM + b"b",
    "GLOBAL alone": b"cos\nsystem\n",
    "GLOBAL with a dotted name": b"cos\npath.os.system\n",
    "GLOBAL through an admitted package": b"clhotse.utils\nos.system\n)R",
    "GLOBAL of an admitted module": call("collections", "namedtuple"),
    "GLOBAL of an admitted torch module": call("torch._utils", "_rebuild_xla_tensor"),
    "GLOBAL with an odd module": b"c os\nsystem\n",
    "GLOBAL without an end": b"cos\n" + b"a" * 300,
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + text("true") + b"\x85R",
    "STACK_GLOBAL of numbers": b"K\x01K\x02\x93",
    "STACK_GLOBAL of dotted names": text("icefall") + text("utils.os.system") + b"\x93",
    "INST": b"(" + text("touch it_ran") + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text("touch it_ran") + b"o",
    "OBJ of an admitted class": b"(ccollections\nOrderedDict\no",
    "NEWOBJ": b"cos\nsystem\n" + text("touch it_ran") + b"\x85\x81",
    "NEWOBJ of an OrderedDict": b"ccollections\nOrderedDict\n)\x81",
    "NEWOBJ of an object": b"c__main__\nThing\n)\x81)\x81",
    "NEWOBJ_EX": b"csubprocess\nPopen\n" + text("ls") + b"\x85}\x92",
    "BUILD on a class": b"c__main__\nThing\n}(" + text("__setstate__") + b"K\x01ub",
    "BUILD on a dictionary": b"}}b",
    "BUILD on a tensor": rebuilt() + b"}b",
    "BUILD with a call": ORDERED_DICT + SYSTEM + b"b",
    "BUILD twice": b"c__main__\nThing\n)\x81}b}b",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pos.system\n",
    "persistent id that is text": text("os.system") + b"Q",
    "persistent id that is a call": SYSTEM + b"Q",
    "items of a tensor": rebuilt() + b"K\x00K\x01s",
    "items of a list": b"]K\x00K\x01s",
    "append to a dictionary": b"}K\x00a",
    "append to a class": b"c__main__\nThing\nK\x00a",
    "class as a key": b"}c__main__\nThing\nK\x00s",
    "two equal keys": b"}(" + text("model") + b"K\x00" + text("model") + b"K\x01u",
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_code_ends_in_one_error_and_nothing_runs(
    write_torch: Callable[..., Path],
    nothing_runs: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_torch({"model": {"weight": np.ones(3, np.float32)}, "side": MALICIOUS[kind]}, {"0": FOUR["0"]})
    with nothing_runs(), pytest.raises(CheckpointError) as caught:
        read_torch(path, PACKAGES)
    assert "\n" not in str(caught.value) and "model.pt" in str(caught.value)
    assert not (tmp_path / "it_ran").exists()


def test_the_samples_are_live(nothing_runs: Callable[[], Any]) -> None:
    """Python's own unpickler imports and calls what a sample names, and the trip-wire notices."""
    loads, sample = pickle.loads, b"\x80\x02" + SYSTEM + b"."
    with pytest.raises(AssertionError, match="__import__"), nothing_runs():
        try:
            loads(sample)
        except RuntimeError:
            pass


def test_the_message_names_the_code(write_torch: Callable[..., Path]) -> None:
    assert "'os.system'" in message(write_torch({"side": SYSTEM}))
    assert "'torch.hub.load'" in message(write_torch({"side": call("torch.hub", "load")}))
    assert "INST" in message(write_torch({"side": MALICIOUS["INST"]}))
    assert "\\u202e" in message(write_torch({"side": b"cevil\xe2\x80\xae\nname\nN"}))


# Limits

NESTED = 200
LIMITS = {
    "deep lists": ("nested deeper", b"]" * NESTED + b"a" * (NESTED - 1)),
    "deep tuples": ("nested deeper", b")" + b"\x85" * 100_000),
    "deep tuples as a key": ("key", b"})" + b"\x85" * 100_000 + b"Ns"),
    "deep dictionaries": ("nested deeper", (b"}" + text("a")) * NESTED + b"N" + b"s" * NESTED),
    "deep marks": ("nested deeper", b"(" * 100_000),
    "deep through the memo": (
        "nested deeper",
        b"(]q\x00" + b"".join(b"]h" + bytes([i]) + b"aq" + bytes([i + 1]) for i in range(99)) + b"t",
    ),
    "deep records": ("nested deeper", b"c__main__\nThing\n)\x81" * 100 + b"N" + b"b" * 100),
    "a list in itself": ("nested deeper", b"]q\x00h\x00a"),
    "a list in itself, with company": ("nested deeper", b"]q\x00(]h\x00h\x00e"),
    "a long string": ("2097152", b"X" + struct.pack("<I", 2 << 20) + b"a" * (2 << 20)),
    "a string longer than the file": ("4294967295", b"X\xff\xff\xff\xff"),
    "long bytes": ("2097152", b"B" + struct.pack("<I", 2 << 20) + b"a" * (2 << 20)),
    "bytes longer than any file": ("18446744073709551615", b"\x96" + b"\xff" * 8),
    "a frame longer than any file": ("ends early", b"\x95" + b"\xff" * 8),
    "a long integer": ("255 bytes", b"\x8a\xff" + b"\x7f" * 255),
    "a longer integer": ("opcode", b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)),
    "an integer as text": ("opcode", b"I" + b"9" * 100_000 + b"\n"),
    "not UTF-8": ("UTF-8", b"X\x01\x00\x00\x00\xff"),
    "a surrogate": ("UTF-8", b"X\x03\x00\x00\x00\xed\xa0\x80"),
    "empty stack": ("opcode", b"0"),
    "pop below a mark": ("takes more", b"N(\x85"),
    "mark without values": ("not opened", b"t"),
    "key without value": ("without a value", b"}(Nu"),
    "unknown memo": ("not remembered", b"h\x63"),
    "two results": ("does not end", b"NN"),
    "no result": ("does not end", b""),
    "open mark": ("does not end", b"N("),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_bombs_and_broken_pickles(tmp_path: Path, nothing_runs: Callable[[], Any], kind: str) -> None:
    saying, opcodes = LIMITS[kind]
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + opcodes + b".")
    tracemalloc.start()
    try:
        with nothing_runs():
            assert saying in message(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_ten_doublings_that_name_a_billion_leaves_are_read_once(write_torch: Callable[..., Path]) -> None:
    """Shared values stay shared, and the walk over the result visits each one once."""
    doubled = (
        b"(]q\x00"
        + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40))
        + b"t"
    )
    started = time.perf_counter()
    got = read_torch(write_torch({"a": doubled}))
    assert time.perf_counter() - started < 5
    assert got["a"][-1][0] is got["a"][-1][1] is got["a"][-2]


@pytest.mark.parametrize(
    "name, unit, saying",
    [("OPCODE_LIMIT", b"N\x85", "opcodes"), ("MEMO_LIMIT", b"\x94", "remembered"), ("PICKLE_LIMIT", b"N", "bytes")],
)
def test_length_limits(
    write_torch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, unit: bytes, saying: str
) -> None:
    monkeypatch.setattr(pickles, name, 1000)
    value = {"a": b"N" + unit * 2000}
    assert saying in message(write_torch(value))


# Tensors

TENSORS = {
    "offset beyond": rebuilt(1),
    "far offset": rebuilt(2**62),
    "offset of an empty window": rebuilt(4, (1,), (1,)),
    "size beyond": rebuilt(0, (5,), (1,)),
    "stride beyond": rebuilt(0, (2,), (4,)),
    "far stride": rebuilt(0, (2,), (2**62,)),
    "product beyond 64 bits": rebuilt(0, (2**32, 2**32), (0, 0)),
    "swelling by stride 0": rebuilt(0, (1000, 4), (0, 1)),
    "empty but vast": rebuilt(0, (0, 2**62), (1, 1)),
    "negative offset": rebuilt(-1),
    "negative size": rebuilt(0, (-4,), (1,)),
    "negative sizes": rebuilt(0, (-2, -2), (1, 1)),
    "negative stride": rebuilt(3, (4,), (-1,)),
    "size beyond 63 bits": rebuilt(0, (2**64,), (1,)),
    "fewer strides": rebuilt(0, (2, 2), (1,)),
    "many axes": rebuilt(0, (1,) * 100, (1,) * 100),
    "true as a size": rebuilt(0, (True,), (1,)),
    "text as a size": rebuilt(0, (text("4"),), (1,)),
    "text as an offset": rebuilt(text("0")),
    "list as size": rebuilt(0, b"](K\x04e", (1,)),
    "nothing as storage": rebuilt(source=b"N"),
    "text as storage": rebuilt(source=text("0")),
    "tensor as storage": rebuilt(source=rebuilt()),
    "no arguments": REBUILD + b")R",
    "metadata": REBUILD + opcodes([*tensor(), b"}(" + text("conj") + b"\x88u"]) + b"R",
    "too many arguments": REBUILD + opcodes([*tensor(), b"N", b"N"]) + b"R",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n" + opcodes([b"N", True, ORDERED_DICT]) + b"R",
    "parameter of a record": b"ctorch._utils\n_rebuild_parameter\n"
    + opcodes([b"c__main__\nThing\n)\x81", True, ORDERED_DICT])
    + b"R",
    "another type": rebuilt(source=storage(b"ctorch\nDoubleStorage\n")),
    "two types": b"](" + storage() + storage(b"ctorch\nIntStorage\n") + b"e",
    "unknown type": storage(b"ctorch\nQInt8Storage\n"),
    "type of another module": storage(b"c__main__\nFloatStorage\n"),
    "type that was called": storage(b"ctorch\ndevice\n)R"),
    "text as type": storage(text("FloatStorage")),
    "more elements than stored": storage(size=b"K\x05"),
    "fewer elements than stored": storage(size=b"K\x03"),
    "negative elements": storage(size=b"J\xfc\xff\xff\xff"),
    "vast elements": storage(size=b"\x8a\x08" + b"\xff" * 7 + b"\x7f"),
    "true elements": storage(size=b"\x88"),
    "missing storage": storage(key=text("1")),
    "storage elsewhere": storage(key=text("../data.pkl")),
    "number as key": storage(key=b"K\x00"),
    "module instead of storage": storage(first=text("module")),
    "reference too short": b"(" + text("storage") + FLOAT + b"tQ",
    "empty reference": b")Q",
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_stay_inside_their_storage(
    write_torch: Callable[..., Path], nothing_runs: Callable[[], Any], kind: str
) -> None:
    path = write_torch({"model": {"weight": TENSORS[kind]}}, FOUR)
    with nothing_runs():
        message(path)


# Damage of every kind


def test_every_truncation_of_the_pickle(tmp_path: Path, write_torch: Callable[..., Path]) -> None:
    whole = write_torch({"model": {"a": np.ones((2, 3), np.float32)}, "b": [1, 2.5, ("x",)]}, name="whole.pt")
    with zipfile.ZipFile(whole) as archive:
        pickled, stored = archive.read("model/data.pkl"), archive.read("model/data/0")
    path = tmp_path / "model.pt"
    for length in range(len(pickled)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickled[:length])
            archive.writestr("model/data/0", stored)
        message(path)


def test_fuzzed_pickles_raise_nothing_else(
    tmp_path: Path, write_torch: Callable[..., Path], nothing_runs: Callable[[], Any]
) -> None:
    """Opcodes of a small checkpoint exchanged, repeated, dropped, spoilt or replaced by any other, 2,000 times."""
    whole = write_torch(
        {
            "model": {"a": np.ones((2, 3), np.float32), "b": rebuilt(source=storage(size=b"K\x06"))},
            "path": b"cpathlib\nPosixPath\n" + text("x") + b"\x85R",
            "thing": b"c__main__\nThing\n)\x81}(" + text("a") + b"K\x01ubq\x00",
            "n": [1, 2.5, ("x", b"h\x00"), None],
        },
        {},
        name="whole.pt",
    )
    with zipfile.ZipFile(whole) as archive:
        pickled, stored = archive.read("model/data.pkl"), archive.read("model/data/0")
    places = [place for _, _, place in pickletools.genops(pickled)] + [len(pickled)]
    pieces = [pickled[start:end] for start, end in zip(places, places[1:], strict=False)]
    single = [bytes([code]) for code in range(256)] + [b"cos\nsystem\n", ORDERED_DICT, REBUILD, storage(), b"h\x00"]
    rng = random.Random(20)
    path = tmp_path / "model.pt"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        mutant = list(pieces)
        for _ in range(rng.randint(1, 2)):
            place, other = rng.randrange(2, len(mutant)), rng.randrange(2, len(mutant))
            match rng.randrange(5):
                case 0:
                    mutant[place], mutant[other] = mutant[other], mutant[place]
                case 1:
                    mutant.insert(place, mutant[other])
                case 2:
                    del mutant[place]
                case 3:
                    mutant[place] = rng.choice(single)
                case 4:
                    spoilt = bytearray(mutant[place])
                    spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
                    mutant[place] = bytes(spoilt)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", b"".join(mutant))
            archive.writestr("model/data/0", stored)
        outcomes[outcome(path, nothing_runs)] += 1
    assert outcomes["read"] > 50 and outcomes["refused"] > 1000
