"""Names of output files: each recording its own, whatever else is transcribed with it."""

from __future__ import annotations

import os

from jaxasr.cli.targets import file_names, output_name


def test_file_names_in_one_folder() -> None:
    assert file_names(["a/x.wav", "b/y.flac", "-"], ".txt") == ["x.txt", "y.txt", "stdin.txt"]
    assert file_names(["a/x.wav", "a/x.mp3"], ".srt") == ["x.wav.srt", "x.mp3.srt"]
    assert file_names(["a/x.wav", "b/x.wav", "c.wav"], ".txt") == ["a_x.wav.txt", "b_x.wav.txt", "c.txt"]
    assert file_names(["/r/a/x.wav", "/r/b/x.wav", "/r/c/x.ogg"], ".txt") == [
        "a_x.wav.txt",
        "b_x.wav.txt",
        "x.ogg.txt",
    ]
    assert file_names(["/r/1/a/x.wav", "/r/2/a/x.wav"], ".txt") == ["1_a_x.wav.txt", "2_a_x.wav.txt"]
    assert file_names(["a/X.wav", "b/x.WAV"], ".txt") == ["a_X.wav.txt", "b_x.WAV.txt"]
    twice = file_names(["a/x.wav", "a/x.wav", "./a/x.wav"], ".txt")
    assert len(set(twice)) == 3 and all(name.endswith(".txt") for name in twice)
    dotted = file_names(["v1.2.wav", "v1.3.wav"], ".json")
    assert dotted == ["v1.2.json", "v1.3.json"]


def test_file_names_depend_only_on_what_clashes() -> None:
    two = file_names(["/r/a/x.wav", "/r/b/x.wav"], ".txt")
    assert file_names(["/r/a/x.wav", "/r/b/x.wav", "/r/c/x.wav", "/r/d/z.wav"], ".txt")[:2] == two


def test_a_longer_name_that_stands_there_is_kept() -> None:
    both = file_names(["/r/a/x.wav", "/r/b/x.wav"], ".txt")
    assert both == ["a_x.wav.txt", "b_x.wav.txt"]
    assert file_names(["/r/b/x.wav"], ".txt", both) == ["b_x.wav.txt"]
    assert file_names(["/r/c/x.wav"], ".txt", both) == ["x.txt"]
    assert file_names(["/r/b/x.wav"], ".srt", both) == ["x.srt"]
    assert file_names(["/r/b/X.WAV"], ".txt", ["B_x.wav.txt"]) == ["b_X.WAV.txt"]
    # The file of the longest name is the one that was made among the most recordings.
    assert file_names(["/r/b/x.wav"], ".txt", ["x.txt", "x.wav.txt", "r_b_x.wav.txt"]) == ["r_b_x.wav.txt"]


def test_names_stay_on_a_rerun() -> None:
    inputs = ["/r/b/x.wav", "/q/b_x.wav.flac", "/r/b/y.wav", "/r/c/y.wav", "/r/c/y.mp3", "-"]
    first = file_names(inputs, ".txt")
    assert file_names(inputs, ".txt", first) == first
    for i, name in enumerate(inputs[2:], start=2):
        assert file_names([name], ".txt", first) == [first[i]]


def test_names_that_a_file_system_takes_for_one() -> None:
    found = file_names(["/r/\u00e9.wav", "/s/e\u0301.wav"], ".txt")
    assert found == ["r_\u00e9.wav.txt", "s_e\u0301.wav.txt"]


def test_long_names_fit_a_file_system() -> None:
    stem = "ä" * 125
    assert output_name(stem, ".txt") == stem + ".txt"
    cut = [output_name(stem + end, ".ch1.json") for end in ("bc", "bd")]
    assert len(set(cut)) == 2
    for name in cut:
        assert len(os.fsencode(name)) <= 255 and name.endswith(".ch1.json") and name.startswith("ä" * 100)
