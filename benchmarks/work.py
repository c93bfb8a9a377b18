"""How many floating-point operations a Zipformer takes, counted from its configuration."""

from __future__ import annotations

from jaxasr.encoders.zipformer_config import REACH, ZipformerConfig, subsampled_length
from jaxasr.encoders.zipformer_frontend import CONVNEXT_FACTOR


def encoder_operations(config: ZipformerConfig, clips: int, frames: int) -> int:
    """Operations of the products and convolutions on `clips` utterances of `frames` feature frames each.

    A multiplication and an addition count apart. Activations, norms, softmax and sums between modules, 2 % or so, are
    left out, as they are in the figures of the literature.
    """
    steps = subsampled_length(frames)
    total = _front_end(config, frames)
    for stack, layers in enumerate(config.num_layers):
        total += layers * _layer(config, stack, -(-steps // config.downsampling[stack]))
    return clips * total


def _front_end(config: ZipformerConfig, frames: int) -> int:
    first, second, third = config.embed_channels
    steps = subsampled_length(frames)
    bins1 = config.input_dim
    bins2 = (bins1 - 1) // 2
    bins3 = (bins2 - 1) // 2
    window = 2 * REACH + 1
    products = (
        (frames - 2) * bins1 * first * 9
        + ((frames - 2 - 1) // 2) * bins2 * second * 9 * first
        + steps * bins3 * third * 9 * second
        + steps * bins3 * third * window * window
        + steps * bins3 * 2 * third * CONVNEXT_FACTOR * third
        + steps * bins3 * third * config.encoder_dim[0]
    )
    return 2 * products


def _layer(config: ZipformerConfig, stack: int, steps: int) -> int:
    dim, hidden, heads = config.encoder_dim[stack], config.feedforward_dim[stack], config.num_heads[stack]
    query, value, position = (
        heads * width[stack] for width in (config.query_head_dim, config.value_head_dim, config.pos_head_dim)
    )
    gated = dim * 3 // 4
    kernel = config.conv_kernel[stack]
    taps = kernel + kernel // 2 + 1 if config.causal else kernel
    weights = (
        dim * (2 * query + position)
        + 2 * dim * (hidden * 3 // 4 + hidden + hidden * 5 // 4)
        + 4 * dim * gated
        + 2 * 2 * dim * value
        + 2 * (3 * dim * dim + taps * dim)
    )
    positions = 2 * steps - 1
    attention = steps * steps * (query + gated + 2 * value) + positions * (config.pos_dim + steps) * position
    return 2 * (steps * weights + attention)
