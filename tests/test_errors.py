"""Foreign names in messages: nothing that a terminal would act on, and no list without an end."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from jaxasr.errors import CheckpointError, JaxasrError, listing, printable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.weight", "encoder.weight"),
        ("音声 ファイル\u3000é.wav", "音声 ファイル\u3000é.wav"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nb\r\tc\x9b", "a\\nb\\r\\tc\\x9b"),
        ("abc\u202egnp.exe\u2028", "abc\\u202egnp.exe\\u2028"),
        (b"caf\xe9.wav".decode("utf-8", "surrogateescape"), "caf\\udce9.wav"),
        (Path("a\x1b.pt"), "a\\x1b.pt"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(name: str | Path, expected: str) -> None:
    assert printable(name) == expected
    assert printable(expected) == expected, "a second pass changes nothing"


def test_long_names_are_cut() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"


def test_long_lists_are_cut_with_a_count() -> None:
    assert listing(["a", "b"]) == "a, b"
    assert listing(iter("abcd"), 4) == "a, b, c, d"
    assert listing((str(number) for number in range(2000)), 3, "; ") == "0; 1; 2 and 1,997 more"
    assert listing(["\x1b[2J", "y" * 500], 2) == "\\x1b[2J, " + "y" * 199 + "…"
    assert listing([]) == ""


def test_every_message_is_one_harmless_line() -> None:
    error = CheckpointError("a\x1b[2J\nb")
    assert str(error) == "a\\x1b[2J\\nb"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert issubclass(CheckpointError, JaxasrError)
