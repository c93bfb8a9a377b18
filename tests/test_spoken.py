"""Speller: what a search has found as a Transcript, with the times that a publisher's spelling gives its tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxasr.configs import named_configs
from jaxasr.search import GreedyConfig
from jaxasr.spoken import Speller
from jaxasr.store import read_config
from jaxasr.text.nemo import NemoConfig
from jaxasr.text.tokens import TokenTable

FRAME = 0.08


def transcript(head: str, times: Any, **ctc: Any) -> tuple[list[float], list[float], str]:
    """Times, durations and text of "a.", a pause, and ".b", found in two parts of a recording of 3 s."""
    config = read_config(named_configs()["parakeet_tdt_ctc_110m"])
    assert config.ctc is not None
    text = NemoConfig(tokenizer="characters", punctuation=".", punctuation_times=times)
    config = dataclasses.replace(config, text=text, ctc=dataclasses.replace(config.ctc, **ctc))
    speller = Speller(config, TokenTable((*"ab.", "<blk>")), GreedyConfig(head=head))
    found = [([0, 2], [0, 12], [3, 1]), ([2, 1], [2, 4], [2, 2])]
    parts = [
        speller.spoken([*map(np.asarray, each), np.zeros(2)], start)
        for each, start in zip(found, (0.0, 1.6), strict=True)
    ]
    heard = speller.transcript(parts, audio="", duration=3.0)
    return heard.timestamps, heard.durations, heard.text


@pytest.mark.parametrize(
    ("head", "times", "ctc", "begins", "lasting"),
    [
        ("transducer", "own", {}, [0, 12, 22, 24], [3, 1, 2, 2]),
        ("transducer", "moved", {}, [0, 3, 3, 24], [3, 0, 0, 2]),
        ("ctc", "short", {"token_frames": "previous"}, [0, 12, 22, 24], [3, 0, 0, 2]),
        ("ctc", "moved", {}, [0, 12, 22, 24], []),
    ],
)
def test_marks_stand_where_their_spelling_says(
    head: str, times: str, ctc: dict[str, Any], begins: list[int], lasting: list[int]
) -> None:
    """Over the bounds of parts, and only where a search says how long tokens last, as in NeMo."""
    timestamps, durations, text = transcript(head, times, **ctc)
    np.testing.assert_allclose(timestamps, np.array(begins) * FRAME, atol=1e-4)
    np.testing.assert_allclose(durations, np.array(lasting) * FRAME, atol=1e-4)
    assert text == "a..b"
