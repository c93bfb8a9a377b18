"""What people wait for at the first use of a model, told through the log; the command line shows it beside its bar."""

from __future__ import annotations

import logging
import threading

LOGGER = "jaxasr.waiting"
OVER = "over"  # the attribute of a record that says that the wait is over, for which it has the value True

_logger = logging.getLogger(LOGGER)


class Wait:
    """Something that may take long, such as a program in one thread that another one needs.

    Both may know their part first; it is told once it is known to take long and somebody waits for it.
    """

    def __init__(self, message: str) -> None:
        """`message`: what is being waited for."""
        self._message = message
        self._lock = threading.Lock()
        self._long = self._awaited = self._told = False

    def note(self, *, long: bool = False, awaited: bool = False) -> None:
        """It takes `long`, or somebody has begun to wait for it."""
        with self._lock:
            self._long, self._awaited = self._long or long, self._awaited or awaited
            if self._told or not (self._long and self._awaited):
                return
            self._told = True
        _logger.info("%s", self._message)

    def end(self) -> None:
        """It is there, or has failed."""
        with self._lock:
            told, self._told = self._told, True
        if told:
            _logger.info("no longer %s", self._message, extra={OVER: True})
