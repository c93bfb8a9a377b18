"""What the front ends of icefall's encoders have in common: three convolutions and a linear layer after them."""

from __future__ import annotations

import re

import numpy as np

from jaxasr.convert.mapping import Rule, conv2d, same

EMBED_CHANNELS = 128  # after the last convolution, in every recipe


def front_end_rules(prefix: str, places: tuple[int, int, int]) -> tuple[Rule, ...]:
    """The rows of a front end whose convolutions stand at these places of the publisher's nn.Sequential."""
    rows = []
    for number, place in enumerate(places, 1):
        name = re.escape(f"{prefix}.conv.{place}.")
        rows.append(Rule(f"{name}weight", f"encoder.embed.conv{number}.kernel", conv2d))
        rows.append(Rule(f"{name}bias", f"encoder.embed.conv{number}.bias", same))
    rows.append(Rule(re.escape(f"{prefix}.out.weight"), "encoder.embed.out.kernel", _channels_last))
    rows.append(Rule(re.escape(f"{prefix}.out.bias"), "encoder.embed.out.bias", same))
    return tuple(rows)


def _channels_last(x: np.ndarray) -> np.ndarray:
    """(out, channels * frequencies) -> (frequencies * channels, out): our convolutions keep channels last."""
    return x.reshape(x.shape[0], EMBED_CHANNELS, -1).transpose(2, 1, 0).reshape(-1, x.shape[0])
