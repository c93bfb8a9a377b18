"""Where the data beside the project lies; one fixture decides whether tests that need it run, skip or fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_folder() -> Path | None:
    """The folder of reference data: JAXASR_SHARED, else ../shared beside the checkout; None where there is none."""
    named = os.environ.get("JAXASR_SHARED")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    return folder.resolve() if (folder / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data's folder: skips without it, fails where it was promised (JAXASR_SHARED set, or under CI)."""
    folder = shared_folder()
    if folder is None and (os.environ.get("JAXASR_SHARED") or os.environ.get("CI")):
        pytest.fail("the reference data is missing: set JAXASR_SHARED to the folder that holds golden/ and speech/")
    if folder is None:
        pytest.skip("needs the reference data beside the checkout (JAXASR_SHARED)")
    return folder
