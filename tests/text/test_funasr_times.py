"""FunASR's times of tokens: the reference's cases, and what `generate` states of whole clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from golden_models import read_arrays
from jaxasr.text.funasr import spell_with_times
from jaxasr.text.funasr_times import SHIFT, stretches, token_spans


def test_every_case_of_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "golden/paraformer-tiny/timestamps.json").read_text(encoding="utf-8"))["cases"]
    assert {case["upsample_rate"] for case in cases} == {1, 3}
    for case in cases:
        weights, peaks = (np.array(case[name], np.float32) for name in ("alphas", "peaks"))
        shift, offset = case.get("force_time_shift", SHIFT), case.get("vad_offset", 0.0)
        found = stretches(weights, peaks, len(case["char_list"]), case["upsample_rate"], shift)
        assert [list(span) for span in token_spans(found, offset)] == case["timestamps_ms"]
        if not case.get("sil_in_str", True):
            found = [each for each in found if each.token is not None]
        names = ["<sil>" if each.token is None else case["char_list"][each.token] for each in found]
        times = [[str(time + offset / 1000 + 0.0005)[:5] for time in (each.start, each.stop)] for each in found]
        text = "".join(f"{name} {start} {stop};" for name, (start, stop) in zip(names, times, strict=True))
        assert text == case["text"]


def test_what_generate_states_of_whole_clips(shared: Path) -> None:
    """FunASR hands on the spans of all tokens, `<unk>` included, and takes them one after another without it."""
    folder = shared / "golden/paraformer-bicif-tiny"
    pieces = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    compared = 0
    for clip, result in results.items():
        if clip.startswith("_") or not result.get("timestamp"):
            continue
        arrays = read_arrays(folder / f"clip_{clip}.npz")
        kept = [pieces[token] for token in result["ids"] if token not in (0, 1, 2)]
        spans = token_spans(stretches(arrays["us_alphas"], arrays["us_peaks"], len(kept), 3))
        spoken = [piece for piece in kept if piece != "<unk>"]
        text, words = spell_with_times(spoken, spans[: len(spoken)])
        assert (text, [list(span) for span in words]) == (result["text"], result["timestamp"]), clip
        compared += 1
    assert compared >= 4


def test_what_a_plain_paraformer_states(shared: Path) -> None:
    """FunASR hands its predictor's weights and their running sums to the rule the wrong way round: so they are here."""
    folder = shared / "golden/paraformer-tiny"
    pieces = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    stated = {clip: result["pred_timestamp"] for clip, result in results.items() if not clip.startswith("_")}
    stated = {clip: result for clip, result in stated.items() if result and result.get("timestamp")}
    assert len(stated) == 6
    for clip, result in stated.items():
        arrays = read_arrays(folder / f"clip_{clip}.npz")
        kept = [pieces[token] for token in results[clip]["ids"] if token not in (0, 1, 2)]
        spans = token_spans(stretches(arrays["fires"].ravel(), arrays["alphas"].ravel(), len(kept), 1))
        spoken = [piece for piece in kept if piece != "<unk>"]
        text, words = spell_with_times(spoken, spans[: len(spoken)])
        assert (text, [list(span) for span in words]) == (result["text"], result["timestamp"]), clip


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_an_offset_is_added_and_nothing_has_no_times(offset: float) -> None:
    weights = np.array([0.5, 0.5, 0.0, 0.5, 0.5, 0.0], np.float32)
    peaks = np.array([0.5, 1.0, 0.0, 0.5, 1.0, 0.0], np.float32)  # two peaks: one token from the first to the end
    (span,) = token_spans(stretches(weights, peaks, 1, 1), offset)
    assert span == (int(offset) - 30, pytest.approx(offset + 360, abs=1))
    assert stretches(weights, peaks, 0, 1) == []
