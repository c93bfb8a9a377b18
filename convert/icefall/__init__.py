"""The wing of icefall and sherpa-onnx: Zipformers and Conformers from .pt checkpoints and from ONNX exports."""

from __future__ import annotations

from jaxasr.convert.icefall import candidates, models
from jaxasr.convert.protocol import Family

FAMILY = Family(
    name="icefall",
    expected=candidates.EXPECTED,
    find=candidates.find,
    read=models.read,
    convert=models.convert,
    companions=candidates.TOKENS,
)
