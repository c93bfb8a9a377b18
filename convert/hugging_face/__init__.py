"""The wing of Hugging Face's Transformers: recognisers as `save_pretrained` writes them, in safetensors."""

from __future__ import annotations

from jaxasr.convert.hugging_face import candidates, models
from jaxasr.convert.protocol import Family

FAMILY = Family(
    name="hugging_face",
    expected=candidates.EXPECTED,
    find=candidates.find,
    read=models.read,
    convert=models.convert,
    refuse=models.refuse,
)
