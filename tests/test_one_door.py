"""Every product with a weight goes through jaxasr/layers/products.py: no other file of the network's rooms has one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "jaxasr"
DOOR = "jaxasr.layers.products"
ROOMS = ("layers", "encoders", "heads", "search")
# Functions of JAX, by the last part of their names. Those that begin with "conv" are convolutions but for the
# conversions of types.
PRODUCT = re.compile(
    r"(ragged_|scaled_|block_scaled_)?(dot|matmul)(_\w+)?|einsum|einsum_path|tensordot|inner|outer|vdot|vecdot"
    r"|matvec|vecmat|kron|multi_dot|conv(?!ert).*"
)
# Modules of Flax that multiply with weights of their own.
MODULE = re.compile(r"(Lora)?(Linear|Conv|Embed|Einsum|Dense|MultiHead|LSTM|GRU|SimpleCell|OptimizedLSTM|LoRA).*")
# Functions that read rows of an array by their numbers.
GATHER = re.compile(r"take(_along_axis)?|gather|choose|dynamic_index_in_dim|dynamic_slice(_in_dim)?")
# Parameters that the library keeps for products, as jaxasr.devices.Policy knows them.
WEIGHTS = ("kernel", "embedding")


def faults(source: str) -> list[str]:
    """What in a module's source does the door's work, "line: what" for each place."""
    tree = ast.parse(source)
    names = _imported(tree)
    parameters = _parameters(tree, names)
    found = list(_products(tree, names))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        found += _gathers(function, names, parameters)
    found += _weights_read(tree, names)
    return [f"{line}: {what}" for line, what in sorted(set(found))]


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local names of modules and of what comes from them: {"jnp": "jax.numpy"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                names[each.asname or each.name.split(".")[0]] = each.name if each.asname else each.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                names[each.asname or each.name] = f"{node.module}.{each.name}"
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of a chain of attributes that begins with an import, else ""."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        parent = _dotted(node.value, names)
        return f"{parent}.{node.attr}" if parent else ""
    return ""


def _products(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            yield node.lineno, "@"
        elif isinstance(node, ast.Name | ast.Attribute):
            module, _, last = _dotted(node, names).rpartition(".")
            jax = module.partition(".")[0] in ("jax", "numpy") and PRODUCT.fullmatch(last)
            flax = module.partition(".")[0] == "flax" and MODULE.fullmatch(last)
            method = not module and isinstance(node, ast.Attribute) and node.attr in ("dot", "matmul")
            if jax or flax or method:
                yield node.lineno, last or str(getattr(node, "attr", ""))


def _parameters(tree: ast.AST, names: dict[str, str]) -> set[str]:
    """Attributes of the module's classes to which an nnx.Param is assigned."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            made = any(isinstance(each, ast.Call) and _is_param(each, names) for each in ast.walk(node.value))
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.attr for target in targets if made and isinstance(target, ast.Attribute)}
    return found


def _is_param(call: ast.Call, names: dict[str, str]) -> bool:
    return _dotted(call.func, names) == "flax.nnx.Param"


