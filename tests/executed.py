"""Which public functions no test has executed: `pytest --name-unexecuted` names them, `--all-executed` fails too.

Python 3.12 tells a tool once that a function has started and then no more (sys.monitoring), which costs next to
nothing; before that nothing is recorded. Workers of pytest-xdist send what they have seen to the process that started
them. What only processes run that tests start themselves is not seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import pytest

from sources import modules

# Functions that tests run in processes of their own only, or not at all, each with the reason.
UNSEEN: Mapping[str, str] = {}

Function = tuple[str, str]  # module, qualified name


def public_functions(source: str) -> Iterator[str]:
    """The qualified names of the public functions and methods in a module's text.

    Functions inside functions belong to the outer one; methods of protocols and overloads have no body of their own.
    """

    def walk(nodes: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if not any(ast.unparse(base).split("[")[0].endswith("Protocol") for base in node.bases):
                    yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                public = not node.name.startswith("_") or (prefix and node.name == "__call__")
                decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                if public and not decorators & {"overload", "typing.overload", "abstractmethod", "abc.abstractmethod"}:
                    yield f"{prefix}{node.name}"
            elif isinstance(node, ast.If | ast.Try):
                yield from walk(node.body, prefix)

    return walk(ast.parse(source).body, "")


def never_executed(seen: set[Function]) -> list[str]:
    """Public functions that are not among those `seen` and for which UNSEEN has no reason."""
    return [
        f"{module}.{name}"
        for module, path in modules().items()
        for name in public_functions(path.read_text(encoding="utf-8"))
        if (module, name) not in seen and f"{module}.{name}" not in UNSEEN
    ]


class Recorder:
    """A pytest plugin that keeps which functions have started, over all workers, and reports at the end."""

    _TOOL = 4  # of the six numbers that sys.monitoring has, one that no debugger, profiler or coverage takes

    def __init__(self) -> None:
        self._started: set[tuple[str, str]] = set()  # file, qualified name
        self.seen: set[Function] = set()
        self.records = sys.version_info >= (3, 12)
        if self.records:
            monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
            monitoring.use_tool_id(self._TOOL, "tests of jaxasr")
            monitoring.register_callback(self._TOOL, monitoring.events.PY_START, self._start)
            monitoring.set_events(self._TOOL, monitoring.events.PY_START)
            self._enough = monitoring.DISABLE

    def _start(self, code: CodeType, _: int) -> Any:
        self._started.add((code.co_filename, code.co_qualname))
        return self._enough

    def functions(self) -> set[Function]:
        """What has started in this process, by module."""
        homes = {
            module.__file__: name
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == "jaxasr" and getattr(module, "__file__", None)
        }
        return {(homes[file], name) for file, name in self._started if file in homes}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["executed"] = [list(function) for function in self.functions()]
            return
        self.seen |= self.functions()
        fails = session.config.getoption("--all-executed") and session.exitstatus == pytest.ExitCode.OK
        if self.records and fails and never_executed(self.seen):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.seen |= {(module, name) for module, name in getattr(node, "workeroutput", {}).get("executed", ())}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.records:
            terminalreporter.write_line("which functions the tests execute is recorded with Python 3.12 or later")
            return
        missing = never_executed(self.seen)
        terminalreporter.section("public functions that no test executed")
        terminalreporter.write_line("\n".join(missing) or "none")
