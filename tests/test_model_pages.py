"""The tables of docs/models/ are what docs/models/make.py writes."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from conftest import REPOSITORY
from jaxasr.encoders import ENCODERS
from jaxasr.model_config import ModelConfig

FOLDER = REPOSITORY / "docs" / "models"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_model_pages", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(path.name for path in FOLDER.glob("*.md") if path.name != "README.md"))
def test_a_page_is_up_to_date(make: ModuleType, page: str) -> None:
    """But for the numbers of parameters, which tests/test_configs.py holds against those of the checkpoints."""
    text = (FOLDER / page).read_text("utf-8")

    def stated(config: ModelConfig) -> int:
        found = re.search(rf"\[{config.name}\]\([^)]*\) \| ([\d,]+) \|", text)
        return int(found[1].replace(",", "")) if found else -1

    assert make.render(text, stated) == text, "run python docs/models/make.py"
    assert len(re.findall("<!-- end -->", text)) >= 3 or "<!-- detector " in text


def test_every_encoder_has_a_page() -> None:
    pages = [path.read_text("utf-8") for path in FOLDER.glob("*.md")]
    for kind in ENCODERS:
        # An encoder that detectors alone have has no configuration of a recogniser.
        assert sum(f"<!-- configs {kind} -->" in page or f"<!-- detector {kind} -->" in page for page in pages) == 1, (
            kind
        )
