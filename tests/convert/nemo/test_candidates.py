"""Archives among the names of a folder or of a hub's repository."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from jaxasr.convert.families import detect
from jaxasr.convert.hub.downloads import choose_files
from jaxasr.convert.hub.names import Request
from jaxasr.convert.nemo.candidates import find
from jaxasr.errors import CheckpointError, DownloadError


def test_the_shallowest_archive_comes_first() -> None:
    names = {PurePosixPath(name) for name in ("b.nemo", "a/a.nemo", "a.nemo", "../up.nemo", "README.md", "x.nemo.txt")}
    assert [candidate.title for candidate in find(names)] == ["a.nemo", "b.nemo", "a/a.nemo"]
    assert [candidate.title for candidate in find(names, None, PurePosixPath("b.nemo"))] == ["b.nemo"]
    assert not list(find(names, None, PurePosixPath("README.md")))


def test_a_repository_of_the_hub_needs_no_row_of_its_own() -> None:
    listing = [".gitattributes", "README.md", "stt_zh_citrinet_1024_gamma_0_25.nemo"]
    request = Request("nvidia/x", "nvidia/x", None, "float32", None)
    assert [str(path) for path in choose_files(listing, request)] == [listing[2]]
    with pytest.raises(DownloadError, match="holds no int8 checkpoint"):
        choose_files(listing, Request("nvidia/x", "nvidia/x", None, "int8", None))


def test_a_folder_is_searched_and_a_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model.nemo").write_bytes(b"x")
    for source in (tmp_path, tmp_path / "model.nemo"):
        assert detect(source)[0].family == "nemo"
    (tmp_path / "model.txt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"expected .* a \.nemo archive"):
        detect(tmp_path / "model.txt")
