"""The attention context of models that were trained with several."""

from __future__ import annotations

from typing import Any

import pytest

from jaxasr.convert.nemo.contexts import choose_context
from jaxasr.convert.protocol import Options
from jaxasr.errors import ConfigError

STREAMING: dict[str, Any] = {"subsampling_factor": 8, "att_context_size": [[70, 13], [70, 6], [70, 0]], "d_model": 8}


def test_the_first_is_taken_and_the_others_are_named() -> None:
    notes: list[str] = []
    assert choose_context(STREAMING, 0.01, Options(), notes) == {**STREAMING, "att_context_size": [70, 13]}
    assert notes == [
        "the first context of the training is taken; its chunks are of 1.12 after 5.6 s, 0.56 after 5.6 s, "
        "0.08 after 5.6 s (chunk_seconds overrides)"
    ]


def test_the_first_is_taken_where_it_is_the_whole_utterance() -> None:
    mixed = {**STREAMING, "att_context_size": [[-1, -1], [70, 13]]}
    notes: list[str] = []
    assert choose_context(mixed, 0.01, Options(), notes)["att_context_size"] == [-1, -1]
    assert "its chunks are of 1.12 after 5.6 s (chunk_seconds overrides)" in notes[0]
    assert choose_context(mixed, 0.01, Options(chunk_seconds=1.12), [])["att_context_size"] == [70, 13]


def test_options_choose_among_those_trained() -> None:
    notes: list[str] = []
    for seconds, frames in ((0.56, 6), (0.08, 0)):
        chosen = choose_context(STREAMING, 0.01, Options(chunk_seconds=seconds, left_context_seconds=5.6), notes)
        assert chosen["att_context_size"] == [70, frames]
    with pytest.raises(ConfigError, match="those of the training: chunks of 1.12 after 5.6 s, 0.56"):
        choose_context(STREAMING, 0.01, Options(chunk_seconds=0.3), notes)
    assert not notes


@pytest.mark.parametrize("encoder", [{}, {"att_context_size": [-1, -1]}, {"att_context_size": "all"}])
def test_what_does_not_stream_has_no_chunks(encoder: dict[str, Any]) -> None:
    assert choose_context(encoder, 0.01, Options(), []) == encoder
    with pytest.raises(ConfigError, match="this is none"):
        choose_context(encoder, 0.01, Options(chunk_seconds=0.32), [])
