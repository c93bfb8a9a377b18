"""What the front ends of icefall's encoders have in common: three convolutions and a linear layer after them."""

from __future__ import annotations

import re

from jaxasr.convert.mapping import Rule, channels_last, conv2d, same

EMBED_CHANNELS = 128  # after the last convolution, in every recipe


def front_end_rules(prefix: str, places: tuple[int, int, int]) -> tuple[Rule, ...]:
    """The rows of a front end whose convolutions stand at these places of the publisher's nn.Sequential."""
    rows = []
    for number, place in enumerate(places, 1):
        name = re.escape(f"{prefix}.conv.{place}.")
        rows.append(Rule(f"{name}weight", f"encoder.embed.conv{number}.kernel", conv2d))
        rows.append(Rule(f"{name}bias", f"encoder.embed.conv{number}.bias", same))
    rows.append(Rule(re.escape(f"{prefix}.out.weight"), "encoder.embed.out.kernel", channels_last(EMBED_CHANNELS)))
    rows.append(Rule(re.escape(f"{prefix}.out.bias"), "encoder.embed.out.bias", same))
    return tuple(rows)
