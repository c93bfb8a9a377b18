"""The modules of the library as text: their names, files and imports, read without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from conftest import REPOSITORY

# Top-level folders that hold packages, and the names they are installed under.
PACKAGE_FOLDERS = {"jaxasr": "jaxasr", "convert": "jaxasr.convert", "configs": "jaxasr.configs"}


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name; a package stands for its __init__.py."""
    found = {}
    for folder, package in PACKAGE_FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = [package, *path.relative_to(REPOSITORY / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(
    source: str, module: str, package: bool = False, *, for_types: bool = True
) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, name or None) of every import in the text of `module`, also of those inside functions.

    `import a.b` has no name; `from a import b, c` has two entries. Relative imports are resolved; `package` says that
    the text is that of an __init__.py. `for_types`: also what stands under `if TYPE_CHECKING:`, which never runs.
    """
    tree = ast.parse(source)
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + package]
                home = ".".join([*parts, home] if home else parts)
            for alias in node.names:
                yield node.lineno, home, alias.name
