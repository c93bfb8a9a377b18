"""The wing of FunASR: Paraformers and detectors of speech from model directories of ModelScope and the hub."""

from __future__ import annotations

from jaxasr.convert.funasr import candidates, models
from jaxasr.convert.protocol import Family

FAMILY = Family(
    name="funasr",
    expected=candidates.EXPECTED,
    find=candidates.find,
    read=models.read,
    convert=models.convert,
)
