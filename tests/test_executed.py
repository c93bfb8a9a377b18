"""The record of what tests execute sees functions, methods and properties, also those of workers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from executed import UNSEEN, never_executed, public_functions
from sources import modules

SOURCE = """
def run(): ...
def _hidden(): ...
class Model(nnx.Module):
    def __init__(self): ...
    def __call__(self): ...
    @property
    def size(self):
        def inner(): ...
    @functools.cached_property
    def width(self): ...
    def _own(self): ...
class Head(Protocol):
    def join(self): ...
class _Private:
    def method(self): ...
@overload
def run(x): ...
if sys.platform == "linux":
    def only_there(): ...
"""


def test_public_functions() -> None:
    assert list(public_functions(SOURCE)) == ["run", "Model.__call__", "Model.size", "Model.width", "only_there"]


def test_what_is_not_executed_is_named() -> None:
    everything = {
        (module, name)
        for module, path in modules().items()
        for name in public_functions(path.read_text(encoding="utf-8"))
    }
    assert len(everything) > 150
    assert never_executed(everything) == []
    missing = ("jaxasr.speechlike", "speechlike")
    assert never_executed(everything - {missing}) == ["jaxasr.speechlike.speechlike"]
    assert set(UNSEEN) <= {f"{module}.{name}" for module, name in everything}, "a reason for what does not exist"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of Python 3.12")
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_a_run_that_executes_little_fails_and_says_what(workers: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--all-executed", "-p", "no:cacheprovider", *workers]
    # Not as a worker of this run, nor with its options.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command.append("tests/test_manifests.py")
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    report = result.stdout.partition("public functions that no test executed")[2].split()
    assert result.returncode == 1, result.stdout
    assert "jaxasr.speechlike.speechlike" in report
    assert "jaxasr.manifests.read_manifest" not in report and "jaxasr.manifests.read_audio" not in report
