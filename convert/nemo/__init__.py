"""The wing of NVIDIA's NeMo: recognisers from .nemo archives."""

from __future__ import annotations

from jaxasr.convert.nemo import candidates, models
from jaxasr.convert.protocol import Family

FAMILY = Family(
    name="nemo",
    expected=candidates.EXPECTED,
    find=candidates.find,
    read=models.read,
    convert=models.convert,
)
