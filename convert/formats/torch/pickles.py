"""PyTorch checkpoints (`torch.save`) read without PyTorch, executing nothing that they hold.

The pickle inside the archive is run by an interpreter of our own that knows containers, scalars and tensors. No class
is ever imported by name: OrderedDict and two rebuild functions of torch stand for functions of ours, and whatever else
a training checkpoint keeps beside its weights becomes an inert `Record`. What can only be there to run code ends the
reading: a name of Python's standard library, a call of anything that is not listed here, an opcode that torch.save
does not write in the pickle's protocol. (torch's own restricted loader failed twice, CVE-2025-32434 and CVE-2026-24747;
lists of forbidden names keep failing.)
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import os
import re
import struct
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxasr.convert.formats.mapped import Part, map_whole, regular_file
from jaxasr.convert.formats.torch.archives import Member, contents, damaged, open_torch_zip, refused, shown
from jaxasr.convert.formats.torch.tensors import Storage, locate_storage, rebuild_parameter, rebuild_tensor
from jaxasr.errors import CheckpointError, printable

PICKLE_LIMIT = 16 << 20  # bytes; 600 tensors and their optimizer take 0.2 MB
OPCODE_LIMIT = 2_000_000  # about 50 a tensor
MEMO_LIMIT = 1_000_000  # remembered values
DEPTH_LIMIT = 64  # containers inside containers; open marks
STRING_LIMIT = 1 << 20  # bytes of one string
NAME_LIMIT = 256  # bytes of a module's or class's name
INTEGER_LIMIT = 9  # bytes: 64 bits of either sign; many longer ones could share one hash and stall a dictionary
NUMBER_LIMIT = 32  # characters of a number in protocols 0 and 1

# Constructors found beside the weights in training checkpoints. They are recorded, never called.
INERT_CALLS = set(
    """
    pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
    argparse.Namespace collections.Counter collections.defaultdict collections.deque
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
    decimal.Decimal fractions.Fraction uuid.UUID types.SimpleNamespace
    builtins.bool builtins.bytearray builtins.bytes builtins.complex builtins.dict builtins.float builtins.frozenset
    builtins.int builtins.list builtins.object builtins.set builtins.str builtins.tuple
    builtins.range builtins.slice builtins.Ellipsis builtins.NotImplemented
    __builtin__.bool __builtin__.bytearray __builtin__.bytes __builtin__.complex __builtin__.dict __builtin__.float
    __builtin__.frozenset __builtin__.int __builtin__.list __builtin__.long __builtin__.object __builtin__.set
    __builtin__.str __builtin__.tuple __builtin__.unicode __builtin__.xrange __builtin__.range __builtin__.slice
    __builtin__.Ellipsis __builtin__.NotImplemented _codecs.encode
    torch.Size torch.device torch.torch_version.TorchVersion numpy.dtype numpy.ndarray
    numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy.core.numeric._frombuffer
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy._core.numeric._frombuffer
    """.split()
)
# What makes objects of classes in protocols 0 and 1, as NEWOBJ does later.
RECONSTRUCTORS = {"copyreg._reconstructor", "copy_reg._reconstructor"}
# How these protocols spell text and numbers, and protocol 0 a tensor's storage.
UNESCAPED = codecs.getdecoder("raw-unicode-escape")  # found now, so that reading a file imports nothing
INTEGER = rb"-?[0-9]{1,20}L?"
FLOAT = rb"-?(nan|inf|[0-9]+(\.[0-9]*)?(e[-+]?[0-9]{1,4})?)"
STORAGE = re.compile(
    r"\('storage', <class 'torch\.(?P<kind>\w+)'>, '(?P<key>[^'\\]*)', '[^'\\]*', (?P<length>[0-9]{1,18})\)"
)
# Python 2's names occur in protocol 2.
STANDARD_LIBRARY = sys.stdlib_module_names | {"__builtin__", "commands", "copy_reg"}


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A class or function that the pickle names; neither imported nor called, and never a weight.

    `arguments` is None for the bare name, else what the object was to be made from; `state` what was to fill it.
    The items of an object that is a container as well (Counter, other subclasses of dict) are dropped.
    """

    module: str
    name: str
    arguments: tuple[Any, ...] | None = None
    state: Any = None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def read_torch(path: str | Path, inert_packages: Collection[str] = (), notes: list[str] | None = None) -> object:
    """What torch.save wrote: dicts, lists, tuples, scalars, numpy arrays for tensors, `Record`s for everything else.

    Arrays are read-only views of the mapped file (bfloat16 through ml_dtypes), read when they are used; tensors that
    shared a storage share memory. `inert_packages`: whose functions become Records too where the pickle calls them, as
    a publisher's training program stores its own objects. `notes`: gets a line where the file cannot be checked for
    damage. CheckpointError, one line, for a file that is of another kind, damaged or names code.
    """
    with regular_file(Path(path)) as file:
        return read_open_torch(file, 0, os.fstat(file.fileno()).st_size, str(path), inert_packages, notes)


