"""A model of each family, converted and compiled as for users, gives the original's tokens, times and texts.

The other tests compile without most optimizations (quick_compilation.py), but for the Zipformer's in test_published.py
and test_embedded.py.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

AGREEMENT = Path(__file__).parent.parent / "docs" / "models" / "agreement.py"


@pytest.fixture(scope="module")
def agreement() -> ModuleType:
    """The command that writes the table of all reference models into the documentation."""
    spec = importlib.util.spec_from_file_location("agreement", AGREEMENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "agreement", module)  # where its dataclasses look for their names
        spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize(
    ("model", "head"),
    [
        ("icefall-conformer-tiny", None),
        ("citrinet-tiny", "ctc"),
        ("fastconformer-tdt-tiny", "transducer"),
        ("paraformer-tiny", None),
    ],
)
def test_a_model_of_each_family(
    agreement: ModuleType, shared: Path, tmp_path: Path, model: str, head: str | None
) -> None:
    found = agreement.references_of(shared / "golden" / model)
    reference = next(each for each in found if each.head == head)
    # Encoded frames, which would be a second program, are compared elsewhere.
    heard = {clip: {key: of[key] for key in of if key != "encoded"} for clip, of in reference.heard.items()}
    row = agreement.compare(dataclasses.replace(reference, heard=heard), tmp_path / "model")
    *_, tokens, times, texts, _ = (cell.strip() for cell in row.split("|"))
    everything = f"{len(heard)} of {len(heard)}"
    assert (tokens, times or "same", texts) == (everything, "same", everything)
