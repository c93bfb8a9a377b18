"""The loss of a parallel head: a cross-entropy of its tokens, and how far its count is from theirs.

The predictor's weights are scaled so that they add up to the tokens that there are. The decoder says them twice: a
first pass without a gradient shows how many it gets wrong, and of as many vectors, times a share, the second pass sees
the true tokens' embeddings instead (the sampler; Gao et al., 2022, arXiv 2206.08317, section 3.3). Every text is
followed by its end, a token of its own. No token is lost to rounding, as FunASR's last ones may be, whose weights add
up to 2.9999997 instead of 3. Source: FunASR, models/paraformer/model.py, losses/label_smoothing_loss.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxasr.arrays import length_mask
from jaxasr.heads.cif import Fired
from jaxasr.heads.parallel import Parallel
from jaxasr.layers.products import embed


def parallel_loss(
    head: Parallel,
    encoded: jax.Array,
    lengths: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
    *,
    smoothing: float,
    sampled: float,
    order: jax.Array | None = None,
) -> jax.Array:
    """The loss of each row in nats: (B,) float32, the sum over its tokens.

    encoded (B, T, D) of lengths (B,), labels (B, U) of lengths (B,). `smoothing`: the probability that the other tokens
    share in the target. `sampled`: the share of wrong tokens whose number of embeddings the second pass is shown.
    `order` (B, U + 1): the rank of each position among those to be shown, from 0 on; None shows none.
    """
    texts, counts = with_end(labels, label_lengths, head.config.end_id)
    fired, total = head.fire_known(encoded, lengths, counts, texts.shape[1])
    tokens = text_loss(head, fired, encoded, lengths, texts, smoothing=smoothing, sampled=sampled, order=order)
    return tokens + jnp.abs(total - counts)


def text_loss(
    head: Parallel,
    fired: Fired,
    encoded: jax.Array,
    lengths: jax.Array,
    texts: jax.Array,
    *,
    smoothing: float,
    sampled: float,
    order: jax.Array | None,
) -> jax.Array:
    """The part of the loss that is the tokens': (B,). texts (B, L), of which `fired` has vectors (B, L, D)."""
    valid = length_mask(fired.counts, texts.shape[1])
    if order is not None:
        said = head.decode(*lax.stop_gradient((fired, encoded)), lengths).argmax(axis=-1)
        wrong = ((said != texts) & valid).sum(axis=-1)
        shown = valid & (order < jnp.floor(wrong.astype(jnp.float32) * sampled)[:, None])
        true = embed(head.embedding[...], texts).astype(fired.vectors.dtype)
        fired = fired._replace(vectors=jnp.where(shown[..., None], true, fired.vectors))
    log_probs = jax.nn.log_softmax(head.decode(fired, encoded, lengths), axis=-1)
    return jnp.where(valid, smoothed_cross_entropy(log_probs, texts, smoothing), 0.0).sum(axis=-1)


def with_end(labels: jax.Array, label_lengths: jax.Array, end_id: int) -> tuple[jax.Array, jax.Array]:
    """labels (B, U) of lengths (B,) -> texts (B, U + 1) with the end after each, zeros after it, and their lengths."""
    places = jnp.arange(labels.shape[1] + 1)
    texts = jnp.where(length_mask(label_lengths, len(places)), jnp.pad(labels, ((0, 0), (0, 1))), 0)
    return jnp.where(places == label_lengths[:, None], end_id, texts), label_lengths + 1


def smoothed_cross_entropy(log_probs: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """The Kullback-Leibler divergence from log_probs (..., V) of targets that hold labels (...) for likely: (...).

    A target gives 1 - smoothing to its label, and shares `smoothing` among all others.
    """
    others = smoothing / (log_probs.shape[-1] - 1)
    known = (1 - smoothing) * np.log(1 - smoothing) + (smoothing * np.log(others) if smoothing else 0.0)
    of_label = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    divergence: jax.Array = known - (1 - smoothing - others) * of_label - others * log_probs.sum(axis=-1)
    return divergence


def random_order(key: jax.Array, counts: jax.Array, positions: int) -> jax.Array:
    """Ranks (B, positions): a random order of the first counts (B,) positions of each row; the others come last."""
    drawn = jax.random.uniform(key, (counts.shape[0], positions))
    drawn = jnp.where(length_mask(counts, positions), drawn, 2.0)
    return jnp.argsort(jnp.argsort(drawn, axis=-1), axis=-1).astype(jnp.int32)