def _gathers(function: ast.FunctionDef, names: dict[str, str], parameters: set[str]) -> Iterator[tuple[int, str]]:
    """Rows read from a parameter, or from a local name that stands for one, by numbers that are not constants."""
    tables: set[str] = set()

    def is_table(node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in tables
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astype":
            return is_table(node.func.value)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value is ...:
            return is_table(node.value)
        return isinstance(node, ast.Attribute) and node.attr in parameters

    assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    for _ in assigned:  # as often as one name may stand for another
        for node in assigned:
            if is_table(node.value):
                tables |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and is_table(node.value) and not _constant(node.slice):
            yield node.lineno, "gather"
        elif isinstance(node, ast.Call):
            last = node.func.attr if isinstance(node.func, ast.Attribute) else _dotted(node.func, names).split(".")[-1]
            owner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            if GATHER.fullmatch(last) and any(is_table(each) for each in (*owner, *node.args)):
                yield node.lineno, "gather"


def _constant(index: ast.expr) -> bool:
    """Whether an index is made of numbers, slices of numbers, None and `...` only."""
    allowed = ast.Constant | ast.Slice | ast.Tuple | ast.UnaryOp | ast.USub | ast.Load
    return all(isinstance(node, allowed) for node in ast.walk(index))


def _weights_read(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Kernels and embeddings may be handed to the door as they are stored, and read in no other way."""
    handed = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _dotted(node.func, names).startswith(f"{DOOR}.")
        for argument in node.args
    }
    for node in ast.walk(tree):
        reads = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
        weight = reads and isinstance(node.value, ast.Attribute) and node.value.attr in WEIGHTS
        if weight and id(node) not in handed:
            yield node.lineno, f"{node.value.attr} read outside a call of the door"


def test_there_is_one_door() -> None:
    files = [file for room in ROOMS for file in sorted((LIBRARY / room).rglob("*.py"))]
    assert {file.parent.name for file in files} >= set(ROOMS)
    door = LIBRARY / "layers" / "products.py"
    found = {str(file.relative_to(LIBRARY)): faults(file.read_text("utf-8")) for file in files if file != door}
    assert {file: each for file, each in found.items() if each} == {}
    assert len(faults(door.read_text("utf-8"))) >= 4, "the door's own products are no longer found"


MODULE_WITH = """
from __future__ import annotations
import jax
import jax.numpy as jnp
import numpy
from flax import nnx
from jax import lax
from jax.numpy import einsum as contract
from jaxasr.layers.products import embed, linear_product

class Toy(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jnp.zeros((2, 3)))
        self.table = nnx.Param(jnp.zeros((5, 3)))
        self.bias = nnx.Param(jnp.zeros(3)) if rngs else None
        self.inner = None

    def __call__(self, x, ids):
        {line}
"""


@pytest.mark.parametrize(
    "line",
    [
        "return x @ self.table[...]",
        "x @= ids",
        "return jnp.dot(x, x)",
        "return x.dot(x)",
        "return jax.numpy.matmul(x, x)",
        "return lax.dot_general(x, x, ids)",
        "return jax.lax.conv_general_dilated(x, x, (1,), 'SAME')",
        "return jnp.convolve(x, x)",
        "return numpy.tensordot(x, x)",
        "return contract('ij,jk', x, x)",
        "return jax.vmap(jnp.inner)(x, x)",
        "return jnp.vdot(x, x)",
        "return jnp.linalg.multi_dot([x, x])",
        "return jax.nn.dot_product_attention(x, x, x)",
        "return nnx.Linear(2, 3, rngs=ids)(x)",
        "return nnx.Conv(2, 3, 3, rngs=ids)(x)",
        "return nnx.Embed(2, 3, rngs=ids)(x)",
        "return self.table[ids]",
        "return self.table[...][ids]",
        "return self.table[...].astype(x.dtype)[ids]",
        "table = self.table[...]; other = table; return other[ids, :2]",
        "return jnp.take(self.table[...], ids, axis=0)",
        "return self.table[...].take(ids, axis=0)",
        "return x * self.kernel[...]",
        "return linear_product(x, self.kernel[...].T)",
        "kernel = self.kernel[...]; return linear_product(x, kernel)",
    ],
)
def test_a_second_door_is_found(line: str) -> None:
    assert len(faults(MODULE_WITH.format(line=line))) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "return linear_product(x, self.kernel[...], self.bias[...])",
        "return embed(self.table[...], ids)",
        "return x[ids] + self.bias[...]",
        "return self.table[...][0, None, :2] * x",
        "return self.inner(x)",
        "return lax.convert_element_type(x, jnp.float32) * self.bias[...]",
        "self.kernel[...] = x",
    ],
)
def test_what_is_no_product_with_a_weight_passes(line: str) -> None:
    assert faults(MODULE_WITH.format(line=line)) == []
