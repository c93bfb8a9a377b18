"""What the command line tells people: lines and a progress bar on standard error, and facts on standard output.

Names of files, tensors and models come from strangers: whatever goes to people goes through `say` or `show`, which
escape what a terminal would act on. What goes to programs (json, tsv, a path) keeps its names as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxasr import waiting
from jaxasr.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

# Characters of a line: room for the longest path of a system and what is wrong with it.
LINE_SHOWN = 5000


def debugging() -> bool:
    """Whether JAXASR_DEBUG asks for tracebacks and for the libraries' own log lines."""
    return os.environ.get("JAXASR_DEBUG", "") not in ("", "0")


def say(message: str) -> None:
    """One line for people on standard error, whatever `message` holds."""
    line = printable(re.sub(r"\s*\n\s*", " ", message.strip()), LINE_SHOWN)
    # A closed standard error must not stop the work.
    with contextlib.suppress(OSError, ValueError):
        print(f"jaxasr: {line}", file=sys.stderr, flush=True)


def show(line: str) -> None:
    """One line for people on standard output, whatever `line` holds."""
    print(printable(line, LINE_SHOWN))


def handed_on(name: str | os.PathLike[str]) -> str:
    """A name as a program that reads standard output needs it, unchanged; on a terminal printable."""
    return printable(name) if sys.stdout.isatty() else os.fspath(name)


def show_traceback() -> None:
    """The traceback of the exception that is being handled, on standard error; its messages may quote names."""
    for line in traceback.format_exc().split("\n"):
        print(printable(line), file=sys.stderr)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name != waiting.LOGGER:  # which a meter shows, if there is one
            say(record.getMessage())


def log_to_stderr() -> None:
    """Print what jaxasr logs as lines; what the libraries beneath it log is heard only where JAXASR_DEBUG is set.

    They log tracebacks of failures (a full disk) that end in one line of ours.
    """
    logger = logging.getLogger("jaxasr")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not debugging() and not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


class Meter(logging.Handler):
    """Seconds of audio done, as a bar with the real-time factor; it shows nothing where there is no terminal.

    As a handler of a log it shows what is waited for in the place of the title.
    """

    def __init__(self, bar: Progress | None = None, title: str = "") -> None:
        super().__init__()
        self._bar, self._title = bar, title
        self._task = bar.add_task(title, total=None, speed="") if bar else None
        self._begun = time.monotonic()

    def __call__(self, done: float, known: float | None) -> None:
        """Show that `done` seconds are finished of `known` seconds that have been read so far."""
        if self._bar is None or self._task is None:
            return
        factor = done / max(time.monotonic() - self._begun, 1e-9)
        self._bar.update(self._task, completed=done, total=known, speed=f"{factor:.3g}x real time")

    def emit(self, record: logging.LogRecord) -> None:
        """Show that a wait begins, or that it is over."""
        if self._bar is not None and self._task is not None:
            over = hasattr(record, waiting.OVER)
            self._bar.update(self._task, description=self._title if over else record.getMessage())

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something is printed on the same terminal."""
        if self._bar is None or not sys.stdout.isatty():
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextlib.contextmanager
def metered(title: str) -> Iterator[Meter]:
    """A meter on standard error where that is a terminal, otherwise a silent one."""
    if not sys.stderr.isatty():
        yield Meter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} s of audio, {task.fields[speed]}"),
    )
    # Standard output is left alone: results go there, also while it is a file and the bar is on the terminal.
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        meter = Meter(bar, title)
        logger = logging.getLogger(waiting.LOGGER)
        logger.addHandler(meter)
        try:
            yield meter
        finally:
            logger.removeHandler(meter)
