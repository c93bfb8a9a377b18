"""The wing of NVIDIA's NeMo: recognisers and detectors from .nemo archives, a detector's ONNX export."""

from __future__ import annotations

from jaxasr.convert.nemo import candidates, models
from jaxasr.convert.protocol import Family

FAMILY = Family(
    name="nemo",
    expected=candidates.EXPECTED,
    find=candidates.find,
    read=models.read,
    convert=models.convert,
    owns=models.owns,
)
