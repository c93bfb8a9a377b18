"""A wait is told when it is long and somebody waits, and its end to who was told."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from jaxasr.waiting import LOGGER, OVER, Wait


@pytest.fixture
def told() -> Iterator[list[tuple[str, bool]]]:
    """Messages, and whether each says that the wait is over."""
    records: list[tuple[str, bool]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((record.getMessage(), hasattr(record, OVER)))

    logger, handler = logging.getLogger(LOGGER), Keep()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("first", ["long", "awaited"])
def test_told_once_both_are_known(told: list[tuple[str, bool]], first: str) -> None:
    wait = Wait("boiling 100 % of it")
    wait.note(**{first: True})
    assert told == []
    wait.note(long=True, awaited=True)
    wait.note(awaited=True)
    assert told == [("boiling 100 % of it", False)]
    wait.end()
    assert told[1:] == [("no longer boiling 100 % of it", True)]
    wait.note(long=True, awaited=True)
    assert len(told) == 2


def test_nothing_is_told_of_what_was_short_or_nobody_waited_for(told: list[tuple[str, bool]]) -> None:
    for known in ({"long": True}, {"awaited": True}, {}):
        wait = Wait("boiling")
        wait.note(**known)
        wait.end()
    assert told == []
