"""The shapes in annotations, `Float[Array, "B T D"]`, checked at every call of the modules of some rooms.

The library imports jaxtyping for type checkers only: where it runs, it needs no further package. In tests its modules
are imported with jaxtyping's names in place and with every function decorated, by jaxtyping's import hook and beartype.
"""

from __future__ import annotations

import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

ROOMS = ("jaxasr.features", "jaxasr.layers", "jaxasr.encoders", "jaxasr.heads", "jaxasr.search")


def install() -> None:
    """From now on modules of ROOMS are imported with their shapes checked; none may be imported already."""
    imported = [name for name in sys.modules if name.startswith(ROOMS)]
    if imported:
        raise RuntimeError(f"imported before their shapes could be checked: {', '.join(imported)}")
    sys.meta_path.insert(0, _Finder())


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, for which an int is a float, as it is in annotations."""
    from beartype import BeartypeConf, beartype
    from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

    with warnings.catch_warnings():  # about what the annotations of Flax' own classes are made of
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


class _Finder:
    """Finds what jaxtyping's hook finds; its modules begin with the names that their annotations use."""

    def __init__(self) -> None:
        self._hook: Any = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(ROOMS):
            return None
        if self._hook is None:
            self._hook = _jaxtyping_hook()
        spec = self._hook.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def with_names(module: ModuleType) -> None:
            vars(module).update(_names())
            execute(module)

        spec.loader.exec_module = with_names
        return spec


def _jaxtyping_hook() -> Any:
    """jaxtyping's finder, made when it is first needed: with it comes JAX."""
    import jax
    import jaxtyping
    import numpy as np

    import jaxasr.arrays

    jaxasr.arrays.Count = TypeVar("Count", int, jax.Array, np.ndarray)  # type: ignore[misc, assignment]
    manager = jaxtyping.install_import_hook(ROOMS, "shape_checks.check")
    manager.uninstall()
    return manager.hook


def _names() -> dict[str, Any]:
    """What annotations name. Tests may hand in arrays of numpy, which JAX takes like its own."""
    import jax
    import numpy as np
    from jaxtyping import Bool, Float, Int, Shaped, UInt32

    return {
        "Array": jax.Array | np.ndarray,
        "Bool": Bool,
        "Float": Float,
        "Int": Int,
        "Shaped": Shaped,
        "UInt32": UInt32,
    }
