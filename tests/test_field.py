"""Files that people met, made after public bug reports: what is said in them, and the line that each gets."""

from __future__ import annotations

from pathlib import Path

import pytest

import jaxasr
from jaxasr.errors import AudioError
from jaxasr.evaluation import evaluate
from jaxasr.manifests import Piece, Utterance

DIGITS = "THREE ONE FOUR ONE FIVE NINE TWO SIX"
# What is heard in each file, and what the line about it says, if there is one.
FILES = {
    "flac_unknown_length.flac": (DIGITS, ""),
    "ogg_flac.oga": (DIGITS, ""),
    "g722.wav": (DIGITS, ""),
    "alac.caf": (DIGITS, ""),
    "one_damaged_packet.m4a": (DIGITS, "0.06 s of its sound are damaged or missing"),
    "riff_right_data_0.wav": (DIGITS, ""),
    "joined.mp3": (f"{DIGITS} {DIGITS}", ""),
    "antiphase_stereo.wav": (DIGITS, "its channels cancel each other"),
    "float_at_int16_scale.wav": (DIGITS, "divided by 32768"),
    "latin1_tag.mka": (DIGITS, ""),
}


def test_transcripts_and_error_rates(shared: Path, logged: list[str]) -> None:
    """One model hears them through `transcribe` and through `evaluate`, between files that nobody can read."""
    pytest.importorskip("av", reason="needs PyAV (pip install av)")
    folder = shared / "field"
    unknown = folder / "c_unknown_codec.mka"
    with jaxasr.load_model() as recognizer:
        paths = [folder / name for name in FILES]
        *results, last = recognizer.transcribe([*paths, unknown], on_error="yield")
        assert {Path(result.audio).name: result.text for result in results} == {
            name: text for name, (text, _) in FILES.items()
        }
        assert isinstance(last.error, AudioError) and "no decoder for its sound" in str(last.error)
        for name, (_, line) in FILES.items():
            about = [entry for entry in logged if entry.startswith(f"{folder / name}: ")]
            assert len(about) == bool(line) and all(line in entry for entry in about)
        rows = [Utterance("m.tsv", (Piece(path),), text) for path, (text, _) in zip(paths, FILES.values(), strict=True)]
        rows.append(Utterance("m.tsv", (Piece(folder / "vbr_without_xing.mp3"),), DIGITS))
        *scored, long = evaluate(recognizer, rows)
        assert [each.errors.total for each in scored] == [0] * len(scored)
        assert long.duration > 53 and DIGITS in long.hypothesis
