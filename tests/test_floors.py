"""CONTRIBUTING's floors hold: a room imports from floors below its own, or from its own floor without a circle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from conftest import REPOSITORY
from sources import imports, modules

Floors = Mapping[str, int]  # a room, as the table names it ("layers/", "store.py"), to its floor
# (importing module, line, imported module)
Arrow = tuple[str, int, str]


def read_floors(page: str) -> dict[str, int]:
    """The table of floors in CONTRIBUTING.md."""
    floors: dict[str, int] = {}
    for floor, rooms in re.findall(r"^\| (\d) \| ([^|]+) \|", page, re.MULTILINE):
        for room in re.findall(r"`([^`]+)`", rooms):
            assert room not in floors, f"{room} stands on two floors"
            floors[room] = int(floor)
    return floors


def room_of(module: str) -> str:
    """The room of a module: the first part of its name below jaxasr, a folder or a file."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__.py"
    return f"{parts[1]}/" if len(parts) > 2 or parts[1] in _FOLDERS else f"{parts[1]}.py"


_FOLDERS = {name.split(".")[1] for name, path in modules().items() if path.name == "__init__.py" and "." in name}


def read_arrows(sources: Mapping[str, tuple[str, bool]]) -> list[Arrow]:
    """The imports between modules of the library; `sources`: a module's text and whether it is an __init__.py.

    The version is a constant that every module may read; all other names of `jaxasr` itself are the public face.
    """
    arrows = []
    for module, (text, package) in sources.items():
        for line, home, name in imports(text, module, package):
            if home.split(".")[0] != "jaxasr" or (home, name) == ("jaxasr", "__version__"):
                continue
            submodule = f"{home}.{name}"
            arrows.append((module, line, submodule if submodule in sources else home))
    return arrows


def faults(floors: Floors, arrows: Iterable[Arrow]) -> list[str]:
    """What breaks the rule: rooms that are in no row, imports from above, circles between rooms and between modules."""
    found = []
    rooms: dict[str, set[str]] = {}
    inner: dict[str, set[str]] = {}
    for module, line, imported in arrows:
        here, there = room_of(module), room_of(imported)
        where = f"{module}:{line} imports {imported}"
        missing = [room for room in (here, there) if room not in floors]
        if missing:
            found.append(f"{where}: {missing[0]} stands on no floor")
        elif floors[there] > floors[here]:
            found.append(f"{where}, from floor {floors[there]} to floor {floors[here]}")
        if here != there:
            rooms.setdefault(here, set()).add(there)
        inner.setdefault(module, set()).add(imported)
    for graph in (rooms, inner):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found.append("a circle: " + " imports ".join(reversed(error.args[1])))
    return found


FLOORS = read_floors((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
SOURCES = {module: (path.read_text(encoding="utf-8"), path.name == "__init__.py") for module, path in modules().items()}


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(module) for module in SOURCES} <= FLOORS.keys()
    assert sorted(set(FLOORS.values())) == list(range(10))


def test_rooms_import_from_below() -> None:
    arrows = read_arrows(SOURCES)
    assert len(arrows) > 150
    assert faults(FLOORS, arrows) == []


def test_wings_of_convert_stand_side_by_side() -> None:
    """A wing is a publisher's folder; no wing imports another, and what all of them use imports none."""
    packages = {module for module, (_, package) in SOURCES.items() if package}
    inner = {module.split(".")[2] for module in packages if module.startswith("jaxasr.convert.")}
    wings = inner - {"formats", "hub"}
    assert {"icefall", "nemo", "funasr", "hugging_face"} <= wings

    def place(module: str) -> str:
        """The folder or file of convert/ that a module is in; "" elsewhere, and for convert/__init__.py."""
        return module.removeprefix("jaxasr.convert.").split(".")[0] if module.startswith("jaxasr.convert.") else ""

    low = {"formats", "mapping", "protocol"}
    arrows = [(place(module), line, place(imported)) for module, line, imported in read_arrows(SOURCES)]
    assert low <= {here for here, _, _ in arrows}
    assert [each for each in arrows if each[0] in wings | low and each[2] in wings - {each[0]}] == []


# A small house that keeps the rule, for the tests of the rule.
HOUSE = {
    "jaxasr": "import importlib",
    "jaxasr.errors": "import json",
    "jaxasr.layers": "",
    "jaxasr.layers.linear": "from jaxasr.layers.products import product\nfrom .products import embed",
    "jaxasr.layers.products": "from jaxasr import __version__\nimport jax",
    "jaxasr.batching": "from jaxasr.errors import JaxasrError",
    "jaxasr.recognizer": "def f():\n  from jaxasr import batching\n  from jaxasr.layers import linear",
    "jaxasr.loading": "from jaxasr.recognizer import Recognizer",
    "jaxasr.cli": "from jaxasr.cli import info\nimport jaxasr",
    "jaxasr.cli.info": "if TYPE_CHECKING:\n  from jaxasr.errors import JaxasrError",
}
HOUSE_FLOORS = {
    "errors.py": 0,
    "layers/": 2,
    "batching.py": 6,
    "recognizer.py": 6,
    "loading.py": 8,
    "cli/": 9,
    "__init__.py": 9,
}


def house_faults(**changed: str) -> list[str]:
    texts = HOUSE | {f"jaxasr.{name.replace('__', '.')}": text for name, text in changed.items()}
    packages = {name for name in texts if any(other.startswith(f"{name}.") for other in texts)}
    return faults(HOUSE_FLOORS, read_arrows({name: (text, name in packages) for name, text in texts.items()}))


def test_a_house_that_keeps_the_rule() -> None:
    assert house_faults() == []


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("layers__linear", "from jaxasr.loading import f", "linear:1 imports jaxasr.loading, from floor 8 to floor 2"),
        ("layers__linear", "from jaxasr import loading", "linear:1 imports jaxasr.loading, from floor 8 to floor 2"),
        ("layers__linear", "import jaxasr.loading as m", "linear:1 imports jaxasr.loading, from floor 8 to floor 2"),
        ("layers__linear", "from ..loading import f", "linear:1 imports jaxasr.loading, from floor 8 to floor 2"),
        ("layers", "from ..loading import f", "layers:1 imports jaxasr.loading, from floor 8 to floor 2"),
        ("layers", "from .. import loading", "layers:1 imports jaxasr.loading, from floor 8 to floor 2"),
        ("errors", "def f():\n  from jaxasr.loading import f", "errors:2 imports jaxasr.loading, from floor 8"),
        (
            "errors",
            "if TYPE_CHECKING:\n  from jaxasr.cli.info import f",
            "errors:2 imports jaxasr.cli.info, from floor 9",
        ),
        ("loading", "import jaxasr", "loading:1 imports jaxasr, from floor 9 to floor 8"),
        ("nowhere", "from jaxasr.errors import JaxasrError", "nowhere.py stands on no floor"),
        ("loading", "from jaxasr.nowhere import f", "nowhere.py stands on no floor"),
        ("batching", "from jaxasr.recognizer import f", "batching.py imports recognizer.py"),
        ("layers__products", "from jaxasr.layers.linear import f", "a circle: jaxasr.layers."),
    ],
)
def test_a_wrong_import_is_found(module: str, text: str, fault: str) -> None:
    assert any(fault in found for found in house_faults(**{module: text}))