def read_open_torch(
    file: BinaryIO,
    start: int,
    size: int,
    name: str,
    inert_packages: Collection[str] = (),
    notes: list[str] | None = None,
) -> object:
    """`read_torch` of a checkpoint that takes `size` bytes of an open file from byte `start` on.

    The file may be closed afterwards, and need have no name of its own: `name` stands in messages.
    """
    try:
        archive = open_torch_zip(Part(file, start, size), size)
        pickled = contents(Part(file, start, size), archive.members["data.pkl"], PICKLE_LIMIT)
        mapped = memoryview(map_whole(file))[start : start + size]
        value = _Interpreter(pickled, archive.members, mapped, frozenset(inert_packages)).run()
    except CheckpointError as fault:
        message = str(fault)
        raise CheckpointError(message if message.startswith(printable(f"{name}: ")) else f"{name}: {message}") from None
    if notes is not None and not archive.checked:
        base = os.path.basename(name)
        notes.append(f"{base} was saved without checksums: damage to its weights would go unnoticed")
    return value


class _Interpreter:
    """A stack machine for the opcodes that torch.save writes (pickle protocols 0 to 5)."""

    def __init__(
        self, pickled: bytes, members: dict[str, Member], mapped: memoryview, inert_packages: frozenset[str]
    ) -> None:
        self.pickled, self.members, self.mapped, self.inert_packages = pickled, members, mapped, inert_packages
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        # Protocols 0 and 1 begin without a header, with a container or the class of one.
        self.early = pickled[:1] in (b"(", b"}", b"]", b"c")

    def run(self) -> object:
        if not self.early and (self.take(1) != b"\x80" or self.unsigned(1) not in (2, 3, 4, 5)):
            raise damaged("data.pkl is not a pickle of protocol 0 to 5")
        opcodes = _EARLY_OPCODES if self.early else _OPCODES
        for _ in range(OPCODE_LIMIT):
            opcode = self.take(1)[0]
            if opcode == ord("."):  # STOP
                return self.result()
            if opcode not in opcodes:
                name = _FOREIGN_OPCODES.get(opcode, f"{opcode:#04x}")
                raise refused(f"pickle opcode {name} at byte {self.position - 1}, which torch.save does not write")
            opcodes[opcode](self)
        raise refused(f"a pickle of more than {OPCODE_LIMIT:,} opcodes")

    def result(self) -> object:
        if len(self.stack) != 1 or self.marks or self.position != len(self.pickled):
            raise damaged("data.pkl does not end where it should")
        _check_depth(self.stack[0], 1, {})
        return self.stack[0]

    # Bytes

    def take(self, size: int) -> bytes:
        taken = self.pickled[self.position : self.position + size]
        if len(taken) != size:
            raise damaged("data.pkl ends early")
        self.position += size
        return taken

    def take_at_most(self, limit: int, size: int) -> bytes:
        if size > limit:
            raise refused(f"a value of {size} bytes in data.pkl")
        return self.take(size)

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def signed(self, size: int) -> int:
        return int.from_bytes(self.take_at_most(INTEGER_LIMIT, size), "little", signed=True)

    def text(self, size: int) -> str:
        try:
            return self.take_at_most(STRING_LIMIT, size).decode("utf-8")
        except UnicodeDecodeError:
            raise damaged("data.pkl holds a string that is not UTF-8") from None

    def line(self, limit: int = NAME_LIMIT) -> bytes:
        end = self.pickled.find(b"\n", self.position, self.position + limit + 1)
        if end < 0:
            raise damaged("data.pkl holds a name, number or text without an end")
        line = self.take(end - self.position)
        self.position = end + 1
        return line

    def name_line(self) -> str:
        try:
            return self.line().decode("utf-8")
        except UnicodeDecodeError:
            raise damaged("data.pkl holds a string that is not UTF-8") from None

    def number_line(self, pattern: bytes) -> bytes:
        """A line of protocols 0 and 1 that must be a number by `pattern`."""
        line = self.line(NUMBER_LIMIT)
        if not re.fullmatch(pattern, line):
            raise damaged("data.pkl holds something else where a number belongs")
        return line

    def integer_line(self) -> int:
        value = int(self.number_line(INTEGER).removesuffix(b"L"))
        if not -(1 << 63) <= value < 1 << 64:
            raise refused("an integer of more than 64 bits in data.pkl")
        return value

    def integer_or_switch(self) -> int | bool:
        """INT: protocols 0 and 1 write True as 01 and False as 00."""
        switch = {b"01\n": True, b"00\n": False}.get(self.pickled[self.position : self.position + 3])
        value = self.integer_line()
        return value if switch is None else switch

    def text_line(self) -> str:
        """UNICODE: Latin-1, and \\uXXXX for the rest, line breaks and backslashes."""
        line = self.line(STRING_LIMIT)
        try:
            text, _ = UNESCAPED(line)
            text.encode("utf-8")
        except UnicodeError:
            raise damaged("data.pkl holds a string that is no text") from None
        return text

    def frame(self) -> None:
        if self.unsigned(8) > len(self.pickled) - self.position:
            raise damaged("data.pkl ends early")

    # Stack and memo

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise damaged("data.pkl takes more than it has put down")
        return self.stack.pop()

    def last(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def top(self) -> Any:
        self.push(value := self.pop())
        return value

    def mark(self) -> None:
        if len(self.marks) >= DEPTH_LIMIT:
            raise refused(f"values nested deeper than {DEPTH_LIMIT} in data.pkl")
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise damaged("data.pkl closes what it has not opened")
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def remember(self, index: int) -> None:
        if len(self.memo) >= MEMO_LIMIT:
            raise refused(f"more than {MEMO_LIMIT:,} remembered values in data.pkl")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise damaged("data.pkl recalls what it has not remembered")
        self.push(self.memo[index])

    # Containers

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not _is_object(target):
            raise refused("data.pkl appends to something that is not a list")

    def assign(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) and not _is_object(target):
            raise refused("data.pkl sets items of something that is not a dictionary")
        if len(values) % 2:
            raise damaged("data.pkl holds a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Only keys that hash without recursion: nested tuples overflow the C stack.
            if not all(isinstance(part, str | int | float | bytes | None) for part in _elements(key)):
                raise refused("a dictionary key in data.pkl that is neither text nor number")
            if isinstance(target, dict):
                if key in target:
                    raise refused(f"two entries under the key {shown(str(key))} of one dictionary in data.pkl")
                target[key] = value

    def dictionary(self, values: list[Any]) -> None:
        self.push({})
        self.assign(values)

    # Classes, calls, tensors

    def name(self, module: Any, name: Any) -> None:
        """GLOBAL, STACK_GLOBAL: a name is kept as text; the standard library can only mean code and is refused."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise refused("data.pkl names a class by something that is not text")
        record = Record(module, name)
        if not re.fullmatch(r"[A-Za-z_][\w.]*", module) or not re.fullmatch(r"\w+", name):
            raise refused(f"it names {shown(str(record))}, which is not a plain class name")
        known = INERT_CALLS | _CALLS.keys() | (RECONSTRUCTORS if self.early else set())
        if module.partition(".")[0] in STANDARD_LIBRARY and str(record) not in known:
            raise refused(f"it names {shown(str(record))}, which no weights need")
        self.push(record)

    def call(self, function: Any, arguments: Any) -> None:
        """REDUCE: done by a function of ours, kept as a record, or refused."""
        if not _is_name(function) or not isinstance(arguments, tuple):
            raise refused("data.pkl calls something that is not a function")
        if str(function) in _CALLS:
            self.push(_CALLS[str(function)](self, arguments))
        elif self.early and str(function) in RECONSTRUCTORS:
            self.push(_reconstructed(arguments))
        elif str(function) in INERT_CALLS or function.module.partition(".")[0] in self.inert_packages:
            self.push(dataclasses.replace(function, arguments=arguments))
        else:
            raise refused(f"it asks to call {shown(str(function))}")

    def make(self, kind: Any, arguments: Any, *named: Any) -> None:
        """NEWOBJ, NEWOBJ_EX: an object of a class, from positional (and named) arguments; always a record."""
        if not _is_name(kind) or str(kind) in _CALLS or not isinstance(arguments, tuple):
            raise refused("data.pkl makes an object of something that is not a class")
        self.push(dataclasses.replace(kind, arguments=(*arguments, *named)))

    def build(self, state: Any) -> None:
        """BUILD: an object's attributes. Those of a state dict (`_metadata`: version numbers) are dropped."""
        target = self.top()
        if _is_object(target) and target.state is None:
            object.__setattr__(target, "state", state)  # in place, since the memo may hold this very object
        elif not isinstance(target, collections.OrderedDict) or not isinstance(state, dict):
            raise refused("data.pkl sets attributes of something that is not a plain object")

    def storage(self, reference: Any) -> None:
        """BINPERSID: ("storage", type, key, device, number of elements)."""
        match reference:
            case ("storage", Record(module="torch", name=kind, arguments=None), str(key), str(), int(length)):
                storage = locate_storage(kind, key, length, self.members)
            case _:
                raise refused("data.pkl refers to something outside that is not a tensor's storage")
        if self.storages.setdefault(key, storage) != storage:
            raise refused(f"the storage {shown(key)} has two types in data.pkl")
        self.push(storage)

    def storage_line(self) -> None:
        """PERSID: protocol 0 writes the same five values as Python prints them."""
        match = STORAGE.fullmatch(self.name_line())
        if match is None:
            raise refused("data.pkl refers to something outside that is not a tensor's storage")
        self.storage(("storage", Record("torch", match["kind"]), match["key"], "", int(match["length"])))

    def ordered_dict(self, arguments: tuple[Any, ...]) -> collections.OrderedDict[Any, Any]:
        if arguments:
            raise refused("an OrderedDict in data.pkl with unexpected arguments")
        return collections.OrderedDict()

    def tensor(self, arguments: tuple[Any, ...]) -> np.ndarray:
        return rebuild_tensor(self.mapped, arguments)

    def parameter(self, arguments: tuple[Any, ...]) -> np.ndarray:
        return rebuild_parameter(arguments)


_CALLS: dict[str, Callable[[_Interpreter, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _Interpreter.ordered_dict,
    "torch._utils._rebuild_tensor_v2": _Interpreter.tensor,
    "torch._utils._rebuild_parameter": _Interpreter.parameter,
}

_OPCODES: dict[int, Callable[[_Interpreter], None]] = {
    ord("N"): lambda machine: machine.push(None),  # NONE
    0x88: lambda machine: machine.push(True),  # NEWTRUE
    0x89: lambda machine: machine.push(False),  # NEWFALSE
    ord("K"): lambda machine: machine.push(machine.unsigned(1)),  # BININT1
    ord("M"): lambda machine: machine.push(machine.unsigned(2)),  # BININT2
    ord("J"): lambda machine: machine.push(machine.signed(4)),  # BININT
    0x8A: lambda machine: machine.push(machine.signed(machine.unsigned(1))),  # LONG1
    ord("G"): lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),  # BINFLOAT
    ord("X"): lambda machine: machine.push(machine.text(machine.unsigned(4))),  # BINUNICODE
    0x8C: lambda machine: machine.push(machine.text(machine.unsigned(1))),  # SHORT_BINUNICODE
    ord("B"): lambda machine: machine.push(machine.take_at_most(STRING_LIMIT, machine.unsigned(4))),  # BINBYTES
    ord("C"): lambda machine: machine.push(machine.take(machine.unsigned(1))),  # SHORT_BINBYTES
    0x96: lambda machine: machine.push(machine.take_at_most(STRING_LIMIT, machine.unsigned(8))),  # BYTEARRAY8
    ord("}"): lambda machine: machine.push({}),  # EMPTY_DICT
    ord("]"): lambda machine: machine.push([]),  # EMPTY_LIST
    ord(")"): lambda machine: machine.push(()),  # EMPTY_TUPLE
    0x8F: lambda machine: machine.push(Record("builtins", "set", ())),  # EMPTY_SET
    0x90: lambda machine: machine.extend(machine.since_mark()),  # ADDITEMS
    0x91: lambda machine: machine.push(Record("builtins", "frozenset", (machine.since_mark(),))),  # FROZENSET
    ord("("): lambda machine: machine.mark(),  # MARK
    ord("t"): lambda machine: machine.push(tuple(machine.since_mark())),  # TUPLE
    0x85: lambda machine: machine.push(tuple(machine.last(1))),  # TUPLE1
    0x86: lambda machine: machine.push(tuple(machine.last(2))),  # TUPLE2
    0x87: lambda machine: machine.push(tuple(machine.last(3))),  # TUPLE3
    ord("a"): lambda machine: machine.extend(machine.last(1)),  # APPEND
    ord("e"): lambda machine: machine.extend(machine.since_mark()),  # APPENDS
    ord("s"): lambda machine: machine.assign(machine.last(2)),  # SETITEM
    ord("u"): lambda machine: machine.assign(machine.since_mark()),  # SETITEMS
    ord("q"): lambda machine: machine.remember(machine.unsigned(1)),  # BINPUT
    ord("r"): lambda machine: machine.remember(machine.unsigned(4)),  # LONG_BINPUT
    0x94: lambda machine: machine.remember(len(machine.memo)),  # MEMOIZE
    ord("h"): lambda machine: machine.recall(machine.unsigned(1)),  # BINGET
    ord("j"): lambda machine: machine.recall(machine.unsigned(4)),  # LONG_BINGET
    ord("c"): lambda machine: machine.name(machine.name_line(), machine.name_line()),  # GLOBAL
    0x93: lambda machine: machine.name(*machine.last(2)),  # STACK_GLOBAL
    ord("R"): lambda machine: machine.call(*machine.last(2)),  # REDUCE
    0x81: lambda machine: machine.make(*machine.last(2)),  # NEWOBJ
    0x92: lambda machine: machine.make(*machine.last(3)),  # NEWOBJ_EX
    ord("b"): lambda machine: machine.build(machine.pop()),  # BUILD
    ord("Q"): lambda machine: machine.storage(machine.pop()),  # BINPERSID
    0x95: lambda machine: machine.frame(),  # FRAME
}
# Of protocols 0 and 1: those above that Python writes there, and the ones that spell values as lines of text.
_EARLY_OPCODES: dict[int, Callable[[_Interpreter], None]] = {
    **{code: run for code, run in _OPCODES.items() if code < 0x80 and chr(code) not in "BC"},
    ord("I"): lambda machine: machine.push(machine.integer_or_switch()),  # INT
    ord("L"): lambda machine: machine.push(machine.integer_line()),  # LONG
    ord("F"): lambda machine: machine.push(float(machine.number_line(FLOAT))),  # FLOAT
    ord("V"): lambda machine: machine.push(machine.text_line()),  # UNICODE
    ord("d"): lambda machine: machine.dictionary(machine.since_mark()),  # DICT
    ord("l"): lambda machine: machine.push(machine.since_mark()),  # LIST
    ord("p"): lambda machine: machine.remember(machine.integer_line()),  # PUT
    ord("g"): lambda machine: machine.recall(machine.integer_line()),  # GET
    ord("P"): lambda machine: machine.storage_line(),  # PERSID
}
_FOREIGN_OPCODES = {ord("i"): "INST", ord("o"): "OBJ", ord("P"): "PERSID", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4"}


def _reconstructed(arguments: tuple[Any, ...]) -> Record:
    """The object of a class, from (class, the builtin type that it extends, the value of that)."""
    match arguments:
        case (Record(arguments=None) as kind, Record(arguments=None) as base, value):
            if str(kind) not in _CALLS and str(base) in INERT_CALLS:
                return dataclasses.replace(kind, arguments=() if value is None else (value,))
    raise refused("data.pkl makes an object of something that is not a class")


def _is_name(value: Any) -> bool:
    return isinstance(value, Record) and value.arguments is None


def _is_object(value: Any) -> bool:
    return isinstance(value, Record) and value.arguments is not None


def _elements(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _check_depth(value: object, depth: int, heights: dict[int, int]) -> int:
    """Levels of containers in `value`, itself `depth` levels deep; above DEPTH_LIMIT in all, or in a loop, refused."""
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, Record):
        parts = [value.arguments, value.state]
    else:
        return 0
    height = heights.get(id(value), 0)
    if depth + height > DEPTH_LIMIT:
        raise refused(f"values nested deeper than {DEPTH_LIMIT} in data.pkl")
    if not height:
        height = 1 + max((_check_depth(part, depth + 1, heights) for part in parts), default=0)
        heights[id(value)] = height
    return height
